"""
The stages: what a step does with a batch. The core knows this interface only; a stage knows no family by name.

A stage has `modules` (what is trained, the first is the one that counts), `objectives(step)` (which of them take a
step now), `batch(...)`, `loss(...)`, `evaluate(...)` and `sheet(...)`.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.draws import integers, uniform
from ..data.pictures import augment
from ..data.samples import spread_rows
from ..data.sources import Samples, Source, StreamSource, open_source
from ..evaluation.reconstruction import (
    doubling_lengths,
    reconstruct_lengths,
    reconstruction_scores,
    to_bytes,
    to_pixels,
)
from .discriminator import PatchDiscriminator
from .losses import LeCam, generator_loss, hinge_discriminator_loss
from .perceptual import build_network, perceptual_distance
from .recipe import DataRecipe, ModelRecipe, PrefixRecipe, Recipe, RecipeError, TokenizerRecipe
from .teachers import VisionTeacher, check_teachers, teacher_kwargs

Batch = dict[str, Any]


@dataclass
class LossOutput:
    """
    What `Stage.loss` returns.

    Args:
        loss: to be minimised.
        terms: what to log, by name, scalars.
        token_ids: ids of the batch, for the codebook's use.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    token_ids: Tensor | None = None


def build_model(recipe: ModelRecipe, seed: int) -> nn.Module:
    """
    A fresh model of a registered type, or a checkpoint to continue from.

    Raises:
        RecipeError: for an unknown type or configuration key, with the nearest valid one.
    """
    if recipe.init_from is not None:
        from ..auto_classes import AutoImageTokenizer

        return AutoImageTokenizer.from_pretrained(recipe.init_from, dtype=torch.float32)
    config = build_config(recipe)
    model_class = classes_of(recipe.type)[0]
    torch.manual_seed(seed)
    model = model_class(config)
    for name in recipe.identity_convs:
        conv = dict(model.named_modules()).get(name)
        if not isinstance(conv, nn.Conv2d):
            raise RecipeError(f"recipe.model.identity_convs: {name!r} is no convolution of {model_class.__name__}.")
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    if recipe.posterior_logvar is not None:
        _start_logvar(model, recipe.posterior_logvar)
    return model


def _start_logvar(model: nn.Module, value: float) -> None:
    conv = getattr(getattr(model, "model", None), "quant_conv", None)
    if getattr(model, "kind", None) != "AutoencoderKL" or conv is None:
        raise RecipeError("recipe.model.posterior_logvar: the model is no AutoencoderKL with a quant_conv.")
    rows = slice(conv.out_channels // 2, None)
    nn.init.zeros_(conv.weight[rows])
    nn.init.constant_(conv.bias[rows], value)


def classes_of(model_type: str) -> tuple[type, type]:
    """The classes of a model and its configuration. Raises a RecipeError for an unknown `model_type`."""
    import difflib
    import importlib

    from ..registry import find_model_type, model_entries

    entry = find_model_type(model_type)
    if entry is None:
        known = [e.model_type for e in model_entries() if e.model_type]
        near = difflib.get_close_matches(model_type, known, n=1, cutoff=0.0)[0]
        raise RecipeError(
            f"recipe.model.type: unknown {model_type!r}; did you mean {near!r}? Known: {', '.join(known)}."
        )
    model = getattr(importlib.import_module(entry.model_module), entry.model)
    return model, getattr(importlib.import_module(entry.config_module), entry.config)


def build_config(recipe: ModelRecipe) -> Any:
    """The configuration of a fresh model. Raises a RecipeError for a key that its class does not have."""
    import dataclasses
    import difflib

    config_class = classes_of(recipe.type)[1]
    valid = [f.name for f in dataclasses.fields(config_class)]
    for key in recipe.config:
        if key not in valid:
            near = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)[0]
            raise RecipeError(f"recipe.model.config: {config_class.__name__} has no {key!r}; did you mean {near!r}?")
    try:
        return config_class(**recipe.config)
    except Exception as error:  # huggingface_hub's strict dataclasses raise kinds of their own
        raise RecipeError(f"recipe.model.config: {error}") from error


def open_data(recipe: DataRecipe, size: int) -> Source:
    """The source that a recipe names."""
    names = ("split", "styles", "image_column", "caption_column", "require_captions", "shuffle")
    return open_source(recipe.kind, recipe.path, size, **{name: getattr(recipe, name) for name in names})


def sample_some(source: Source, count: int) -> np.ndarray:
    """Evenly spread pictures of a source (the first ones of a stream), uint8 `(count, H, W, 3)`; 0 means all."""
    if isinstance(source, StreamSource):
        return next(source.batches(0, count or 256, slice(None))).images
    return source.take(spread_rows(len(source), count)).images


def draw_prefix_lengths(model: nn.Module, recipe: PrefixRecipe, seed: int, positions: np.ndarray) -> np.ndarray:
    """Number of tokens that each picture may use, int64 `(B,)`."""
    top, kind = model.num_tokens, uniform(seed, "prefix kind", positions)
    powers = np.array(doubling_lengths(model))
    power = powers[integers(seed, "prefix power", positions, 0, len(powers))]
    any_length = integers(seed, "prefix length", positions, 1, top + 1)
    return np.where(kind < recipe.full, top, np.where(kind < recipe.full + recipe.powers, power, any_length))


