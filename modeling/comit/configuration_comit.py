"""Configuration of COMiT."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig

SOLVERS = ("euler", "midpoint")


@strict
class ComitConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`ComitModel`].

    Args:
        hidden_size, num_layers, num_heads, mlp_ratio: of the one transformer that reads crops and draws pictures.
        latent_size, latent_channels, patch_size (`int`): VAE latents of a full picture, and the transformer's patches.
        num_latent_tokens (`int`): tokens of the message.
        fsq_levels (`list[int]`): values of each of a token's channels; the product is the codebook size.
        representation_layer (`int`): number of blocks (from 0: the first) behind which features are taken.
        crop_size, crop_stride (`int`): windows of the picture, in pixels.
        vae_config (`dict`): of the AutoencoderKL, in diffusers' form.
        num_inference_steps, guidance_scale, solver: how a message is drawn unless told otherwise; "euler" or
            "midpoint".
        guidance_momentum, guidance_eta, guidance_norm_threshold: of the adaptive projected guidance.
        condition_dropout (`float`): share of messages that training replaces by the empty one.
        alignment_dim (`int`): width of a teacher's features in training, 0 for no alignment.
        loss_weights (`dict`): weights of the terms that `forward` returns; those not named weigh 1.
    """

    model_type = "vistok_comit"

    pixel_range: tuple[float, ...] | list[float] | None = (-1.0, 1.0)
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    latent_size: int = 32
    latent_channels: int = 4
    patch_size: int = 2
    num_latent_tokens: int = 256
    fsq_levels: tuple[int, ...] | list[int] = (8, 8, 8, 5, 5, 5)
    representation_layer: int = 8
    crop_size: int = 96
    crop_stride: int = 80
    vae_config: dict[str, Any] | None = None
    num_inference_steps: int = 10
    guidance_scale: float = 6.0
    solver: str = "euler"
    guidance_momentum: float = -0.5
    guidance_eta: float = 0.0
    guidance_norm_threshold: float = 2.5
    condition_dropout: float = 0.1
    alignment_dim: int = 0
    loss_weights: dict[str, Any] | None = None

    def validate_options(self) -> None:
        """Raises a ValueError for an unknown solver, too few blocks, or crops that do not tile the picture."""
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {SOLVERS}, got {self.solver!r}.")
        if not 0 <= self.representation_layer < self.num_layers:
            raise ValueError(f"representation_layer must be a block's number below {self.num_layers}.")
        if (self.image_size - self.crop_size) % self.crop_stride:
            raise ValueError("Crops of crop_size at steps of crop_stride must end at the picture's edge.")

    @property
    def codebook_size(self) -> int:
        """Product of the levels."""
        return math.prod(self.fsq_levels)

    @property
    def crops_per_side(self) -> int:
        """Windows along a side."""
        return (self.image_size - self.crop_size) // self.crop_stride + 1
