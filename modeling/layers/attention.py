"""Attention and transformer blocks, on the attention interface of transformers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """
    Attention by the implementation that `module.config` names ("sdpa" where there is no config).

    Args:
        module: the calling layer; its `config` may carry `_attn_implementation`.
        query: `(B, H, N, d)`.
        key, value: `(B, H', M, d)`; H' may be a divisor of H (grouped queries).
        mask: bool, True where a query may look, or a float bias; broadcastable to `(B, H, N, M)`.
        scale: factor of the scores, `d ** -0.5` by default.
        is_causal: a causal mask in place of `mask`.

    Returns:
        `(B, N, H * d)`.
    """
    name = getattr(getattr(module, "config", None), "_attn_implementation", None) or "sdpa"
    grouped = query.shape[1] != key.shape[1]
    if name == "sdpa":
        options = {"is_causal": is_causal, "scale": scale, "enable_gqa": grouped}
        attention = _sdpa_float32 if _slow_backward(query) else F.scaled_dot_product_attention
        out = attention(query, key, value, mask, dropout, **options).transpose(1, 2)
    elif name == "eager":
        out = _eager(query, key, value, mask, scale, is_causal, dropout).transpose(1, 2)
    else:
        module.num_key_value_groups = query.shape[1] // key.shape[1]
        module.is_causal = is_causal
        out, _ = ALL_ATTENTION_FUNCTIONS[name](module, query, key, value, mask, dropout=dropout, scaling=scale)
    return out.flatten(2)


def _slow_backward(query: Tensor) -> bool:
    """Whether the backward pass of this attention is slower than in float32: bfloat16 on a CPU."""
    low = query.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return query.device.type == "cpu" and low and torch.is_grad_enabled()


def _sdpa_float32(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, **options: Any
) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        mask = mask.float() if mask is not None and mask.dtype != torch.bool else mask
        out = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), mask, dropout, **options)
    return out.to(value.dtype)


def _eager(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, is_causal: bool, dropout: float
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return F.dropout(scores.softmax(-1, dtype=torch.float32).to(value.dtype), dropout) @ value


class Attention(nn.Module):
    """
    Multi-head self-attention with one linear layer for q, k and v.

    Args:
        dim: width.
        num_heads: heads; the head width is `dim // num_heads`.
        qkv_bias, proj_bias: whether the two linear layers have a bias.
        scale: factor of the scores, `head_dim ** -0.5` by default.
        q_norm, k_norm: modules applied to each head's q and k, `(B, H, N, d)`.
        config: carries the attention implementation.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        scale: float | None = None,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        config: Any = None,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"The width {dim} is no multiple of the number of heads {num_heads}.")
        self.config = config
        self.num_heads, self.head_dim, self.scale = num_heads, dim // num_heads, scale
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.q_norm, self.k_norm = q_norm or nn.Identity(), k_norm or nn.Identity()

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotary: Any = None,
        num_queries: int | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """
        Args:
            x: `(B, N, D)`.
            mask: see [`attend`].
            rotary: function that rotates q and k, `(B, H, N, d)` to the same.
            num_queries: attend from the last `num_queries` positions only (all others are still looked at).
            is_causal: a causal mask in place of `mask`.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, N, 3, H, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, N, d)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = rotary(query), rotary(key)
        if num_queries is not None:
            query = query[:, :, -num_queries:]
        return self.proj(attend(self, query, key, value, mask, scale=self.scale, is_causal=is_causal))


class Mlp(nn.Module):
    """Linear, GELU (exact unless `approximate="tanh"`), Linear."""

    def __init__(self, dim: int, hidden_dim: int, *, bias: bool = True, approximate: str = "none") -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, bias=bias)
        self.act = nn.GELU(approximate=approximate)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` to `(..., D)`."""
        return self.fc2(self.act(self.fc1(x)))


class TransformerBlock(GradientCheckpointingLayer):
    """
    Pre-norm block: `x += attn(norm1(x)); x += mlp(norm2(x))`.

    Args:
        dim, num_heads: width and heads.
        mlp_dim: hidden width of the MLP.
        eps: of the two LayerNorms.
        mlp: a module in place of the GELU MLP.
        attention: keyword arguments of [`Attention`].
        config: carries the attention implementation.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        eps: float = 1e-5,
        mlp: nn.Module | None = None,
        config: Any = None,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, config=config, **attention)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, mlp_dim) if mlp is None else mlp

    def forward(
        self, x: Tensor, mask: Tensor | None = None, rotary: Any = None, num_queries: int | None = None
    ) -> Tensor:
        """`(B, N, D)` to `(B, N, D)`, or to the last `num_queries` positions where given."""
        attended = self.attn(self.norm1(x), mask, rotary, num_queries)
        x = (x if num_queries is None else x[:, -num_queries:]) + attended
        return x + self.mlp(self.norm2(x))
