"""The stage of tokenizers with a flow decoder: FlexTok on a VAE's latents, with a text for its decoder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ..data.draws import integers, uniform
from ..data.samples import spread_rows
from ..data.sources import Samples, StreamSource
from ..evaluation.reconstruction import (
    doubling_lengths,
    reconstruct_lengths,
    reconstruction_scores,
    to_bytes,
    to_pixels,
)
from ..modeling.flextok.configuration_flextok import FlexTokConfig
from ..modeling.flextok.modeling_flextok import FlexTokModel
from ..modeling.layers.vae import scale_latents, vae_decode
from ..modeling.text_table.configuration_text_table import TextTableConfig
from ..modeling.text_table.modeling_text_table import TextTableModel
from .latents import LatentSource, solve_linear_tokens
from .lora import load_weights
from .recipe import FlowTokenizerRecipe, RecipeError, parse_recipe
from .stages import Batch, LossOutput, Stage, build_config, draw_mirrored, draw_prefix_lengths, open_data, pick_variants
from .teachers import VisionTeacher, check_teachers, teacher_kwargs
from .text import (
    TEXT_INPUTS,
    can_mirror,
    compose_captions,
    static_table,
    text_of_records,
    tokenize_texts,
    tokenizer_for,
)

EVALUATION_BATCH = 64
ONE_STEP = {"num_inference_steps": 1, "guidance_scale": 1.0}


class TextAndTokenizer(nn.Module):
    """A FlexTok and the text encoder that its decoder sees, trained as one module."""

    is_discrete = True

    def __init__(self, image_tokenizer: FlexTokModel, text_encoder: TextTableModel | None) -> None:
        super().__init__()
        self.image_tokenizer, self.text_encoder = image_tokenizer, text_encoder

    @property
    def codebook_size(self) -> int:
        """Of the tokenizer."""
        return self.image_tokenizer.codebook_size

    def text(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """The arguments of the decoder for a batch of texts."""
        out = self.text_encoder(input_ids, attention_mask)
        return {
            "encoder_hidden_states": out.last_hidden_state,
            "encoder_attention_mask": out.attention_mask,
            "pooled_projections": out.pooler_output,
        }

    def forward(
        self,
        latents: Tensor,
        num_tokens: Tensor | None,
        text: dict[str, Tensor] | None,
        generator: torch.Generator | None = None,
        teacher_features: Tensor | None = None,
    ) -> Any:
        """The losses of scaled latents `(B, C, h, w)`, see `FlexTokModel.forward`."""
        conditions = self.text(**text) if text is not None else {}
        draws = {"generator": generator, "teacher_features": teacher_features}
        return self.image_tokenizer(num_tokens=num_tokens, vae_latents=latents, **draws, **conditions)


def load_vae(path: str) -> nn.Module:
    """
    The AutoencoderKL of a run of stage "vae", or of a checkpoint.

    Raises:
        RecipeError: where there is none.
    """
    from ..auto_classes import AutoImageTokenizer
    from .export import load_trained

    if (Path(path) / "states").is_dir() or (Path(path) / "best").is_dir():
        model = load_trained(Path(path))[0]
    else:
        model = AutoImageTokenizer.from_pretrained(path, dtype=torch.float32)
    inner = getattr(model, "model", None)
    if type(inner).__name__ != "AutoencoderKL":
        raise RecipeError(f"recipe.vae: {path} holds a {type(model).__name__}, expected an AutoencoderKL.")
    return inner.eval().requires_grad_(False)


def load_text(source: str, model: FlexTokModel) -> tuple[PreTrainedTokenizerFast | None, TextTableModel | None]:
    """Text tokenizer and text encoder of a checkpoint's pipeline; None where its decoder sees no text."""
    from ..hub import resolve_source

    if not model.transformer.has_text:
        return None, None
    folder = str(resolve_source(source))
    return (
        PreTrainedTokenizerFast.from_pretrained(folder, subfolder="tokenizer"),
        TextTableModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32),
    )


