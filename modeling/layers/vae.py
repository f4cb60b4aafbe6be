"""A diffusers `AutoencoderKL` as stage 0 of latent tokenizers: pixels to scaled latents and back."""

import math
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from .posterior import DiagonalGaussian


class AutoencoderKLDecoder(AutoencoderKL):
    """An AutoencoderKL that only decodes: decoders of codes never use, and here do not hold, the encoding half."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = self.quant_conv = None

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Refused."""
        raise ValueError("This VAE has no encoder: it belongs to a decoder of codes.")


def build_vae(config: dict[str, Any]) -> AutoencoderKL:
    """A frozen AutoencoderKL of a configuration; keys that start with "_" are diffusers' own notes."""
    vae = AutoencoderKL(**{name: value for name, value in config.items() if not name.startswith("_")})
    return vae.requires_grad_(False)


def pixel_block(vae: AutoencoderKL) -> int:
    """Side of the pixel blocks that become channels before the first convolution: 1 for RGB, 4 for 48 channels."""
    return math.isqrt(vae.config.in_channels // 3)


def vae_factor(vae: AutoencoderKL) -> int:
    """Pixels per latent position along a side."""
    return pixel_block(vae) * 2 ** (len(vae.config.block_out_channels) - 1)


def vae_posterior(vae: AutoencoderKL, pixels: Tensor) -> DiagonalGaussian:
    """The posterior over unscaled latents `(B, C, h, w)` of pixels `(B, 3, H, W)` in [-1, 1]."""
    block = pixel_block(vae)
    pixels = pixels.to(vae.dtype)
    dist = vae.encode(F.pixel_unshuffle(pixels, block) if block > 1 else pixels).latent_dist
    return DiagonalGaussian(dist.mean, dist.logvar)


def scale_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Unscaled latents to those that transformers see: `(z - shift_factor) * scaling_factor`."""
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def vae_pixels(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Unscaled latents `(B, C, h, w)` to pixels `(B, 3, H, W)`, not clamped."""
    block = pixel_block(vae)
    sample = vae.decode(latents.to(vae.dtype)).sample
    return F.pixel_shuffle(sample, block) if block > 1 else sample


def vae_decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Scaled latents `(B, C, h, w)` to pixels `(B, 3, H, W)`, not clamped."""
    return vae_pixels(vae, latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0))
