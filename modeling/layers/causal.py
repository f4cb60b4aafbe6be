"""Causal self-attention over a key-value cache, and cross-attention whose keys are computed once."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import Cache

from .attention import attend


class CausalAttention(nn.Module):
    """
    Self-attention with one linear layer for q, k and v, on a cache of transformers.

    Args:
        dim: width.
        num_heads: heads of the queries; the head width is `dim // num_heads`.
        layer_idx: number of the layer in the cache.
        num_key_value_heads: heads of keys and values, a divisor of `num_heads`; as many by default.
        qkv_bias, proj_bias: whether the two linear layers have a bias.
        q_norm, k_norm: modules applied to each head's q and k, `(B, H, n, d)`.
        dropout: of attention weights, in training.
        config: carries the attention implementation.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        layer_idx: int = 0,
        *,
        num_key_value_heads: int | None = None,
        qkv_bias: bool = False,
        proj_bias: bool = False,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        dropout: float = 0.0,
        config: Any = None,
    ) -> None:
        super().__init__()
        kv_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        if dim % num_heads or num_heads % kv_heads:
            raise ValueError(f"A width of {dim}, {num_heads} heads and {kv_heads} key-value heads do not go together.")
        self.config, self.layer_idx, self.dropout = config, layer_idx, dropout
        self.num_heads, self.num_key_value_heads, self.head_dim = num_heads, kv_heads, dim // num_heads
        self.qkv = nn.Linear(dim, (num_heads + 2 * kv_heads) * self.head_dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.q_norm, self.k_norm = q_norm or nn.Identity(), k_norm or nn.Identity()

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotary: Callable[[Tensor], Tensor] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """
        Attends from the new positions to those in the cache and to each other.

        Args:
            x: `(B, n, D)`, the new positions.
            mask: bool, broadcastable to `(B, H, n, M)`.
            rotary: rotates q and k of the new positions, `(B, H, n, d)` to the same.
            cache: holds the positions before; the new ones are added.
        """
        heads = (self.num_heads, self.num_key_value_heads, self.num_key_value_heads)
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H + 2H', n, d)
        query, key, value = qkv.split(heads, dim=1)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = rotary(query), rotary(key)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        dropout = self.dropout if self.training else 0.0
        return self.proj(attend(self, query, key, value, mask, dropout=dropout))


class CrossAttention(nn.Module):
    """
    Attention to a condition; `keys_values` is computed once for all steps.

    Args:
        dim: width.
        num_heads: heads.
        context_dim: width of the condition, `dim` by default.
        q_bias, kv_bias, proj_bias: whether the linear layers have a bias.
        q_norm, k_norm: modules applied to each head's q and k, `(B, H, n, d)`.
        config: carries the attention implementation.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        context_dim: int | None = None,
        *,
        q_bias: bool = False,
        kv_bias: bool = False,
        proj_bias: bool = False,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        config: Any = None,
    ) -> None:
        super().__init__()
        self.config, self.num_heads, self.head_dim = config, num_heads, dim // num_heads
        context_dim = dim if context_dim is None else context_dim
        self.q = nn.Linear(dim, dim, bias=q_bias)
        self.k = nn.Linear(context_dim, dim, bias=kv_bias)
        self.v = nn.Linear(context_dim, dim, bias=kv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.q_norm, self.k_norm = q_norm or nn.Identity(), k_norm or nn.Identity()

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, n, d)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(B, H, T, d)` of a condition `(B, T, D')`."""
        return self.k_norm(self._heads(self.k(context))), self._heads(self.v(context))

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        """`(B, n, D)` to `(B, n, D)`; `mask` bool, broadcastable to `(B, H, n, T)`."""
        query = self.q_norm(self._heads(self.q(x)))
        return self.proj(attend(self, query, *keys_values, mask))
