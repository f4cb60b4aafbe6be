"""Sinusoids of times and other scalars, and the two linear layers behind them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ORDERS = ("cos_sin", "sin_cos", "interleaved")


def sinusoid(values: Tensor, dim: int, period: float = 10000.0, order: str = "cos_sin") -> Tensor:
    """
    Sines and cosines of scalars at `dim / 2` frequencies from 1 down to (but not reaching) `1 / period`.

    Args:
        values: `(B,)`.
        dim: even width.
        period: base of the frequencies, `period ** (-2i / dim)`.
        order: "cos_sin" and "sin_cos" are two blocks, "interleaved" is sin, cos, sin, cos.

    Returns:
        float32 `(B, dim)`.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, got {order!r}.")
    half = dim // 2
    frequencies = torch.exp(-math.log(period) * torch.arange(half, device=values.device, dtype=torch.float32) / half)
    angles = values.float()[:, None] * frequencies
    if order == "interleaved":
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
    blocks = [angles.cos(), angles.sin()]
    return torch.cat(blocks if order == "cos_sin" else blocks[::-1], 1)


class TimeEmbedding(nn.Module):
    """
    Sinusoid, Linear, SiLU, Linear (DiT).

    Args:
        dim: width of the result.
        frequency_dim: width of the sinusoid.
        scale: factor of the times, 1000 where models were trained on times in [0, 1] with the usual frequencies.
        period, order: see [`sinusoid`].
    """

    def __init__(
        self,
        dim: int,
        frequency_dim: int = 256,
        *,
        scale: float = 1.0,
        period: float = 10000.0,
        order: str = "cos_sin",
    ) -> None:
        super().__init__()
        self.frequency_dim, self.scale, self.period, self.order = frequency_dim, scale, period, order
        self.fc1, self.fc2 = nn.Linear(frequency_dim, dim), nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """`(B,)` to `(B, dim)`."""
        waves = sinusoid(self.scale * t.float(), self.frequency_dim, self.period, self.order)
        return self.fc2(F.silu(self.fc1(waves.to(self.fc1.weight.dtype))))


class FourierTimeEmbedding(nn.Module):
    """
    Sines and cosines at random frequencies that are stored and never trained, Linear, SiLU, Linear (RAE, RecTok).

    Args:
        dim: width of the result.
        num_frequencies: number of frequencies.
        std: standard deviation of fresh frequencies.
    """

    def __init__(self, dim: int, num_frequencies: int = 256, *, std: float = 1.0) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(std * torch.randn(num_frequencies), requires_grad=False)
        self.fc1, self.fc2 = nn.Linear(2 * num_frequencies, dim), nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """`(B,)` to `(B, dim)`."""
        angles = 2 * math.pi * t.float()[:, None] * self.frequencies.float()
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        return self.fc2(F.silu(self.fc1(waves.to(self.fc1.weight.dtype))))
