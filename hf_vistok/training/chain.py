"""A chain of runs (VAE, tokenizer with flow decoder, prior), and the text-to-image pipeline that they make."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from .core import Trainer
from .export import renewed, short_log, state_folder
from .recipe import CHAIN_STAGES, ChainRecipe, Recipe, RecipeError, load_recipe


def part_recipes(recipe: ChainRecipe, output: Path | None = None) -> list[Recipe]:
    """
    The recipes of the parts, each reading the run before it.

    Args:
        recipe: of the chain.
        output: folder of the runs, `recipe.runs` by default.

    Raises:
        RecipeError: for a part of another stage than its key says, or a wrong override.
    """
    folder, out = output or Path(recipe.runs), []
    for stage in CHAIN_STAGES:
        texts = [f"{key}={yaml.safe_dump(value)}" for key, value in recipe.overrides.get(stage, {}).items()]
        part = load_recipe(recipe.parts[stage], texts)
        if part.stage != stage:
            raise RecipeError(f"recipe.parts.{stage}: {recipe.parts[stage]} is a recipe of stage {part.stage!r}.")
        part.output = str(folder / part.name)
        out.append(part)
    vae, tokenizer, prior = out
    tokenizer.vae, prior.tokenizer = vae.output, tokenizer.output
    return out


def train_chain(
    recipe: ChainRecipe,
    output: Path | None = None,
    target: Path | None = None,
    *,
    resume: str = "auto",
    quiet: bool = False,
) -> Path:
    """
    Trains what is not trained yet, and writes the pipeline.

    Args:
        recipe: of the chain.
        output: folder of the runs.
        target: folder of the pipeline.
        resume: "auto" or "never", of each part.
        quiet: no progress bars.

    Returns:
        the folder of the pipeline.
    """
    parts = part_recipes(recipe, output)
    for part in parts:
        trainer = Trainer(part, resume=resume, quiet=quiet)
        if trainer.step < part.steps:
            trainer.run()
    folder = target or Path(recipe.pipeline or Path(parts[0].output).parent / recipe.name)
    settings = {"prior": recipe.prior_settings, "decoder": recipe.decoder_settings}
    return export_pipeline(Path(parts[1].output), Path(parts[2].output), folder, settings)


def build_pipeline(tokenizer_run: Path, prior_run: Path, settings: dict[str, dict[str, Any]] | None = None) -> Any:
    """
    A [`FlexTokPipeline`] of the best averaged weights of two runs.

    Args:
        tokenizer_run: of stage "flow_tokenizer".
        prior_run: of stage "prior".
        settings: "prior" (defaults of its `generate`) and "decoder" (`num_inference_steps`, `guidance_scale`).
    """
    from ..auto_classes import AutoImageTokenizer  # noqa: F401 - registers the classes that a pipeline names
    from ..modeling.image_processing_utils import ImageTokenizerProcessor
    from ..pipelines.pipeline_flextok import FlexTokPipeline
    from ..registration import prepare_pipelines
    from .stages_flow import load_flow_tokenizer
    from .stages_prior import load_prior

    prepare_pipelines()
    parts, text_tokenizer, _ = load_flow_tokenizer(tokenizer_run)
    prior, _ = load_prior(prior_run)
    settings = settings or {}
    prior.set_published_settings(**settings.get("prior", {}))
    model = parts.image_tokenizer
    model.transformer.register_to_config(**settings.get("decoder", {}))
    return FlexTokPipeline(
        prior=prior,
        transformer=model.transformer,
        vae=model.vae,
        tokenizer=text_tokenizer,
        text_encoder=parts.text_encoder,
        image_encoder=model.encoder,
        image_processor=ImageTokenizerProcessor.for_size(model.config.image_size, (-1.0, 1.0)),
    )


def export_pipeline(
    tokenizer_run: Path, prior_run: Path, target: Path, settings: dict[str, dict[str, Any]] | None = None
) -> Path:
    """
    Writes the pipeline of two runs in half precision, with the logs of its trainings.

    Args:
        tokenizer_run, prior_run, settings: see [`build_pipeline`].
        target: folder to make or to renew; files that the pipeline does not have (a card) stay.

    Returns:
        `target`.
    """
    pipe = build_pipeline(tokenizer_run, prior_run, settings)
    state = json.loads((state_folder(tokenizer_run) / "state.json").read_text())
    runs = {"vae": Path(state["recipe"]["vae"]), "tokenizer": tokenizer_run, "prior": prior_run}
    with renewed(target) as scratch:
        pipe.to(torch.float16).save_pretrained(scratch)
        for name, run in runs.items():
            if (run / "log.jsonl").is_file():
                (scratch / f"train_log_{name}.jsonl").write_text(short_log(run / "log.jsonl", every=50))
    return target
