"""Norms that torch does not have, or not with these options."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init


class RMSNorm(nn.Module):
    """
    `x / rms(x) * weight`, in float32 up to the weight (LlamaGen family: eps 1e-5; most others 1e-6).

    Args:
        dim: width of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` to `(..., D)`."""
        return F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(x.dtype) * self.weight


class GainBiasLayerNorm(nn.Module):
    """
    LayerNorm with separate switches for gain and bias (L3M's `LPLayerNorm`; torch has no bias without gain).

    Args:
        dim: width of the last axis.
        eps: added to the variance.
        gain, bias: whether there is a `weight`, a `bias`.
    """

    def __init__(self, dim: int, eps: float = 1e-5, *, gain: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim)) if gain else None
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def init_own_weights(self) -> None:
        """Gain 1, bias 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` to `(..., D)`."""
        return F.layer_norm(x, (self.dim,), self.weight, self.bias, self.eps)
