"""Modulation by a condition (adaLN, arXiv 2212.09748)."""

from torch import Tensor, nn
from torch.nn import functional as F


class Modulation(nn.Module):
    """
    SiLU and a linear layer that starts at zero: a condition to `chunks` vectors.

    Args:
        dim: width of the condition.
        chunks: number of vectors (shifts, scales, gates).
        out_dim: width of each, `dim` by default.
    """

    def __init__(self, dim: int, chunks: int, out_dim: int | None = None) -> None:
        super().__init__()
        self.chunks = chunks
        self.linear = nn.Linear(dim, chunks * (dim if out_dim is None else out_dim))
        self.linear.zero_init = True

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """`(..., D)` to `chunks` tensors `(..., out_dim)`."""
        return self.linear(F.silu(condition)).chunk(self.chunks, -1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x * (1 + scale) + shift`."""
    return x * (1 + scale) + shift


def zero_marked(model: nn.Module) -> None:
    """Zeros the layers that carry `zero_init`, in models that transformers does not initialise."""
    for module in model.modules():
        if getattr(module, "zero_init", False):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
