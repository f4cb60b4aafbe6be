"""From a run to a checkpoint that `from_pretrained` loads."""

import copy
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from ..provenance import training_provenance, write_provenance
from .checkpoint import BEST, CheckpointError, read_folder, states
from .lora import load_weights
from .recipe import parse_recipe
from .stages import build_model


def state_folder(run: Path) -> Path:
    """
    The folder of a run's best evaluation, or of its last state where nothing was evaluated.

    Raises:
        CheckpointError: where there is neither.
    """
    if (run / BEST / "state.json").is_file():
        return run / BEST
    found = states(run / "states")
    if not found:
        raise CheckpointError(f"{run} holds no training state.")
    return found[-1]


def load_trained(run: Path) -> tuple[PreTrainedModel, dict]:
    """
    The averaged weights of a run's best evaluation (of its last state, where nothing was evaluated).

    Args:
        run: folder of the run.

    Returns:
        the model in eval mode, and the content of `state.json`.

    Raises:
        CheckpointError: where the folder holds no state.
    """
    folder = state_folder(run)
    tensors, state = read_folder(folder)
    recipe = parse_recipe(state["recipe"])
    if recipe.stage in ("token_prior", "latent_flow"):
        from .stages_tokens import load_token_model

        return load_token_model(tensors["ema"], recipe), state
    if recipe.stage == "flow_tokenizer":
        from .stages_flow import load_flow_tokenizer

        return load_flow_tokenizer(run)[0].image_tokenizer, state
    if recipe.stage == "prior":
        from .stages_prior import load_prior

        return load_prior(run)
    model = load_weights(build_model(recipe.model, recipe.seed), tensors["ema"], recipe.model.lora)
    return model.eval(), state


def save_half(model: PreTrainedModel, folder: Path) -> None:
    """Saves a float32 model with float16 tensors and `"dtype": "float32"`: small on disk, fast on a CPU."""
    if not isinstance(model, PreTrainedModel):  # of diffusers
        copy.deepcopy(model).half().save_pretrained(folder)
        return
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=tensors)


@contextmanager
def renewed(target: Path) -> Iterator[Path]:
    """A folder to write to, whose content takes the place of what `target` has of the same names, once all is there."""
    scratch = target.with_name(f"{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        target.mkdir(parents=True, exist_ok=True)
        for item in scratch.iterdir():
            if (target / item.name).is_dir():
                shutil.rmtree(target / item.name)
            os.replace(item, target / item.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def export_checkpoint(run: Path, target: Path, card: str | None = None) -> Path:
    """
    Writes the best averaged weights of a run as a checkpoint: config, weights, processor, training log, provenance.

    Args:
        run: folder of the run.
        target: folder to make or to update; other files in it stay.
        card: content of its README.md.

    Returns:
        `target`.
    """
    from ..modeling.image_processing_utils import ImageTokenizerProcessor

    model, state = load_trained(run)
    with renewed(target) as scratch:
        save_half(model, scratch)
        if hasattr(model, "decode"):
            _processor(ImageTokenizerProcessor, model.config).save_pretrained(scratch)
        (scratch / "train_log.jsonl").write_text(short_log(run / "log.jsonl"))
        write_provenance(scratch, training_provenance(state))
        if card is not None:
            (scratch / "README.md").write_text(card, encoding="utf-8")
    return target


def short_log(path: Path, every: int = 20) -> str:
    """The evaluations of a run's log and one step in `every`, numbers rounded to five digits."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if values["step"] % every == 0 or values["step"] == 1 or any(key.startswith("psnr") for key in values):
            lines.append(json.dumps({key: float(f"{value:.5g}") for key, value in values.items()}) + "\n")
    return "".join(lines)


def _processor(processor_class: type, config: object) -> object:
    """The processor of a configuration: its size, and its pixel space."""
    if config.pixel_range is not None:
        return processor_class.for_size(config.image_size, tuple(config.pixel_range))
    side = {"height": config.image_size, "width": config.image_size}
    mean, std = list(config.image_mean), list(config.image_std)
    return processor_class(size={"shortest_edge": config.image_size}, crop_size=side, image_mean=mean, image_std=std)
