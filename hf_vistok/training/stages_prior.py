"""The stage of priors: next-token (or masked-token) losses over the ids of a trained tokenizer, from its texts."""

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.sources import Samples, StreamSource
from ..modeling.ar_prior_utils import PreTrainedARPrior
from ..modeling.layers.vae import scale_latents
from .latents import LatentSource
from .lora import load_weights
from .recipe import DataRecipe, PriorRecipe, RecipeError, parse_recipe
from .stages import Batch, LossOutput, Stage, classes_of, open_data, pick_variants
from .stages_flow import TextAndTokenizer, draw_pictures, load_flow_tokenizer
from .stages_tokens import build_prior
from .text import TEXT_INPUTS, can_mirror, compose_captions, style_words, tokenize_texts


class IdSource:
    """
    A source whose pictures are kept as the first ids of a tokenizer.

    Args:
        latents: of the same tokenizer's VAE.
        model: the tokenizer.
        count: number of ids to keep.
    """

    def __init__(self, latents: LatentSource, model: TextAndTokenizer, count: int) -> None:
        self.source = latents.source
        self.ids = np.stack([_ids(model, latents.latents[:, v], count) for v in range(latents.latents.shape[1])], 1)

    @property
    def skipped(self) -> int:
        """Pictures that could not be read."""
        return self.source.skipped

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: np.ndarray) -> Samples:
        """The samples at `indices`; `images` are ids int64 `(B, variants, N)`."""
        samples = self.source.take(indices)
        return Samples(self.ids[indices], samples.captions, samples.records)


@torch.no_grad()
def _ids(model: TextAndTokenizer, latents: np.ndarray, count: int) -> np.ndarray:
    tokenizer, parts = model.image_tokenizer, []
    for start in range(0, len(latents), 256):
        scaled = scale_latents(tokenizer.vae, torch.from_numpy(latents[start : start + 256]).to(tokenizer.device))
        parts.append(tokenizer.encode_latents(scaled).token_ids[:, :count].cpu().numpy())
    return np.concatenate(parts)


