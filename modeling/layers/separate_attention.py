"""Self-attention with one linear layer each for q, k and v (families.md: A3, A4)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .attention import attend


class SeparateAttention(nn.Module):
    """
    Multi-head self-attention.

    Args:
        dim, num_heads: width and heads.
        q_bias, k_bias, v_bias: whether these layers have a bias (EVA, BEiT: k has none).
        q_norm, k_norm: modules applied to each head's q and k, `(B, H, N, d)`.
        config: carries the attention implementation.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        q_bias: bool = True,
        k_bias: bool = True,
        v_bias: bool = True,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        config: Any = None,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"The width {dim} is no multiple of the number of heads {num_heads}.")
        self.config, self.head_dim = config, dim // num_heads
        self.q = nn.Linear(dim, dim, bias=q_bias)
        self.k = nn.Linear(dim, dim, bias=k_bias)
        self.v = nn.Linear(dim, dim, bias=v_bias)
        self.proj = nn.Linear(dim, dim)
        self.q_norm, self.k_norm = q_norm or nn.Identity(), k_norm or nn.Identity()

    def forward(
        self, x: Tensor, mask: Tensor | None = None, rotary: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """`(B, N, D)` to the same; `mask` as for `attend`, `rotary` rotates q and k `(B, H, N, d)`."""
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = rotary(query), rotary(key)
        return self.proj(attend(self, query, key, value, mask))


def split_fused_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`<attn>.qkv.weight`, `<attn>.q_bias` and `<attn>.v_bias` as the layers of [`SeparateAttention`]."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, _, last = name.rpartition(".")
        if name.endswith(".qkv.weight"):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                split[f"{prefix.removesuffix('.qkv')}.{part}.weight"] = rows
        elif last in ("q_bias", "v_bias"):
            split[f"{prefix}.{last[0]}.bias"] = tensor
        else:
            split[name] = tensor
    return split
