"""Frozen representation encoders of transformers as one kind of thing: pixels to patch tokens (RAE, RPiAE)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTMAEConfig,
    ViTMAEModel,
)
from transformers import initialization as init

from .positions import sincos_table


class MaeTower(ViTMAEModel):
    """MAE's encoder; its class token and positions get fresh values inside another model too."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.embeddings:
            side = math.isqrt(module.patch_embeddings.num_patches)
            table = sincos_table((side, side), self.config.hidden_size)
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.copy_(module.position_embeddings, torch.cat([table.new_zeros(1, table.shape[1]), table])[None])


TOWERS: dict[str, tuple[type, type[PreTrainedModel]]] = {
    "dinov2": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
    "siglip2": (SiglipVisionConfig, SiglipVisionModel),
    "mae": (ViTMAEConfig, MaeTower),
}
LAST_NORM = {"dinov2": "layernorm", "siglip2": "post_layernorm", "mae": "layernorm"}


def check_tower(kind: str) -> None:
    """Raises a ValueError for an unknown kind of encoder."""
    if kind not in TOWERS:
        raise ValueError(f"encoder_type must be one of {', '.join(TOWERS)}, got {kind!r}.")


def tower_config(kind: str, config: dict[str, Any]) -> Any:
    """transformers' configuration of an encoder; SigLIP goes without its pooling head, MAE without masking."""
    check_tower(kind)
    extra = {"siglip2": {"vision_use_head": False}, "mae": {"mask_ratio": 0.0}}.get(kind, {})
    plain = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
    return TOWERS[kind][0](**{**plain, **extra})


def build_tower(kind: str, config: dict[str, Any], *, affine: bool = False) -> PreTrainedModel:
    """
    An encoder with fresh weights.

    Args:
        kind: "dinov2" (with registers), "siglip2" (the fixed-size variant, SigLIP's architecture) or "mae".
        config: fields of transformers' configuration.
        affine: whether the last norm keeps its gain and bias.
    """
    settings = tower_config(kind, config)
    tower = TOWERS[kind][1](settings)
    if not affine:
        norm = nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_eps, elementwise_affine=False)
        setattr(tower, LAST_NORM[kind], norm)
    return tower


def tower_tokens(kind: str, tower: PreTrainedModel, pixels: Tensor) -> Tensor:
    """
    Patch tokens behind the last norm, without class and register tokens.

    Args:
        kind: see [`build_tower`].
        tower: the encoder.
        pixels: `(B, 3, H, W)`, normalised as the encoder wants it; positions are interpolated to the size.

    Returns:
        `(B, N, D)` in raster order.
    """
    if kind == "dinov2":
        return tower(pixels).last_hidden_state[:, 1 + tower.config.num_register_tokens :]
    if kind == "siglip2":
        return tower(pixels, interpolate_pos_encoding=True).last_hidden_state
    patch = tower.config.patch_size
    count = (pixels.shape[2] // patch) * (pixels.shape[3] // patch)
    order = torch.arange(count, device=pixels.device, dtype=torch.float32).expand(len(pixels), -1)
    return tower(pixels, noise=order, interpolate_pos_encoding=True).last_hidden_state[:, 1:]


def resize_pixels(pixels: Tensor, size: int) -> Tensor:
    """`(B, 3, H, W)` at `size` x `size`, bicubic without antialiasing; unchanged where it has that size."""
    if tuple(pixels.shape[2:]) == (size, size):
        return pixels
    return F.interpolate(pixels.float(), (size, size), mode="bicubic", align_corners=False).to(pixels.dtype)
