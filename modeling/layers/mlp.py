"""Gated feed-forward layers."""

from torch import Tensor, nn
from torch.nn import functional as F


def swiglu_dim(dim: int, multiple_of: int = 256, ratio: float = 4.0) -> int:
    """Hidden width of a SwiGLU with the parameters of a plain MLP: two thirds of `ratio * dim`, rounded up."""
    hidden = int(2 * int(ratio * dim) / 3)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


class SwiGLU(nn.Module):
    """
    `w2(silu(w1 x) * w3 x)` with three matrices (LlamaGen family, FlexTok).

    Args:
        dim: width of input and output.
        hidden_dim: width between; see [`swiglu_dim`].
        bias: whether the three linear layers have a bias.
    """

    def __init__(self, dim: int, hidden_dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=bias)
        self.w2 = nn.Linear(hidden_dim, dim, bias=bias)
        self.w3 = nn.Linear(dim, hidden_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` to `(..., D)`."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class FusedSwiGLU(nn.Module):
    """
    `w3(silu(a) * b)` with `a, b = w12 x` (timm and DINOv2's names; FlowTok, MingTok, LightningDiT).

    Args:
        dim: width of input and output.
        hidden_dim: width between.
        bias: whether the two linear layers have a bias.
    """

    def __init__(self, dim: int, hidden_dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden_dim, bias=bias)
        self.w3 = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` to `(..., D)`."""
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)