def draw_mirrored(
    samples: Samples, positions: np.ndarray, seed: int, flip: float, plain: bool, allowed: np.ndarray | bool = True
) -> np.ndarray:
    """Of which pictures the mirror image is taken, bool `(B,)`; arguments as in [`pick_variants`]."""
    return (uniform(seed, "flip", positions) < flip) & allowed & (samples.images.shape[1] > 1) & (not plain)


def pick_variants(
    samples: Samples, positions: np.ndarray, seed: int, flip: float, plain: bool, allowed: np.ndarray | bool = True
) -> Tensor:
    """
    What was kept of each picture, or of its mirror image where there is one and the draw says so, `(B, ...)`.

    Args:
        samples: whose `images` are latents or ids `(B, variants, ...)`.
        positions: global positions of the samples in the run.
        seed, flip: of the run, and the share of mirror images.
        plain: no mirror images.
        allowed: bool `(B,)`, whose mirror images may be taken.
    """
    mirrored = draw_mirrored(samples, positions, seed, flip, plain, allowed)
    return torch.from_numpy(samples.images[np.arange(len(positions)), mirrored.astype(np.int64)])


class Stage:
    """What a stage has that trains one module and keeps nothing of its own."""

    def write_assets(self, folder: Path) -> None:
        """What a checkpoint of the run needs besides its tensors and its recipe."""

    def state(self) -> dict[str, Tensor]:
        """Tensors of the stage itself that a resumed run needs."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""

    def objectives(self, step: int) -> list[str]:
        """Names of the modules that take a step."""
        return ["model"]

    def after_step(self, terms: dict[str, float]) -> None:
        """Told the step's terms, averaged over all processes."""


