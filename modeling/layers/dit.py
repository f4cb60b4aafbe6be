"""The block and the last layer of diffusion transformers with adaLN-zero (DiT, arXiv 2212.09748)."""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .adaln import Modulation, modulate
from .attention import Attention, Mlp


class DiTBlock(GradientCheckpointingLayer):
    """
    `x += gate * attn(modulate(norm(x))); x += gate * mlp(modulate(norm(x)))`, norms without affine.

    Args:
        dim, num_heads: width and heads.
        mlp_dim: hidden width of the MLP.
        eps: of the norms.
        mlp: a module in place of the tanh-GELU MLP.
        attention: keyword arguments of [`Attention`].
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        eps: float = 1e-6,
        mlp: nn.Module | None = None,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps, elementwise_affine=False)
        self.attn = Attention(dim, num_heads, **attention)
        self.norm2 = nn.LayerNorm(dim, eps=eps, elementwise_affine=False)
        self.mlp = Mlp(dim, mlp_dim, approximate="tanh") if mlp is None else mlp
        self.modulation = Modulation(dim, 6)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None = None, rotary: Any = None) -> Tensor:
        """`x` `(B, N, D)` and a condition `(B, D)` to `(B, N, D)`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition[:, None])
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), mask, rotary)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiTHead(nn.Module):
    """
    The last layer: modulated norm (shift, scale), Linear that starts at zero.

    Args:
        dim: width.
        out_dim: width of the result.
        eps: of the norm.
    """

    def __init__(self, dim: int, out_dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps, elementwise_affine=False)
        self.modulation = Modulation(dim, 2)
        self.proj = nn.Linear(dim, out_dim)
        self.proj.zero_init = True

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x` `(B, N, D)` and a condition `(B, D)` to `(B, N, out_dim)`."""
        shift, scale = self.modulation(condition[:, None])
        return self.proj(modulate(self.norm(x), shift, scale))
