"""
Stages on sets of tokens that `hf-vistok tokenize --dataset` wrote: any prior on ids, any flow transformer on latents.

The models are fresh ones or any checkpoint, ours or the original authors'; the losses are those of their `forward`.
"""

import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.draws import hashed, uniform
from ..data.emoji import DataError
from ..data.sources import Samples, TokenSource
from ..evaluation.reconstruction import to_bytes
from ..registry import find_model, model_entries
from .lora import load_weights
from .recipe import DataRecipe, LatentFlowRecipe, ModelRecipe, RecipeError, TokenPriorRecipe
from .stages import Batch, LossOutput, Stage, build_config, classes_of, pick_variants

EVALUATION_SEED = 1_000_003


def class_ids(names: list[str]) -> np.ndarray:
    """The class of each picture: the rank of its first folder among those of the set, int64 `(N,)`."""
    folders = [name.split("/")[0] if "/" in name else "" for name in names]
    order = {folder: index for index, folder in enumerate(sorted(set(folders)))}
    return np.array([order[folder] for folder in folders], np.int64)


class LabelledTokens:
    """
    A set of tokens with classes.

    Args:
        recipe: names the set.
        labels: "folder" (see [`class_ids`]), or None.

    Raises:
        RecipeError: for another kind of data.
    """

    def __init__(self, recipe: DataRecipe, labels: str | None) -> None:
        if recipe.kind != "tokens":
            raise RecipeError(f"recipe.data.kind: this stage reads sets of tokens, got {recipe.kind!r}.")
        self.source = TokenSource(Path(recipe.path))
        self.labels = class_ids(self.source.names) if labels else None
        self.skipped = self.source.skipped

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: np.ndarray) -> Samples:
        """The samples at `indices`, with their classes."""
        samples = self.source.take(indices)
        samples.labels = None if self.labels is None else self.labels[indices]
        return samples