class FlowTokenizerStage(Stage):
    """
    A FlexTok on cached latents.

    Args:
        recipe: of the run.
        device: where to train.
    """

    def __init__(self, recipe: FlowTokenizerRecipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        known = self._load_known() if recipe.model.init_from is not None else None
        config = build_config(recipe.model) if known is None else known.config
        vae = load_vae(recipe.vae) if known is None else known.vae
        source = open_data(recipe.data, config.image_size)
        if isinstance(source, StreamSource):
            raise RecipeError("recipe.data: this stage keeps latents of all pictures: it takes no stream.")
        self.teachers = [VisionTeacher.from_pretrained(name).to(device) for name in recipe.teachers or ()]
        self.data = LatentSource(
            source, vae.to(device), mirror=recipe.data.flip > 0, device=device, pictures=bool(self.teachers)
        )
        if known is None:
            known = self._build_tokenizer(config, vae)
            self.tokenizer, text_encoder = self._build_text()
        else:
            self.tokenizer, text_encoder = load_text(recipe.model.init_from, known)
        self._check_teachers(known)
        self.model = TextAndTokenizer(known, text_encoder).to(device)
        self.modules: dict[str, nn.Module] = {"model": self.model}
        self._start()
        self._open_validation()

    # ------------------------------------------------------------------ set-up

    def _load_known(self) -> FlexTokModel:
        """The checkpoint that the recipe continues from; `model.config` may change how it is trained."""
        from ..auto_classes import AutoImageTokenizer

        recipe = self.recipe.model
        model = AutoImageTokenizer.from_pretrained(recipe.init_from, dtype=torch.float32)
        if not isinstance(model, FlexTokModel):
            raise RecipeError(f"recipe.model.init_from: {recipe.init_from} holds a {type(model).__name__}, no FlexTok.")
        for name, value in recipe.config.items():
            if not hasattr(model.config, name) or name.endswith("_config"):
                raise RecipeError(f"recipe.model.config: {name!r} cannot be changed in a checkpoint.")
            setattr(model.config, name, value)
        return model

    def _check_teachers(self, model: FlexTokModel) -> None:
        if not self.teachers:
            return
        try:
            check_teachers(model, len(self.teachers))
        except ValueError as error:
            raise RecipeError(f"recipe.teachers: {error}") from error
        if model.config.alignment_dim != self.teachers[0].dim or model.transformer.config.feature_layer is None:
            raise RecipeError(
                f"recipe.teachers: the features have {self.teachers[0].dim} values; set model.config.alignment_dim to "
                "that, and transformer_config.feature_layer to the block that is aligned."
            )

    def _build_tokenizer(self, config: FlexTokConfig, vae: nn.Module) -> FlexTokModel:
        mean, std = self.data.statistics()
        vae.register_to_config(scaling_factor=1.0 / std, shift_factor=mean)
        config.vae_config = {k: v for k, v in dict(vae.config).items() if not k.startswith("_")}
        config.transformer_config = {**config.transformer_config, **self._text_dims()}
        torch.manual_seed(self.recipe.seed)
        model = FlexTokModel(config)
        model.vae.load_state_dict(vae.state_dict())
        return model

    def _text_dims(self) -> dict[str, int]:
        width = self.recipe.text.hidden_size if self.recipe.text else 0
        return {"text_dim": width, "pooled_text_dim": width}

    def _build_text(self) -> tuple[PreTrainedTokenizerFast | None, TextTableModel | None]:
        recipe, source = self.recipe.text, self.data.source
        if recipe is None:
            return None, None
        records = getattr(source, "records", None)
        texts = text_of_records(records) if records else self._all_captions()
        tokenizer = tokenizer_for(texts, recipe)
        static = static_table(tokenizer, recipe.static_dim) if recipe.static else None
        torch.manual_seed(self.recipe.seed + 1)
        encoder = TextTableModel(
            TextTableConfig(
                vocab_size=len(tokenizer),
                hidden_size=recipe.hidden_size,
                static_dim=recipe.static_dim if recipe.static else 0,
                max_length=recipe.max_length,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        if static is not None:
            encoder.static.weight.data.copy_(static)
            nn.init.normal_(encoder.static_proj.weight, std=recipe.static_dim**-0.5)
        return tokenizer, encoder

    def _all_captions(self) -> list[str]:
        captions = [c for c in self.data.source.take(np.arange(len(self.data))).captions if c]
        if not captions:
            raise RecipeError(f"recipe.text: the pictures of {self.recipe.data.path} have no captions.")
        return captions

    def _start(self) -> None:
        """The closed-form start of linear tokens; see [`solve_linear_tokens`]."""
        model, fresh = self.model.image_tokenizer, self.recipe.model.init_from is None
        if fresh and model.config.encoder_type == "linear" and model.transformer.token_map is not None:
            latents = self._linear_data().latents
            latents = torch.from_numpy(latents.reshape(-1, *latents.shape[2:]))
            solve_linear_tokens(model.cpu(), scale_latents(model.vae, latents), self.recipe.linear_scale)
            model.to(self.device)
        if self.recipe.freeze_encoder:
            model.encoder.requires_grad_(False)

    def _linear_data(self) -> LatentSource:
        """What linear tokens are solved from."""
        model, data = self.model.image_tokenizer, self.recipe.linear_data
        if data is None:
            return self.data
        source = open_data(data, model.config.image_size)
        if isinstance(source, StreamSource):
            raise RecipeError("recipe.linear_data: linear tokens are solved from all pictures: it takes no stream.")
        return LatentSource(source, model.vae, mirror=data.flip > 0, device=self.device)

    def _open_validation(self) -> None:
        self.validation = None
        if self.recipe.validation is None:
            return
        size, count = self.model.image_tokenizer.config.image_size, self.recipe.log.evaluate_images
        source = open_data(self.recipe.validation, size)
        self.validation = source.take(spread_rows(len(source), count))
        self.held_out_latents = self._latents_of(self.validation.images)

    @torch.no_grad()
    def _latents_of(self, images: np.ndarray) -> Tensor:
        """Scaled latents of pictures; the VAE is frozen, so that once is enough."""
        model = self.model.image_tokenizer
        parts = np.array_split(images, -(-len(images) // EVALUATION_BATCH))
        return torch.cat([model.vae_latents(model.normalize_pixels(to_pixels(p, self.device))) for p in parts])

    def write_assets(self, folder: Path) -> None:
        """What a checkpoint of the run needs besides its tensors: configurations, the text tokenizer."""
        parts = {"image_tokenizer": self.model.image_tokenizer.config}
        if self.tokenizer is not None:
            parts["text_encoder"] = self.model.text_encoder.config
            self.tokenizer.save_pretrained(folder / "tokenizer")
        for name, config in parts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            config.save_pretrained(folder / name)

    # ------------------------------------------------------------------ batches

    def batch(self, samples: Samples, positions: np.ndarray, plain: bool = False) -> Batch:
        """See `TokenizerStage.batch`; `samples.images` are latents `(B, variants, C, h, w)`."""
        draws = (positions, self.recipe.seed, self.recipe.data.flip, plain, can_mirror(samples))
        latents = pick_variants(samples, *draws).to(self.device)
        batch = self._with_conditions(scale_latents(self.model.image_tokenizer.vae, latents), samples, positions)
        if self.teachers:
            mirrored = draw_mirrored(samples, *draws)[:, None, None, None]
            batch["pixels"] = to_pixels(np.where(mirrored, samples.pictures[:, :, ::-1], samples.pictures), self.device)
        return batch

    def _with_conditions(self, latents: Tensor, samples: Samples, positions: np.ndarray) -> Batch:
        """Scaled latents with the lengths and the texts that are drawn for them."""
        batch: Batch = {"latents": latents, "positions": positions}
        if self.recipe.prefix is not None:
            batch["num_tokens"] = torch.from_numpy(self._lengths(positions)).to(self.device)
        if self.tokenizer is not None:
            texts = compose_captions(samples, positions, self.recipe.captions, self.recipe.seed)
            batch |= self._tokenize(texts)
        return batch

    def _lengths(self, positions: np.ndarray) -> np.ndarray:
        seed, recipe = self.recipe.seed, self.recipe
        lengths = draw_prefix_lengths(self.model.image_tokenizer, recipe.prefix, seed, positions)
        short = integers(seed, "short prefix", positions, 0, recipe.short_tokens + 1)
        lengths = np.where(uniform(seed, "prefix is short", positions) < recipe.short, short, lengths)
        return np.where(uniform(seed, "prefix is empty", positions) < recipe.empty, 0, lengths)

    def _tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        found = tokenize_texts(self.tokenizer, texts, self.model.text_encoder.config.max_length)
        return {name: value.to(self.device) for name, value in found.items()}

    def loss(self, objective: str, modules: dict[str, nn.Module], batch: Batch, step: int) -> LossOutput:
        """The model's own loss; see `TokenizerStage.loss`."""
        features = teacher_kwargs(self.model.image_tokenizer, self.teachers, batch["pixels"]) if self.teachers else {}
        output = modules["model"](batch["latents"], batch.get("num_tokens"), self._text_inputs(batch), **features)
        return LossOutput(output.loss, dict(output.losses), output.token_ids)

    def _text_inputs(self, batch: Batch) -> dict[str, Tensor] | None:
        return {name: batch[name] for name in TEXT_INPUTS} if self.tokenizer is not None else None

    # ------------------------------------------------------------------ measures

    @torch.no_grad()
    def evaluate(self, model: TextAndTokenizer) -> dict[str, float]:
        """
        Held-out PSNR by number of tokens, drawn in one step without text; and the held-out loss, with text and prefixes
        as in training, under fixed draws. The best checkpoint is the one of the lowest loss: PSNR in one step says
        nothing about the flow.
        """
        if self.validation is None:
            return {}
        tokenizer = model.image_tokenizer
        decode = {**ONE_STEP, "shared_noise": _fixed_noise(tokenizer)}
        scores = reconstruction_scores(
            tokenizer, self.validation.images, batch_size=EVALUATION_BATCH, decode_kwargs=decode
        )
        loss = self._held_out_loss(model)
        return {f"psnr@{s.num_tokens}": s.psnr for s in scores} | {"held_out_loss": loss, "score": -loss}

    def _held_out_loss(self, model: TextAndTokenizer) -> float:
        total, count = 0.0, len(self.held_out_latents)
        for start in range(0, count, EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            positions = np.arange(count)[part]
            batch = self._with_conditions(self.held_out_latents[part], self.validation[part], positions)
            generator = torch.Generator().manual_seed(start)
            out = model(batch["latents"], batch.get("num_tokens"), self._text_inputs(batch), generator)
            total += float(out.loss) * len(positions)
        return total / count

    @torch.no_grad()
    def sheet(self, model: TextAndTokenizer, count: int = 12) -> list[tuple[str, np.ndarray]]:
        """Rows of held-out, then of known pictures: real, all tokens in one step, text and some tokens."""
        rows: list[tuple[str, np.ndarray]] = []
        known = self.data.source.take(np.arange(count) * len(self.data) // count)
        for samples in (self.validation, known):
            if samples is not None:
                step = max(1, len(samples.images) // count)
                part = Samples(samples.images[::step][:count], samples.captions[::step][:count])
                rows += self._sheet_rows(model, part)
        return rows

    def _sheet_rows(self, model: TextAndTokenizer, samples: Samples) -> list[tuple[str, np.ndarray]]:
        tokenizer, pixels = model.image_tokenizer, to_pixels(samples.images, self.device)
        lengths = [n for n in doubling_lengths(tokenizer) if n in (1, 4, self.recipe.short_tokens)]
        rows = [("real", samples.images)]
        for length, fake in reconstruct_lengths(tokenizer, pixels, [tokenizer.num_tokens], ONE_STEP):
            rows.append((f"{length} x1", to_bytes(fake)))
        if self.tokenizer is None:
            return rows
        text = model.text(**self._tokenize(samples.captions))
        codes = tokenizer.encode(tokenizer.normalize_pixels(pixels)).latents
        for length in (0, *lengths):
            mask = (torch.arange(codes.shape[1], device=codes.device) < length).expand(codes.shape[:2])
            rows.append((f"text+{length}", draw_pictures(tokenizer, codes, text, mask)))
        return rows


def _fixed_noise(tokenizer: FlexTokModel, *batch: int) -> Tensor:
    """The same noise at each call, `(*batch, C, h, w)`."""
    config = tokenizer.transformer.config
    shape = (*batch, config.in_channels, config.sample_size, config.sample_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def draw_pictures(
    tokenizer: FlexTokModel, codes: Tensor, text: dict[str, Tensor], mask: Tensor | None = None
) -> np.ndarray:
    """Pictures uint8 `(B, H, W, 3)` of codes and texts from the same noise each time, as published."""
    noise = _fixed_noise(tokenizer, len(codes)).to(codes.device)
    latents = tokenizer.transformer.sample_latents(noise, codes, mask, text=text)
    return to_bytes(tokenizer.denormalize_pixels(vae_decode(tokenizer.vae, latents)).clamp(0, 1))


def load_flow_tokenizer(run: Path) -> tuple[TextAndTokenizer, PreTrainedTokenizerFast | None, dict[str, Any]]:
    """
    The averaged weights of a run of stage "flow_tokenizer", its text tokenizer, and `state.json`.

    Raises:
        CheckpointError: where the folder holds no state.
    """
    from .checkpoint import read_folder
    from .export import state_folder

    tensors, state = read_folder(state_folder(run))
    assets = run / "assets"
    image_tokenizer = FlexTokModel(FlexTokConfig.from_pretrained(assets / "image_tokenizer"))
    text_encoder = tokenizer = None
    if (assets / "tokenizer").is_dir():
        text_encoder = TextTableModel(TextTableConfig.from_pretrained(assets / "text_encoder"))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(assets / "tokenizer")
    model = TextAndTokenizer(image_tokenizer, text_encoder)
    lora = parse_recipe(state["recipe"]).model.lora
    return load_weights(model, tensors["ema"], lora).eval(), tokenizer, state