class PriorStage(Stage):
    """
    A prior over the first ids of a tokenizer that a run of stage "flow_tokenizer" made.

    Args:
        recipe: of the run.
        device: where to train.
    """

    def __init__(self, recipe: PriorRecipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        parts, self.tokenizer, _ = load_flow_tokenizer(Path(recipe.tokenizer))
        if self.tokenizer is None:
            raise RecipeError(f"recipe.tokenizer: {recipe.tokenizer} was trained without text.")
        self.parts = parts.to(device).requires_grad_(False)
        self.model = self._build_model()
        self.modules: dict[str, nn.Module] = {"model": self.model}
        self.data = self._open(recipe.data, mirror=recipe.data.flip > 0)
        self.validation = None
        if recipe.validation is not None:
            source = self._open(recipe.validation, mirror=False)
            self.validation = source.take(np.arange(len(source)))
        self.empty = self._tokenize([""])
        self._check_sheet_settings()

    @torch.no_grad()
    def _check_sheet_settings(self) -> None:
        """Writes one picture's tokens now, so that a wrong option does not stop the run at its first sheet."""
        try:
            self._write(self.model, self.empty, 1)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"recipe.sheet_settings: {error}") from error

    def _write(self, model: nn.Module, tokens: dict[str, Tensor], count: int) -> Tensor:
        """Tokens for `count` tokenized texts, as the sheets show them."""
        null = self._text({name: value.expand(count, -1) for name, value in self.empty.items()}, "negative_")
        generator = torch.Generator(self.device).manual_seed(0)
        options = {"generator": generator, **self.recipe.sheet_settings}
        return model.generate(**self._text(tokens), **null, **options).token_ids

    def _build_model(self) -> nn.Module:
        image_tokenizer, text = self.parts.image_tokenizer, self.parts.text_encoder.config
        fixed = {"codebook_size": image_tokenizer.codebook_size, "text_length": text.max_length}
        fixed |= dict.fromkeys(("text_dim", "text_embed_dim"), text.hidden_size)  # as families call it
        recipe = self.recipe.model
        if recipe.init_from is None:
            known = {field.name for field in fields(classes_of(recipe.type)[1])}
            recipe.config = {**recipe.config, **{name: value for name, value in fixed.items() if name in known}}
        model = build_prior(recipe, self.recipe.seed)
        for name, value in fixed.items():
            found = getattr(model.config, name, value)
            if found != value:
                raise RecipeError(
                    f"recipe.model: {type(model).__name__} has {name} {found}, the tokenizer's run needs {value}."
                )
        if "encoder_hidden_states" not in inspect.signature(model.forward).parameters:
            raise RecipeError(f"recipe.model: {type(model).__name__} takes no text.")
        if model.num_tokens > image_tokenizer.num_tokens:
            raise RecipeError(
                f"recipe.model.config: num_image_tokens is {model.num_tokens}, the tokenizer has "
                f"{image_tokenizer.num_tokens}."
            )
        return model.to(self.device)

    def _open(self, data: DataRecipe, mirror: bool) -> IdSource:
        tokenizer = self.parts.image_tokenizer
        source = open_data(data, tokenizer.config.image_size)
        if isinstance(source, StreamSource):
            raise RecipeError("recipe.data: this stage keeps the ids of all pictures: it takes no stream.")
        latents = LatentSource(source, tokenizer.vae, mirror=mirror, device=self.device)
        return IdSource(latents, self.parts, self.model.num_tokens)

    def write_assets(self, folder: Path) -> None:
        """The configuration of the prior."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(folder / "prior")

    # ------------------------------------------------------------------ batches

    def batch(self, samples: Samples, positions: np.ndarray, plain: bool = False) -> Batch:
        """See `TokenizerStage.batch`; `samples.images` are ids `(B, variants, N)`."""
        seed, recipe = self.recipe.seed, self.recipe
        ids = pick_variants(samples, positions, seed, recipe.data.flip, plain, can_mirror(samples)).to(self.device)
        texts = compose_captions(samples, positions, recipe.captions, seed)
        return {"token_ids": ids, "positions": positions, **self._tokenize(texts)}

    def _tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        found = tokenize_texts(self.tokenizer, texts, self.parts.text_encoder.config.max_length)
        return {name: value.to(self.device) for name, value in found.items()}

    def _text(self, batch: Batch, prefix: str = "") -> dict[str, Tensor]:
        """What the prior takes of a text's features."""
        out = self.parts.text_encoder(*(batch[name] for name in TEXT_INPUTS))
        features = {
            "encoder_hidden_states": out.last_hidden_state,
            "encoder_attention_mask": out.attention_mask,
            "pooled_projections": out.pooler_output,
        }
        known = inspect.signature(self.model.forward).parameters
        return {f"{prefix}{name}": value for name, value in features.items() if name in known}

    def loss(self, objective: str, modules: dict[str, nn.Module], batch: Batch, step: int) -> LossOutput:
        """The prior's own loss; see `TokenizerStage.loss`."""
        with torch.no_grad():
            text = {**self._text(batch), **self._text(self.empty, "negative_")}
        output = modules["model"](token_ids=batch["token_ids"], **text)
        return LossOutput(output.loss, dict(output.losses))

    # ------------------------------------------------------------------ measures

    def _prompts(self, samples: Samples) -> list[str]:
        """Name and own style of each sample."""
        if samples.records is None or not self.recipe.captions.style:
            return list(samples.captions)
        return [f"{record.name}, {style_words(record.style)}" for record in samples.records]

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """
        Loss on held-out pictures; of autoregressive priors in nats per token, that of the first token beside the mean.
        """
        if self.validation is None:
            return {}
        if not isinstance(model, PreTrainedARPrior):
            loss = self._held_out_loss(model)
            return {"held_out_loss": loss, "score": -loss}
        total, first, count = 0.0, 0.0, len(self.validation.images)
        prompts = self._prompts(self.validation)
        for start in range(0, count, 256):
            part = slice(start, start + 256)
            ids = torch.from_numpy(self.validation.images[part, 0]).to(self.device)
            out = model(token_ids=ids, **self._text(self._tokenize(prompts[part])))
            losses = nn.functional.cross_entropy(out.logits.transpose(1, 2), ids, reduction="none")
            total += float(losses.mean(1).sum())
            first += float(losses[:, 0].sum())
        return {"held_out_nats": total / count, "held_out_nats_first": first / count, "score": -total / count}

    def _held_out_loss(self, model: nn.Module) -> float:
        """Of masked priors, which draw what to hide: the same draws each time."""
        prompts = self._tokenize(self._prompts(self.validation))
        ids = torch.from_numpy(self.validation.images[:, 0]).to(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loss = float(
                model.train()(token_ids=ids, **self._text(prompts), **self._text(self.empty, "negative_")).loss
            )
        model.eval()
        return loss

    @torch.no_grad()
    def sheet(self, model: nn.Module, count: int = 12) -> list[tuple[str, np.ndarray]]:
        """Rows of known, then of held-out prompts: real tokens drawn, and the prior's."""
        rows: list[tuple[str, np.ndarray]] = []
        known = self.data.take(np.arange(count) * len(self.data) // count)
        for samples in (known, self.validation):
            if samples is None:
                continue
            stride = max(1, len(samples.images) // count)
            part = samples[: stride * count : stride]
            written = self._write(model, self._tokenize(self._prompts(part)), len(part.images))
            true = torch.from_numpy(part.images[:, 0]).to(self.device)
            rows += [("true", self._draw(true, part)), ("prior", self._draw(written, part))]
        return rows

    def _draw(self, token_ids: Tensor, samples: Samples) -> np.ndarray:
        text = self.parts.text(**self._tokenize(self._prompts(samples)))
        return draw_pictures(self.parts.image_tokenizer, self.parts.image_tokenizer.get_codebook_entry(token_ids), text)


def load_prior(run: Path) -> tuple[nn.Module, dict[str, Any]]:
    """
    The averaged weights of a run of stage "prior", and `state.json`.

    Raises:
        CheckpointError: where the folder holds no state.
    """
    from .checkpoint import read_folder
    from .export import state_folder

    tensors, state = read_folder(state_folder(run))
    assets = run / "assets" / "prior"
    model_class, config_class = classes_of(json.loads((assets / "config.json").read_text())["model_type"])
    model = model_class(config_class.from_pretrained(assets))
    lora = parse_recipe(state["recipe"]).model.lora
    return load_weights(model, tensors["ema"], lora).eval(), state
