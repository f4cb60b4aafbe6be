"""Latents of a frozen VAE, computed once and kept; and a tokenizer that is solved for, not trained."""

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..data.sources import Samples, Source
from ..evaluation.reconstruction import to_pixels
from ..modeling.flextok.modeling_flextok import FlexTokModel
from ..modeling.layers.vae import vae_posterior


class LatentSource:
    """
    A source whose pictures are kept as VAE latents: of the picture, and of its mirror image.

    Args:
        source: that can be indexed.
        vae: frozen.
        mirror: whether to keep the mirror images too.
        batch_size: pictures at once.
        device: where the VAE runs.
        pictures: whether the pictures themselves are wanted beside their latents.
    """

    def __init__(
        self,
        source: Source,
        vae: AutoencoderKL,
        *,
        mirror: bool,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        pictures: bool = False,
    ) -> None:
        self.source, self.batch_size, self.device, self.pictures = source, batch_size, device, pictures
        variants = [self._encode(vae, lambda x: x)]
        if mirror:
            variants.append(self._encode(vae, lambda x: x.flip(3)))
        self.latents = np.stack(variants, 1)  # (N, variants, C, h, w)

    @torch.no_grad()
    def _encode(self, vae: AutoencoderKL, change: Callable[[Tensor], Tensor]) -> np.ndarray:
        parts = []
        for start in range(0, len(self.source), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(self.source)))
            pixels = to_pixels(self.source.take(rows).images, self.device) * 2 - 1
            parts.append(vae_posterior(vae, change(pixels)).mode().float().cpu().numpy())
        return np.concatenate(parts)

    @property
    def skipped(self) -> int:
        """Pictures that could not be read."""
        return self.source.skipped

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: np.ndarray) -> Samples:
        """The samples at `indices`; `images` are latents `(B, variants, C, h, w)`."""
        samples = self.source.take(indices)
        pictures = samples.images if self.pictures else None
        return Samples(self.latents[indices], samples.captions, samples.records, pictures=pictures)

    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of all latents."""
        return float(self.latents.mean(dtype=np.float64)), float(self.latents.std(dtype=np.float64))


@torch.no_grad()
def solve_linear_tokens(model: FlexTokModel, latents: Tensor, scale: float) -> dict[str, float]:
    """
    Sets the linear maps of a FlexTok with linear tokens: principal components in, least squares back.

    The channels of the tokens are the digits of components that save most error, in that order.

    Args:
        model: with `encoder_type="linear"` and `token_layout="linear"`.
        latents: scaled, `(M, C, h, w)`; more than there are components.
        scale: standard deviation of a component before the quantizer.

    Returns:
        the share of variance that the components hold, and the share of it that the tokens miss.
    """
    encoder, x = model.encoder, latents.flatten(1).double()
    mean = x.mean(0)
    centred = x - mean
    variances, basis = torch.linalg.eigh(centred.T @ centred / len(x))
    count = encoder.config.num_components
    variances, basis = variances.flip(0)[:count], basis.flip(1)[:, :count]
    weight = scale * (basis / variances.clamp_min(1e-12).sqrt()).T
    encoder.proj.weight.copy_(weight)
    encoder.proj.bias.copy_(-weight @ mean)
    encoder.digits.copy_(_most_useful_digits(encoder, latents, centred @ basis))
    codes = model.encode_latents(latents).latents.flatten(1).double()
    solution = _least_squares(codes, centred)
    target = model.transformer.token_map.proj
    target.weight.copy_(solution.T)
    target.bias.copy_(mean - codes.mean(0) @ solution)
    missed = (codes - codes.mean(0)) @ solution - centred
    total = centred.square().sum()
    return {
        "variance_of_components": float(variances.sum() * len(x) / total),
        "error_of_tokens": float(missed.square().sum() / total),
    }


def _most_useful_digits(encoder: nn.Module, latents: Tensor, components: Tensor) -> Tensor:
    """Numbers of the digits to keep, by the squared error that each saves after those before it."""
    passes, count = encoder.config.num_passes, encoder.config.num_components
    digits = encoder.quantizer.bound(encoder.all_digits(latents)[..., None])[..., 0].round().double()
    weights = float(encoder.config.level) ** -torch.arange(passes, dtype=torch.float64)
    values = (digits.unflatten(1, (passes, count)) * weights[:, None]).cumsum(1)  # (M, passes, components)
    values = values - values.mean(0)
    target = components[:, None]
    slope = (values * target).sum(0) / values.square().sum(0).clamp_min(1e-12)
    error = (target - slope * values).square().sum(0)  # (passes, components)
    before = torch.cat([components.square().sum(0)[None], error[:-1]])
    saved = (before - error).cummin(0).values  # a digit never comes before a coarser one
    return saved.flatten().argsort(descending=True, stable=True)[: len(encoder.digits)]


def _least_squares(inputs: Tensor, targets: Tensor) -> Tensor:
    """The matrix that predicts `targets` `(M, b)` of centred `inputs` `(M, a)`, slightly damped, `(a, b)`."""
    centred = inputs - inputs.mean(0)
    damping = 1e-5 * len(inputs) * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    return torch.linalg.solve(centred.T @ centred + damping, centred.T @ targets)