class TokenizerStage(Stage):
    """
    A tokenizer with a deterministic decoder.

    Args:
        recipe: of the run.
        device: where the frozen networks go.
    """

    def __init__(self, recipe: TokenizerRecipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.model = build_model(recipe.model, recipe.seed)
        self._check_model()
        self.data = open_data(recipe.data, self.model.config.image_size)
        self.validation = self._validation_images()
        self.modules: dict[str, nn.Module] = {"model": self.model}
        self.perceptual = None
        self.teachers = [VisionTeacher.from_pretrained(source).to(device) for source in recipe.teachers or ()]
        if recipe.perceptual.weight:
            perceptual = recipe.perceptual
            self.perceptual = build_network(perceptual.network, perceptual.weights, perceptual.heads).to(device)
        if recipe.adversarial.weight:
            self._add_discriminator()

    def _check_model(self) -> None:
        if self.model.decodes_to != "pixels":
            raise RecipeError(
                f"{type(self.model).__name__} decodes to {self.model.decodes_to}; this stage needs pixels."
            )
        if self.recipe.teachers:
            try:
                check_teachers(self.model, len(self.recipe.teachers))
            except ValueError as error:
                raise RecipeError(f"recipe.teachers: {error}") from error
        if self.recipe.prefix and not self.model.is_prefix_ordered:
            raise RecipeError(f"recipe.prefix: the tokens of {type(self.model).__name__} are not ordered by prefix.")

    def _validation_images(self) -> np.ndarray | None:
        if self.recipe.validation is None:
            return None
        source = open_data(self.recipe.validation, self.model.config.image_size)
        return sample_some(source, self.recipe.log.evaluate_images)

    def _add_discriminator(self) -> None:
        recipe = self.recipe.adversarial
        torch.manual_seed(self.recipe.seed + 1)
        self.modules["discriminator"] = PatchDiscriminator(recipe.channels, recipe.stages)
        self.lecam = LeCam().to(self.device)

    def state(self) -> dict[str, Tensor]:
        """Tensors of the stage itself that a resumed run needs."""
        return dict(self.lecam.state_dict()) if "discriminator" in self.modules else {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        if "discriminator" in self.modules:
            self.lecam.load_state_dict(tensors)

    def objectives(self, step: int) -> list[str]:
        """Names of the modules that take a step."""
        adversarial = "discriminator" in self.modules and step >= self.recipe.adversarial.start
        return ["model", "discriminator"] if adversarial else ["model"]

    # ------------------------------------------------------------------ batches

    def batch(self, samples: Samples, positions: np.ndarray, plain: bool = False) -> Batch:
        """
        A batch on the device.

        Args:
            samples: its pictures.
            positions: global positions of the samples in the run, what every draw depends on.
            plain: no augmentation.
        """
        images = samples.images if plain else self._augment(samples.images, positions)
        batch: Batch = {"pixels": to_pixels(images, self.device), "positions": positions}
        if self.recipe.prefix is not None:
            batch["num_tokens"] = torch.from_numpy(
                draw_prefix_lengths(self.model, self.recipe.prefix, self.recipe.seed, positions)
            ).to(self.device)
        return batch

    def _augment(self, images: np.ndarray, positions: np.ndarray) -> np.ndarray:
        seed, recipe = self.recipe.seed, self.recipe.data
        flip = uniform(seed, "flip", positions) < recipe.flip
        reach = recipe.shift
        shift = [integers(seed, f"shift {axis}", positions, -reach, reach + 1) for axis in "yx"]
        return augment(images, flip, np.stack(shift, 1))

    # ------------------------------------------------------------------ losses

    def loss(self, objective: str, modules: dict[str, nn.Module], batch: Batch, step: int) -> LossOutput:
        """
        The loss of one module.

        Args:
            objective: its name.
            modules: all modules as they were wrapped for training.
            batch: of `batch`; the model's pass leaves its pictures there for the discriminator.
            step: of the run.
        """
        if objective == "discriminator":
            return self._discriminator_loss(modules["discriminator"], batch)
        inputs = {"pixel_values": self.model.normalize_pixels(batch["pixels"])}
        if self.teachers:
            inputs |= teacher_kwargs(self.model, self.teachers, batch["pixels"])
        if "num_tokens" in batch:
            inputs["num_tokens"] = batch["num_tokens"]
        output = modules["model"](**inputs)
        terms, loss = dict(output.losses), output.loss
        fake = self.model.denormalize_pixels(output.sample.float())
        for name, weight, value in self._reconstruction_terms(fake, batch, step):
            terms[name] = value
            loss = loss + weight * value
        batch["fake"] = fake.detach()
        return LossOutput(loss, terms, output.token_ids)

    def _reconstruction_terms(self, fake: Tensor, batch: Batch, step: int) -> list[tuple[str, float, Tensor]]:
        real, recipe, out = batch["pixels"], self.recipe, []
        if recipe.l1_weight:
            out.append(("l1_loss", recipe.l1_weight, (fake - real).abs().mean()))
        if self.perceptual is not None and step >= recipe.perceptual.start:
            chosen = self._perceptual_rows(batch["positions"])
            value = perceptual_distance(self.perceptual, fake[chosen].clamp(0, 1), real[chosen])
            out.append(("perceptual_loss", recipe.perceptual.weight, value))
        if "discriminator" in self.objectives(step):
            # the bare module, without gradients of its own: this pass trains the generator
            judge = self.modules["discriminator"].requires_grad_(False)
            out.append(("generator_loss", recipe.adversarial.weight, generator_loss(judge(fake))))
            judge.requires_grad_(True)
        return out

    def _perceptual_rows(self, positions: np.ndarray) -> Tensor:
        """Every k-th sample of the global batch, so that any number of processes picks the same ones."""
        stride = max(1, self.recipe.batch_size // self.recipe.perceptual.images) if self.recipe.perceptual.images else 1
        return torch.from_numpy(np.flatnonzero(positions % self.recipe.batch_size % stride == 0)).to(self.device)

    def _discriminator_loss(self, judge: nn.Module, batch: Batch) -> LossOutput:
        logits = judge(torch.cat([batch["pixels"], batch["fake"]]))
        real, fake = logits.chunk(2)
        hinge, lecam = hinge_discriminator_loss(real, fake), self.lecam(real, fake)
        terms = {
            "discriminator_loss": hinge,
            "lecam_loss": lecam,
            "logits_real": real.mean(),
            "logits_fake": fake.mean(),
        }
        return LossOutput(hinge + self.recipe.adversarial.lecam_weight * lecam, terms)

    def after_step(self, terms: dict[str, float]) -> None:
        """Told the step's terms, averaged over all processes."""
        if "logits_real" in terms:
            self.lecam.update(torch.tensor(terms["logits_real"]), torch.tensor(terms["logits_fake"]))

    # ------------------------------------------------------------------ measures

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out PSNR by number of tokens; `score` is what the best checkpoint is chosen by, higher is better."""
        if self.validation is None:
            return {}
        scores = reconstruction_scores(model, self.validation, batch_size=self.recipe.batch_size)
        return {f"psnr@{s.num_tokens}": s.psnr for s in scores} | {"score": scores[-1].psnr}

    def sheet(self, model: nn.Module, count: int = 12) -> list[tuple[str, np.ndarray]]:
        """Rows of pictures: the originals, then reconstructions by number of tokens."""
        images = self.validation[:: max(1, len(self.validation) // count)] if self.validation is not None else None
        images = sample_some(self.data, count) if images is None else images[:count]
        rows = [("real", images)]
        for length, fake in reconstruct_lengths(model, to_pixels(images, self.device), doubling_lengths(model)):
            rows.append((f"{length}", to_bytes(fake)))
        return rows


STAGE_CLASSES = {
    "token_prior": "stages_tokens:TokenPriorStage",
    "latent_flow": "stages_tokens:LatentFlowStage",
    "tokenizer": "stages:TokenizerStage",
    "vae": "stages:TokenizerStage",
    "flow_tokenizer": "stages_flow:FlowTokenizerStage",
    "prior": "stages_prior:PriorStage",
}


def build_stage(recipe: Recipe, device: torch.device) -> Any:
    """The stage of a recipe."""
    module, name = STAGE_CLASSES[recipe.stage].split(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)(recipe, device)
