"""How diffusers' Stable unCLIP is conditioned on an image embedding: noised, with the level of the noise."""

from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn


def noised_embeds(normalizer: nn.Module, noising_scheduler: Any, embeds: Tensor, noise: Tensor, level: int) -> Tensor:
    """
    Image embeddings with noise, and the sinusoid of its level behind them: class labels of the UNet.

    Args:
        normalizer: `StableUnCLIPImageNormalizer`.
        noising_scheduler: adds the noise; level 0 adds a little too.
        embeds: `(B, D)`.
        noise: standard normal `(B, D)`.
        level: step of the noising scheduler.

    Returns:
        `(B, 2 D)`.
    """
    levels = torch.full((len(embeds),), level, dtype=torch.long, device=embeds.device)
    scaled = noising_scheduler.add_noise(normalizer.scale(embeds), noise.to(embeds), levels)
    waves = get_timestep_embedding(levels, embeds.shape[-1], flip_sin_to_cos=True, downscale_freq_shift=0)
    return torch.cat([normalizer.unscale(scaled), waves.to(embeds.dtype)], 1)


def unclip_labels(
    normalizer: nn.Module,
    noising_scheduler: Any,
    embeds: Tensor,
    noise: Tensor,
    level: int = 0,
    negative_embeds: Tensor | None = None,
    negative_noise: Tensor | None = None,
) -> Tensor:
    """
    Class labels `(2B, 2 D)`: unconditional rows, then conditional ones, as [`noised_embeds`] makes them.

    Without negative embeddings the unconditional rows are all zeros, the level's sinusoid included.
    """
    cond = noised_embeds(normalizer, noising_scheduler, embeds, noise, level)
    if negative_embeds is None:
        return torch.cat([torch.zeros_like(cond), cond])
    if negative_noise is None:
        raise ValueError("Negative image embeddings are noised too: give negative_noise.")
    return torch.cat([noised_embeds(normalizer, noising_scheduler, negative_embeds, negative_noise, level), cond])
