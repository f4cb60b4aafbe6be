"""The Gaussian posterior of KL tokenizers."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class DiagonalGaussian:
    """
    A Gaussian with independent channels.

    Args:
        mean: any shape.
        logvar: the same shape; clamp it before (the published models use [-30, 20]).
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor, dim: int = -1) -> "DiagonalGaussian":
        """Splits `moments` into mean and log-variance along `dim`, and clamps the latter to [-30, 20]."""
        mean, logvar = moments.chunk(2, dim=dim)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """`mean + std * noise`, with noise drawn from `generator` unless given."""
        if noise is None:
            device = generator.device if generator is not None else self.mean.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)

    def kl(self, dim: int = -1) -> Tensor:
        """Divergence from the standard normal in nats, summed over `dim`."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).sum(dim)