class TokenStage(Stage):
    """
    What both stages share.

    Args:
        recipe: of the run.
        device: where to train.
    """

    wants_ids: bool

    def __init__(self, recipe: TokenPriorRecipe | LatentFlowRecipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.data = LabelledTokens(recipe.data, recipe.labels)
        self.validation = LabelledTokens(recipe.validation, recipe.labels) if recipe.validation else None
        for source in filter(None, (self.data, self.validation)):
            if source.source.is_discrete != self.wants_ids:
                found, wanted = ("ids", "latents") if source.source.is_discrete else ("latents", "ids")
                raise DataError(f"{source.source.folder} holds {found}; the stage {recipe.stage!r} trains on {wanted}.")
        self.model = self.build().to(device)
        self.check()
        self.modules: dict[str, nn.Module] = {"model": self.model}

    def build(self) -> nn.Module:
        """The model to train."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises a RecipeError where the model does not fit the data."""
        classes = getattr(self.model.config, "num_classes", 0) or 0
        found = 0 if self.data.labels is None else int(self.data.labels.max()) + 1
        if found > classes:
            raise RecipeError(f"recipe.labels: the set has {found} classes, {type(self.model).__name__} has {classes}.")

    def write_assets(self, folder: Path) -> None:
        """The configuration of the model."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self.model.config
        if hasattr(config, "save_pretrained"):
            config.save_pretrained(folder / "model")
        else:
            self.model.save_config(folder / "model")

    def batch(self, samples: Samples, positions: np.ndarray, plain: bool = False) -> Batch:
        """Ids or latents, of the mirror image for a share `data.flip` of the draws, and classes."""
        values = pick_variants(samples, positions, self.recipe.seed, self.recipe.data.flip, plain).to(self.device)
        batch: Batch = {"token_ids" if self.wants_ids else "latents": values, "positions": positions}
        if samples.labels is not None:
            batch["class_labels"] = torch.from_numpy(samples.labels).to(self.device)
        return batch

    def loss(self, objective: str, modules: dict[str, nn.Module], batch: Batch, step: int) -> LossOutput:
        """The model's own loss; see `TokenizerStage.loss`."""
        output = modules["model"](**self.inputs(batch))
        return LossOutput(output.loss, dict(output.losses or {}))

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Arguments of the model's `forward` for a training pass."""
        raise NotImplementedError

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The loss on held-out pictures, with the same draws each time."""
        if self.validation is None:
            return {}
        count = min(self.recipe.log.evaluate_images or len(self.validation), len(self.validation))
        rows, total, size = np.arange(count) * len(self.validation) // count, 0.0, self.recipe.batch_size
        torch.manual_seed(EVALUATION_SEED)
        for start in range(0, count, size):
            part = rows[start : start + size]
            batch = self.batch(self.validation.take(part), EVALUATION_SEED + part, plain=True)
            total += float(self._held_out(model, batch)) * len(part)
        return {"held_out_loss": total / count, "score": -total / count}

    def _held_out(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = model(**self.inputs(batch)).loss
        if loss is None:  # masked priors draw what to mask in training mode only
            loss = model.train()(**self.inputs(batch)).loss
            model.eval()
        return loss

    def sheet(self, model: nn.Module, count: int = 12) -> list[tuple[str, np.ndarray]]:
        """Pictures that the model draws, where the recipe names a tokenizer to decode them."""
        if self.recipe.tokenizer is None:
            return []
        from ..auto_classes import AutoImageTokenizer

        tokenizer = AutoImageTokenizer.from_pretrained(self.recipe.tokenizer).to(self.device).eval()
        batch = self.batch(self.data.take(np.arange(count) * len(self.data) // count), np.arange(count), plain=True)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            rows = [("data", self.decode(tokenizer, batch["token_ids" if self.wants_ids else "latents"]))]
            rows.append(("drawn", self.decode(tokenizer, self.draw(model, batch, generator))))
        return [(name, to_bytes(tokenizer.denormalize_pixels(sample).clamp(0, 1))) for name, sample in rows]

    def decode(self, tokenizer: nn.Module, tokens: Tensor) -> Tensor:
        """Tokens to pictures."""
        return (tokenizer.decode_tokens if self.wants_ids else tokenizer.decode)(tokens).sample

    def draw(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Tokens for the classes of a batch."""
        raise NotImplementedError


class TokenPriorStage(TokenStage):
    """Any prior of the registry (autoregressive or masked) on ids, with classes or without."""

    wants_ids = True

    def build(self) -> nn.Module:
        """See [`build_prior`]."""
        return build_prior(self.recipe.model, self.recipe.seed)

    def check(self) -> None:
        """Codebook and length must fit; a shorter prior learns the first tokens."""
        super().check()
        source, model = self.data.source, self.model
        if source.codebook_size > model.codebook_size:
            raise RecipeError(
                f"recipe.model: {type(model).__name__} writes {model.codebook_size} ids, the set has "
                f"{source.codebook_size}."
            )
        if source.shape[0] < model.num_tokens:
            raise RecipeError(
                f"recipe.model: {type(model).__name__} writes {model.num_tokens} tokens, the set has {source.shape[0]}."
            )

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Ids and classes."""
        known = inspect.signature(self.model.forward).parameters
        values = {"token_ids": batch["token_ids"][:, : self.model.num_tokens]}
        if "class_labels" in batch and "class_labels" in known:
            values["class_labels"] = batch["class_labels"]
        return values

    def draw(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """`generate` with the published settings."""
        labels = {"class_labels": batch["class_labels"]} if "class_labels" in batch else {}
        return model.generate(**labels, generator=generator).token_ids


class LatentFlowStage(TokenStage):
    """Any class-conditional flow (or diffusion) transformer on latents."""

    wants_ids = False

    def build(self) -> nn.Module:
        """See [`build_flow`]."""
        return build_flow(self.recipe.model, self.recipe.seed)

    def check(self) -> None:
        """The latents must have the transformer's shape."""
        super().check()
        config = self.model.config
        wanted = (config.in_channels, config.sample_size, config.sample_size)
        if tuple(self.data.source.shape) != wanted:
            raise RecipeError(
                f"recipe.model: {type(self.model).__name__} takes latents {wanted}, the set has "
                f"{tuple(self.data.source.shape)}."
            )

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Latents with a time and noise that depend on the position of the sample only."""
        positions, seed = batch["positions"], self.recipe.seed
        latents = batch["latents"]
        times = self.model.draw_times(torch.from_numpy(uniform(seed, "time", positions)).float().to(self.device))
        noise = torch.stack(
            [
                torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(int(key >> np.uint64(1))))
                for key in hashed(seed, "noise", positions)
            ]
        )
        values = {"hidden_states": latents, "timestep": times, "noise": noise.to(self.device)}
        return values | ({"class_labels": batch["class_labels"]} if "class_labels" in batch else {})

    def draw(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Samples with the published settings."""
        noise = torch.randn(batch["latents"].shape, generator=generator).to(self.device)
        return model.sample_latents(noise, batch.get("class_labels"))


# ---------------------------------------------------------------------- models


def build_prior(recipe: ModelRecipe, seed: int) -> nn.Module:
    """
    A fresh prior of a registered type, or a checkpoint of any family, ours or the original authors'.

    Raises:
        RecipeError: for an unknown type or key, or a model that is no prior.
    """
    from ..modeling.prior_utils import PreTrainedImagePrior

    if recipe.init_from is not None:
        from ..auto_classes import AutoImagePrior

        return AutoImagePrior.from_pretrained(recipe.init_from, dtype=torch.float32)
    config = build_config(recipe)
    model_class = classes_of(recipe.type)[0]
    if not issubclass(model_class, PreTrainedImagePrior):
        known = [entry.model_type for entry in model_entries() if entry.kind == "prior"]
        raise RecipeError(f"recipe.model.type: {recipe.type!r} is no prior; there are {', '.join(known)}.")
    torch.manual_seed(seed)
    return model_class(config)


def build_flow(recipe: ModelRecipe, seed: int) -> nn.Module:
    """
    A fresh flow transformer (`type` is its class, "LatentFlowTransformer"), or a checkpoint.

    Raises:
        RecipeError: for an unknown class or key, or a model that needs more than latents and classes to train.
    """
    if recipe.init_from is not None:
        model = _load_flow(recipe.init_from)
    else:
        entry = find_model(recipe.type)
        if entry is None or entry.kind != "flow":
            known = [entry.model for entry in model_entries() if entry.kind == "flow"]
            raise RecipeError(
                f"recipe.model.type: {recipe.type!r} is no flow transformer; there are {', '.join(known)}."
            )
        model_class = getattr(importlib.import_module(entry.model_module), entry.model)
        valid = [name for name in inspect.signature(model_class.__init__).parameters if name != "self"]
        for key in recipe.config:
            if key not in valid:
                raise RecipeError(f"recipe.model.config: {recipe.type} has no {key!r}; there are {', '.join(valid)}.")
        torch.manual_seed(seed)
        model = model_class(**recipe.config)
    if not hasattr(model, "draw_times"):
        raise RecipeError(f"{type(model).__name__} needs more than latents and classes to train.")
    return model


def _load_flow(source: str) -> nn.Module:
    from ..hub import fetch, read_json

    path = fetch(source, "config.json")
    name = read_json(path).get("_class_name") if path else None
    entry = find_model(name) if name else None
    if entry is not None:
        return getattr(importlib.import_module(entry.model_module), entry.model).from_pretrained(source)
    from ..conversion.loading import load_original_parts

    parts = load_original_parts(source)
    flows = [module for module in parts.values() if getattr(find_model(type(module).__name__), "kind", "") == "flow"]
    if not flows:
        raise RecipeError(f"recipe.model.init_from: {source} holds {', '.join(parts)}, no flow transformer.")
    return flows[0].float()


def load_token_model(tensors: dict[str, Tensor], recipe: TokenPriorRecipe | LatentFlowRecipe) -> nn.Module:
    """The model of a state of one of these stages, with LoRA's updates merged, in eval mode."""
    build = build_prior if recipe.stage == "token_prior" else build_flow
    return load_weights(build(recipe.model, recipe.seed), tensors, recipe.model.lora).eval()
