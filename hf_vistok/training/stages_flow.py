"""The stage of tokenizers with a flow decoder: FlexTok on a VAE's latents, with a text for its decoder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ..data.draws import integers, uniform
from ..data.sources import Samples, StreamSource
from ..evaluation.reconstruction import doubling_lengths, reconstruct_lengths, reconstruction_scores, to_pixels
from ..modeling.flextok.modeling_flextok import FlexTokModel
from ..modeling.layers.vae import scale_latents, vae_decode
from ..modeling.text_table.configuration_text_table import TextTableConfig
from ..modeling.text_table.modeling_text_table import TextTableModel
from .latents import LatentSource, solve_linear_tokens
from .recipe import FlowTokenizerRecipe, RecipeError
from .stages import Batch, LossOutput, build_config, draw_prefix_lengths, open_data
from .text import can_mirror, compose_captions, static_table, text_of_records, tokenizer_for

TEXT_INPUTS = ("input_ids", "attention_mask")
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

    def forward(self, latents: Tensor, num_tokens: Tensor | None, text: dict[str, Tensor] | None) -> Any:
        """The losses of scaled latents `(B, C, h, w)`, see `FlexTokModel.forward`."""
        conditions = self.text(**text) if text is not None else {}
        return self.image_tokenizer(num_tokens=num_tokens, vae_latents=latents, **conditions)


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


class FlowTokenizerStage:
    """
    A FlexTok on cached latents.

    Args:
        recipe: of the run.
        device: where to train.
    """

    def __init__(self, recipe: FlowTokenizerRecipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        config = build_config(recipe.model)
        vae = load_vae(recipe.vae)
        source = open_data(recipe.data, config.image_size)
        if isinstance(source, StreamSource):
            raise RecipeError("recipe.data: this stage keeps latents of all pictures: it takes no stream.")
        self.data = LatentSource(source, vae.to(device), mirror=recipe.data.flip > 0, device=device)
        mean, std = self.data.statistics()
        vae.register_to_config(scaling_factor=1.0 / std, shift_factor=mean)
        config.vae_config = {k: v for k, v in dict(vae.config).items() if not k.startswith("_")}
        config.transformer_config = {**config.transformer_config, **self._text_dims()}
        torch.manual_seed(recipe.seed)
        image_tokenizer = FlexTokModel(config)
        image_tokenizer.vae.load_state_dict(vae.state_dict())
        self.tokenizer, text_encoder = self._build_text()
        self.model = TextAndTokenizer(image_tokenizer, text_encoder).to(device)
        self.modules: dict[str, nn.Module] = {"model": self.model}
        self._start()
        self._open_validation()

    # ------------------------------------------------------------------ set-up

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
        model = self.model.image_tokenizer
        if model.config.encoder_type == "linear" and model.transformer.token_map is not None:
            latents = scale_latents(
                model.vae, torch.from_numpy(self.data.latents.reshape(-1, *self.data.latents.shape[2:]))
            )
            self.start_figures = solve_linear_tokens(model.cpu(), latents, self.recipe.linear_scale)
            model.to(self.device)
        if self.recipe.freeze_encoder:
            model.encoder.requires_grad_(False)

    def _open_validation(self) -> None:
        self.validation, self.pairs = None, None
        if self.recipe.validation is None:
            return
        size, count = self.model.image_tokenizer.config.image_size, self.recipe.log.evaluate_images
        source = open_data(self.recipe.validation, size)
        rows = np.arange(len(source))
        rows = rows if not count or count >= len(rows) else rows * len(source) // count
        self.validation = source.take(rows[: count or None])

    def write_assets(self, folder: Path) -> None:
        """What a checkpoint of the run needs besides its tensors: configurations, the text tokenizer."""
        parts = {"image_tokenizer": self.model.image_tokenizer.config}
        if self.tokenizer is not None:
            parts["text_encoder"] = self.model.text_encoder.config
            self.tokenizer.save_pretrained(folder / "tokenizer")
        for name, config in parts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            config.save_pretrained(folder / name)

    def state(self) -> dict[str, Tensor]:
        """Nothing of its own."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""

    def objectives(self, step: int) -> list[str]:
        """One module."""
        return ["model"]

    def after_step(self, terms: dict[str, float]) -> None:
        """Nothing to do."""

    # ------------------------------------------------------------------ batches

    def batch(self, samples: Samples, positions: np.ndarray, plain: bool = False) -> Batch:
        """See `TokenizerStage.batch`; `samples.images` are latents `(B, variants, C, h, w)`."""
        seed, recipe = self.recipe.seed, self.recipe
        mirrored = (uniform(seed, "flip", positions) < recipe.data.flip) & (samples.images.shape[1] > 1) & (not plain)
        if samples.records is not None:
            mirrored &= np.array([can_mirror(record) for record in samples.records])
        latents = torch.from_numpy(samples.images[np.arange(len(positions)), mirrored.astype(np.int64)]).to(self.device)
        batch: Batch = {"latents": scale_latents(self.model.image_tokenizer.vae, latents), "positions": positions}
        if recipe.prefix is not None:
            batch["num_tokens"] = torch.from_numpy(self._lengths(positions)).to(self.device)
        if self.tokenizer is not None:
            batch |= self._tokenize(compose_captions(samples, positions, recipe.captions, seed))
        return batch

    def _lengths(self, positions: np.ndarray) -> np.ndarray:
        seed, recipe = self.recipe.seed, self.recipe
        lengths = draw_prefix_lengths(self.model.image_tokenizer, recipe.prefix, seed, positions)
        short = integers(seed, "short prefix", positions, 0, recipe.short_tokens + 1)
        return np.where(uniform(seed, "prefix is short", positions) < recipe.short, short, lengths)

    def _tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        length = self.recipe.text.max_length
        encoded = self.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return {name: encoded[name].to(self.device) for name in TEXT_INPUTS}

    def loss(self, objective: str, modules: dict[str, nn.Module], batch: Batch, step: int) -> LossOutput:
        """The model's own loss; see `TokenizerStage.loss`."""
        text = {name: batch[name] for name in TEXT_INPUTS} if self.tokenizer is not None else None
        output = modules["model"](batch["latents"], batch.get("num_tokens"), text)
        return LossOutput(output.loss, dict(output.losses), output.token_ids)

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
        scores = reconstruction_scores(tokenizer, self.validation.images, batch_size=64, decode_kwargs=decode)
        loss = self._held_out_loss(model)
        return {f"psnr@{s.num_tokens}": s.psnr for s in scores} | {"held_out_loss": loss, "score": -loss}

    def _held_out_loss(self, model: TextAndTokenizer) -> float:
        tokenizer, total = model.image_tokenizer, 0.0
        for start in range(0, len(self.validation.images), 64):
            samples = self.validation[start : start + 64]
            latents = tokenizer.vae_latents(tokenizer.normalize_pixels(to_pixels(samples.images, self.device)))
            unscaled = latents / tokenizer.vae.config.scaling_factor + tokenizer.vae.config.shift_factor
            positions = np.arange(start, start + len(samples.images))
            cached = Samples(unscaled.cpu().numpy()[:, None], samples.captions, samples.records)
            batch = self.batch(cached, positions, plain=True)
            text = {name: batch[name] for name in TEXT_INPUTS} if self.tokenizer is not None else None
            conditions = model.text(**text) if text is not None else {}
            generator = torch.Generator().manual_seed(start)
            out = tokenizer(
                num_tokens=batch.get("num_tokens"), vae_latents=batch["latents"], generator=generator, **conditions
            )
            total += float(out.loss) * len(positions)
        return total / len(self.validation.images)

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
            noise = _fixed_noise(tokenizer, len(codes)).to(codes.device)
            drawn = tokenizer.transformer.sample_latents(noise, codes, mask, text=text)
            rows.append(
                (
                    f"text+{length}",
                    to_bytes(tokenizer.denormalize_pixels(vae_decode(tokenizer.vae, drawn)).clamp(0, 1)),
                )
            )
        return rows


def _fixed_noise(tokenizer: FlexTokModel, *batch: int) -> Tensor:
    """The same noise at each call, `(*batch, C, h, w)`."""
    config = tokenizer.transformer.config
    shape = (*batch, config.in_channels, config.sample_size, config.sample_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def to_bytes(pictures: Tensor) -> np.ndarray:
    """Pictures `(B, 3, H, W)` in [0, 1] to uint8 `(B, H, W, 3)`."""
    return (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def load_flow_tokenizer(run: Path) -> tuple[TextAndTokenizer, PreTrainedTokenizerFast | None, dict[str, Any]]:
    """
    The averaged weights of a run of stage "flow_tokenizer", its text tokenizer, and `state.json`.

    Raises:
        CheckpointError: where the folder holds no state.
    """
    from ..modeling.flextok.configuration_flextok import FlexTokConfig
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
    model.load_state_dict(tensors["ema"])
    return model.eval(), tokenizer, state
