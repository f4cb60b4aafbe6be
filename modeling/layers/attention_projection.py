"""The gated MLP of UniTok and DualToken, with a norm of its own, and their attention projection between widths."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache

from .attention import attend


class NormedGEGLU(nn.Module):
    """
    `w2(gelu(w0 y) * w1 y)` of `y = norm(x)`, with GELU's tanh form.

    Args:
        dim: width of input and output.
        ratio: of the hidden width to it.
        eps: of the norm.
    """

    def __init__(self, dim: int, ratio: float = 2.0, *, eps: float = 1e-6) -> None:
        super().__init__()
        hidden = int(ratio * dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.w0 = nn.Linear(dim, hidden)
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` to `(..., D)`."""
        x = self.norm(x)
        return self.w2(F.gelu(self.w0(x), approximate="tanh") * self.w1(x))


class ProjectionAttention(nn.Module):
    """
    Self-attention from one width to another; heads work in the wider one.

    On the way down the heads are averaged (and pooled to the goal's width where a head has another), on the way up they
    lie side by side.

    Args:
        in_dim, out_dim: widths of input and output.
        num_heads: a divisor of the wider one.
        is_causal: whether a token sees only itself and those before it.
        layer_idx: number of the layer in a cache.
        config: carries the attention implementation.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_heads: int,
        *,
        is_causal: bool = False,
        layer_idx: int = 0,
        config: Any = None,
    ) -> None:
        super().__init__()
        inner = max(in_dim, out_dim)
        if inner % num_heads:
            raise ValueError(f"The width {inner} is no multiple of the number of heads {num_heads}.")
        self.config, self.is_causal, self.layer_idx = config, is_causal, layer_idx
        self.num_heads, self.head_dim, self.out_dim = num_heads, inner // num_heads, out_dim
        self.averages = in_dim > out_dim
        self.q = nn.Linear(in_dim, inner)
        self.k = nn.Linear(in_dim, inner, bias=False)
        self.v = nn.Linear(in_dim, inner)
        self.proj = nn.Linear(out_dim, out_dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """`(B, N, D)` to `(B, N, D')`; with a cache `mask` says what the new tokens see."""
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )  # (B, H, N, d)
        if cache is None:
            out = attend(self, query, key, value, is_causal=self.is_causal)
        else:
            key, value = cache.update(key, value, self.layer_idx)
            out = attend(self, query, key, value, mask)
        if self.averages:
            out = out.unflatten(-1, (self.num_heads, self.head_dim)).mean(2)  # (B, N, d)
            if self.head_dim != self.out_dim:
                out = F.adaptive_avg_pool1d(out, self.out_dim)
        return self.proj(out)


class AttentionProjection(nn.Module):
    """
    Tokens of one width to another: `y = proj(norm3 x) + attn(norm1 x)`, then `y + mlp(norm2 y)` (UniTok).

    Args:
        in_dim, out_dim, num_heads, is_causal, layer_idx, config: see [`ProjectionAttention`].
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_heads: int,
        *,
        is_causal: bool = False,
        layer_idx: int = 0,
        config: Any = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.attn = ProjectionAttention(
            in_dim, out_dim, num_heads, is_causal=is_causal, layer_idx=layer_idx, config=config
        )
        self.norm3 = nn.LayerNorm(in_dim)
        self.proj = nn.Linear(in_dim, out_dim)
        self.norm2 = nn.LayerNorm(out_dim)
        self.mlp = NormedGEGLU(out_dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """`(B, N, D)` to `(B, N, D')`; `mask` and `cache` as for [`ProjectionAttention`]."""
        x = self.proj(self.norm3(x)) + self.attn(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))
