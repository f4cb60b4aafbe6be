"""FlexTok's flow decoder (arXiv 2502.13967, section 3.2): velocities of noised latents under ordered tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..layers.flow import GUIDANCE_KINDS, FlowGuidance, GuidanceScale, sample_flow
from ..layers.patches import patchify, unpatchify
from ..layers.quantizers import FSQ
from .modeling_flextok_layers import (
    FlexTokBlock,
    PositionTable,
    TimeEmbedding,
    plain_norm,
    zero_init,
)
from .modeling_flextok_linear import LinearTokenMap

TEXT_NAMES = ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections")


@dataclass
class FlexTokTransformerOutput(BaseOutput):
    """
    What [`FlexTokTransformer`] returns.

    Args:
        sample: the velocity `noise - data`, `(B, C, h, w)`.
        features: hidden states of the patches after block `feature_layer`, `(B, P, D)`, where asked for.
    """

    sample: Tensor
    features: Tensor | None = None


class FlexTokTransformer(ModelMixin, ConfigMixin):
    """
    Predicts velocities of noised VAE latents. It owns the meaning of ids: `ids_to_latents`.

    Args:
        in_channels, sample_size, patch_size: latents of side `sample_size` in patches; smaller sizes use the top left
            positions.
        hidden_size, num_layers, head_dim: of the transformer.
        fsq_levels: values of each channel of a token; the product is the codebook size.
        num_tokens: tokens of one picture.
        token_layout: "registers" (a sequence beside the patches), "grid" (one token per patch, added to it), or
            "linear" (ours: a linear map makes coarse latents of the kept tokens: further channels of the patches).
        nested_dropout: whether a learned vector stands for tokens that are left out; any prefix is then a picture.
        null_condition: whether a learned vector stands for "no tokens at all", which guidance needs.
        positions, token_positions: "sincos" or "learned"; tokens may have none ("none").
        modulation_streams: 2 where patches and tokens have modulations of their own, else 1.
        head_modulation: whether the time modulates the last layer too.
        frequency_dim, max_timestep: of the time embedding.
        feature_layer: block whose output the alignment loss of the paper reads, None for none.
        prediction_type: "velocity", or "sample" for a last layer that predicts the data (ours).
        text_dim, pooled_text_dim: widths of text tokens (cross-attention) and of a pooled text (added to the time);
            0 means none, as in all published checkpoints. A dropped text is a learned vector.
        num_inference_steps, guidance_scale, guidance: how the checkpoint is sampled unless told otherwise; "apg" or
            "cfg".
        guidance_momentum, guidance_eta, guidance_norm_threshold: of "apg".
        reconstruction_steps, reconstruction_guidance_scale: the same for the tokens of a picture without a text, where
            that should differ (a decoder that predicts the data draws a good mean in one step).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["FlexTokBlock"]
    _repeated_blocks = ["FlexTokBlock"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        sample_size: int = 32,
        patch_size: int = 2,
        hidden_size: int = 1792,
        num_layers: int = 28,
        head_dim: int = 64,
        fsq_levels: Sequence[int] = (8, 8, 8, 5, 5, 5),
        num_tokens: int = 256,
        token_layout: str = "registers",
        nested_dropout: bool = True,
        null_condition: bool = True,
        positions: str = "sincos",
        token_positions: str = "learned",
        modulation_streams: int = 2,
        head_modulation: bool = True,
        frequency_dim: int = 256,
        max_timestep: float = 1.0,
        feature_layer: int | None = 1,
        prediction_type: str = "velocity",
        text_dim: int = 0,
        pooled_text_dim: int = 0,
        num_inference_steps: int = 25,
        guidance_scale: float = 7.5,
        guidance: str = "apg",
        guidance_momentum: float = -0.5,
        guidance_eta: float = 0.0,
        guidance_norm_threshold: float = 2.5,
        reconstruction_steps: int | None = None,
        reconstruction_guidance_scale: float | None = None,
    ) -> None:
        super().__init__()
        self._check_config()
        side, width = sample_size // patch_size, hidden_size
        self.quantizer = FSQ(fsq_levels)
        linear = token_layout == "linear"
        self.token_map = (
            LinearTokenMap(num_tokens, len(fsq_levels), in_channels, sample_size, width) if linear else None
        )
        self.token_embed = None if linear else nn.Linear(len(fsq_levels), width)
        self.token_position_table = None
        if token_positions != "none" and not linear:
            sizes = (num_tokens,) if token_layout == "registers" else (side, side)
            self.token_position_table = PositionTable(width, sizes, token_positions)
        self.mask_token = nn.Parameter(0.02 * torch.randn(width)) if nested_dropout and not linear else None
        self.null_token = nn.Parameter(0.02 * torch.randn(width)) if null_condition and not linear else None
        self.patch_embed = nn.Linear((2 if linear else 1) * in_channels * patch_size**2, width)
        self.patch_position_table = PositionTable(width, (side, side), positions)
        self.time_embed = TimeEmbedding(width, frequency_dim, max_timestep)
        self.null_text = nn.Parameter(0.02 * torch.randn(text_dim)) if text_dim else None
        self.null_pooled = nn.Parameter(0.02 * torch.randn(pooled_text_dim)) if pooled_text_dim else None
        self.pooled_embed = nn.Linear(pooled_text_dim, width) if pooled_text_dim else None
        self.layers = nn.ModuleList(
            FlexTokBlock(width, head_dim, modulation_streams, text_dim) for _ in range(num_layers)
        )
        self.norm_out = plain_norm(width)
        self.modulation_out = zero_init(nn.Linear(width, 2 * width)) if head_modulation else None
        self.proj_out = zero_init(nn.Linear(width, in_channels * patch_size**2))

    def _check_config(self) -> None:
        choices = {
            "token_layout": ("registers", "grid", "linear"),
            "prediction_type": ("velocity", "sample"),
            "guidance": GUIDANCE_KINDS,
            "modulation_streams": (1, 2),
        }
        for name, allowed in choices.items():
            if self.config[name] not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {self.config[name]!r}.")
        grid = self.config.token_layout == "grid"
        if self.config.token_layout == "linear" and self.config.modulation_streams != 1:
            raise ValueError('token_layout="linear" has no stream of tokens: modulation_streams must be 1.')
        if grid and (self.config.nested_dropout or self.config.modulation_streams != 1):
            raise ValueError("The grid variant has no nested dropout and modulation_streams=1.")
        if grid and self.config.num_tokens != (self.config.sample_size // self.config.patch_size) ** 2:
            raise ValueError("The grid variant has as many tokens as patches.")

    def init_own_weights(self) -> None:
        """Fresh learned vectors."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=0.02)

    # ------------------------------------------------------------------ tokens

    @property
    def codebook_size(self) -> int:
        """Number of different ids."""
        return self.quantizer.codebook_size

    @property
    def num_codebooks(self) -> int:
        """Ids at one position."""
        return 1

    @property
    def num_tokens(self) -> int:
        """Tokens of one picture."""
        return self.config.num_tokens

    @property
    def is_discrete(self) -> bool:
        """Always: the tokens are FSQ codes."""
        return True

    @property
    def has_null(self) -> bool:
        """Whether there is a picture of no tokens, which guidance leads away from."""
        return self.token_map is not None or self.null_token is not None

    @property
    def has_text(self) -> bool:
        """Whether the decoder sees a text besides the tokens."""
        return bool(self.config.text_dim or self.config.pooled_text_dim)

    def ids_to_latents(self, token_ids: Tensor) -> Tensor:
        """Ids `(B, k)` to FSQ codes in [-1, 1], `(B, k, len(fsq_levels))`."""
        return self.quantizer.indices_to_latents(token_ids).to(self.dtype)

    def embed_tokens(
        self,
        token_latents: Tensor,
        token_mask: Tensor | None,
        null_mask: Tensor | None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Codes `(B, k, d)` to `(B, N, D)`; vectors for "left out" and "no tokens" replace token and position."""
        x, count = self.token_embed(token_latents.to(self.dtype)), token_latents.shape[1]
        if self.token_position_table is not None:
            x = x + self.token_position_table(*((count,) if self.config.token_layout == "registers" else grid))
        if self.mask_token is not None:
            if token_mask is not None:
                x = torch.where(token_mask[..., None], x, self.mask_token)
            left_out = self.mask_token.expand(x.shape[0], self.config.num_tokens - count, -1)
            x = torch.cat([x, left_out], 1)
        if null_mask is not None:
            if self.null_token is None:
                raise ValueError("This decoder has no null condition: guidance_scale must be 1.")
            x = torch.where(null_mask[:, None, None], self.null_token, x)
        return x

    def _text(
        self, states: Tensor | None, mask: Tensor | None, dropped: Tensor | None, batch: int
    ) -> tuple[Tensor, Tensor] | None:
        if self.null_text is None:
            return None
        x = self.null_text.expand(batch, 1, -1)
        seen = torch.ones(batch, 1, dtype=torch.bool, device=x.device)
        if states is not None:
            mask = torch.ones(states.shape[:2], device=x.device) if mask is None else mask
            mask = mask.bool() if dropped is None else mask.bool() & ~dropped[:, None]
            x, seen = torch.cat([x, states.to(x.dtype)], 1), torch.cat([seen, mask], 1)
        return x, seen

    def _time(
        self, timestep: Tensor, pooled: Tensor | None, dropped: Tensor | None, length: Tensor | None = None
    ) -> Tensor:
        time = self.time_embed(timestep)
        time = time if length is None else time + length
        if self.null_pooled is not None:
            null = self.null_pooled.expand(time.shape[0], -1)
            pooled = null if pooled is None else pooled.to(null.dtype)
            pooled = pooled if dropped is None else torch.where(dropped[:, None], null, pooled)
            time = time + self.pooled_embed(pooled)
        return F.silu(time)

    # ------------------------------------------------------------------ velocity

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        token_latents: Tensor,
        token_mask: Tensor | None = None,
        null_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        text_null_mask: Tensor | None = None,
        return_features: bool = False,
        return_dict: bool = True,
    ) -> FlexTokTransformerOutput | tuple[Tensor, ...]:
        """
        The velocity `noise - data` of a batch.

        Args:
            hidden_states: noised latents `(B, C, h, w)`.
            timestep: `(B,)` in [0, 1]; 1 is pure noise.
            token_latents: FSQ codes in [-1, 1], `(B, k, d)` with any k up to `num_tokens`, or all patches of a grid
                `(B, h' * w', d)`.
            token_mask: bool `(B, k)`, False for tokens to leave out: a learned vector takes their place.
            null_mask: bool `(B,)`, True for pictures without any condition.
            encoder_hidden_states, encoder_attention_mask, pooled_projections: a text, `(B, T, text_dim)`, `(B, T)`
                (1 where a token counts) and `(B, pooled_text_dim)`, for decoders that see one.
            text_null_mask: bool `(B,)`, True for pictures without text; as `null_mask` where None.
            return_features: also return hidden states of the patches.
            return_dict: whether to return a [`FlexTokTransformerOutput`].
        """
        patch, (batch, _, height, width) = self.config.patch_size, hidden_states.shape
        rows, columns = height // patch, width // patch
        dropped = null_mask if text_null_mask is None else text_null_mask
        pixels, coarse, length = hidden_states.to(self.dtype), None, None
        if self.token_map is not None:
            coarse, length = self.token_map(token_latents.to(self.dtype), token_mask, null_mask)
            pixels = torch.cat([pixels, coarse], 1)
        x = self.patch_embed(patchify(pixels, patch)) + self.patch_position_table(rows, columns)
        sizes = [rows * columns]
        if coarse is None:
            tokens = self.embed_tokens(token_latents, token_mask, null_mask, (rows, columns))
            sizes.append(tokens.shape[1])
            x = torch.cat([x, tokens], 1) if self.config.token_layout == "registers" else x + tokens
        time = self._time(timestep, pooled_projections, dropped, length)
        text = self._text(encoder_hidden_states, encoder_attention_mask, dropped, batch)
        features = None
        for i, layer in enumerate(self.layers):
            x = layer(x, time, sizes, text=text)
            if return_features and i == self.config.feature_layer:
                features = x[:, : sizes[0]]
        out = self._head(x[:, : sizes[0]], time, rows, columns)
        if self.config.prediction_type == "sample":
            out = out if coarse is None else out + coarse
            t = timestep.view(-1, 1, 1, 1).to(out.dtype).clamp_min(1e-3)
            out = (hidden_states.to(out.dtype) - out) / t
        return FlexTokTransformerOutput(out, features) if return_dict else (out, features)

    def _head(self, x: Tensor, time: Tensor, rows: int, columns: int) -> Tensor:
        x = self.norm_out(x)
        if self.modulation_out is not None:
            shift, scale = self.modulation_out(time)[:, None].chunk(2, -1)
            x = x * (1 + scale) + shift
        return unpatchify(self.proj_out(x), rows, columns, self.config.patch_size)

    # ------------------------------------------------------------------ sampling

    def make_guidance(
        self, guidance_scale: GuidanceScale | None = None, guidance: str | None = None, **options: float | None
    ) -> FlowGuidance:
        """The checkpoint's guidance, with what is not None replaced; `options` are momentum, eta, norm_threshold."""
        published = self.config.guidance_scale if self.has_null else 1.0
        values = {
            name: self.config[f"guidance_{name}"] if options.get(name) is None else options[name]
            for name in ("momentum", "eta", "norm_threshold")
        }
        scale = published if guidance_scale is None else guidance_scale
        return FlowGuidance(scale, self.config.guidance if guidance is None else guidance, **values)

    def sample_latents(
        self,
        noise: Tensor,
        token_latents: Tensor,
        token_mask: Tensor | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance: FlowGuidance | None = None,
        scheduler: FlowMatchEulerDiscreteScheduler | None = None,
        text: dict[str, Tensor] | None = None,
        negative_text: dict[str, Tensor] | None = None,
        on_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
    ) -> Tensor:
        """
        Draws scaled VAE latents from noise: T Euler steps, one forward of 2B each with guidance.

        Args:
            noise: standard normal `(B, C, h, w)`.
            token_latents, token_mask: see `forward`.
            num_inference_steps: number of steps, the checkpoint's where None.
            guidance: see `make_guidance`, which makes the checkpoint's where None.
            scheduler: see [`layers.flow.sample_flow`].
            text: `encoder_hidden_states, encoder_attention_mask, pooled_projections` by name.
            negative_text: the same for the unconditional half; no text where None.
            on_step: called with (step, timestep, latents); may return other latents.

        Returns:
            float32 latents `(B, C, h, w)`.
        """
        guidance = self.make_guidance() if guidance is None else guidance
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        single = {"token_latents": token_latents, "token_mask": token_mask, **(text or {})}
        double = self._both_halves(single, negative_text)

        def velocity(x: Tensor, t: Tensor, guided: bool) -> Tensor:
            if not guided:
                return self(x, t, **single).sample
            return self(torch.cat([x, x]), torch.cat([t, t]), **double).sample

        return sample_flow(velocity, noise, steps, guidance, scheduler, on_step)

    def _both_halves(self, single: dict[str, Any], negative_text: dict[str, Tensor] | None) -> dict[str, Any]:
        """Inputs of the conditional half, then of the unconditional one."""
        batch = len(single["token_latents"])
        other = {**single, **{name: value for name, value in (negative_text or {}).items() if value is not None}}
        double = {}
        for name, value in single.items():
            if value is not None:
                longest = max(value.shape[1], other[name].shape[1]) if name in TEXT_NAMES[:2] else None
                double[name] = torch.cat([_padded(value, longest), _padded(other[name], longest)])
        null = torch.arange(2 * batch, device=single["token_latents"].device) >= batch
        double["null_mask"] = null
        if negative_text:
            double["text_null_mask"] = torch.zeros_like(null)
        return double


def _padded(value: Tensor, length: int | None) -> Tensor:
    """`(B, T, ...)` with zeros on the right up to `length`."""
    if length is None or value.shape[1] == length:
        return value
    return F.pad(value, (*[0, 0] * (value.ndim - 2), 0, length - value.shape[1]))
