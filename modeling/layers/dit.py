"""The block and the last layer of diffusion transformers with adaLN-zero (DiT, arXiv 2212.09748)."""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .adaln import Modulation, modulate
from .attention import Attention, Mlp
from .norm import RMSNorm


def dit_norm(dim: int, kind: str = "layer", eps: float = 1e-6) -> nn.Module:
    """The norm before a modulation: LayerNorm without affine ("layer"), or RMSNorm with a weight ("rms")."""
    if kind not in ("layer", "rms"):
        raise ValueError(f'norm must be "layer" or "rms", got {kind!r}.')
    return RMSNorm(dim, eps) if kind == "rms" else nn.LayerNorm(dim, eps=eps, elementwise_affine=False)


def per_token(condition: Tensor) -> Tensor:
    """A condition per picture `(B, D)` as `(B, 1, D)`; one per token `(B, N, D)` as it is."""
    return condition[:, None] if condition.ndim == 2 else condition


class DiTBlock(GradientCheckpointingLayer):
    """
    `x += gate * attn(modulate(norm(x))); x += gate * mlp(modulate(norm(x)))`.

    Args:
        dim, num_heads: width and heads.
        mlp_dim: hidden width of the MLP.
        eps: of the norms.
        mlp: a module in place of the tanh-GELU MLP.
        norm: "layer" (no affine) or "rms".
        shift: whether modulation also shifts (LightningDiT's `wo_shift`: scale and gate only).
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
        norm: str = "layer",
        shift: bool = True,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = dit_norm(dim, norm, eps)
        self.attn = Attention(dim, num_heads, **attention)
        self.norm2 = dit_norm(dim, norm, eps)
        self.mlp = Mlp(dim, mlp_dim, approximate="tanh") if mlp is None else mlp
        self.modulation = Modulation(dim, 6 if shift else 4)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None = None, rotary: Any = None) -> Tensor:
        """`x` `(B, N, D)` and a condition `(B, D)`, or one per token `(B, N, D)`, to `(B, N, D)`."""
        parts = self.modulation(per_token(condition))
        if not self.shift:
            zero = parts[0].new_zeros(())
            parts = (zero, *parts[:2], zero, *parts[2:])
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), mask, rotary)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiTHead(nn.Module):
    """
    The last layer: modulated norm (shift, scale), Linear that starts at zero.

    Args:
        dim: width.
        out_dim: width of the result.
        eps: of the norm.
        norm: "layer" (no affine) or "rms".
    """

    def __init__(self, dim: int, out_dim: int, *, eps: float = 1e-6, norm: str = "layer") -> None:
        super().__init__()
        self.norm = dit_norm(dim, norm, eps)
        self.modulation = Modulation(dim, 2)
        self.proj = nn.Linear(dim, out_dim)
        self.proj.zero_init = True

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x` `(B, N, D)` and a condition `(B, D)`, or one per token `(B, N, D)`, to `(B, N, out_dim)`."""
        shift, scale = self.modulation(per_token(condition))
        return self.proj(modulate(self.norm(x), shift, scale))
