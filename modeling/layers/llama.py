"""The Llama-like block of image priors: RMSNorm, attention without bias, SwiGLU (families.md: A5)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .causal import CausalAttention
from .mlp import SwiGLU
from .norm import RMSNorm


def llama_layers(config: Any, count: int) -> nn.ModuleList:
    """`count` blocks of a configuration with LlamaGen's fields."""
    return nn.ModuleList(
        LlamaBlock(
            config.hidden_size,
            config.num_attention_heads,
            config.ffn_size,
            index,
            num_key_value_heads=config.num_key_value_heads,
            eps=config.rms_norm_eps,
            attention_dropout=config.attention_dropout,
            residual_dropout=config.residual_dropout,
            ffn_dropout=config.ffn_dropout,
            config=config,
        )
        for index in range(count)
    )


class LlamaBlock(GradientCheckpointingLayer):
    """
    `x += attn(norm1(x)); x += mlp(norm2(x))`.

    Args:
        dim, num_heads, layer_idx, num_key_value_heads: see [`CausalAttention`].
        ffn_dim: hidden width of the SwiGLU.
        eps: of the norms.
        attention_dropout, residual_dropout, ffn_dropout: in training.
        config: carries the attention implementation.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        layer_idx: int = 0,
        *,
        num_key_value_heads: int | None = None,
        eps: float = 1e-5,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        ffn_dropout: float = 0.0,
        config: Any = None,
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(dim, eps)
        self.attn = CausalAttention(
            dim,
            num_heads,
            layer_idx,
            num_key_value_heads=num_key_value_heads,
            dropout=attention_dropout,
            config=config,
        )
        self.norm2 = RMSNorm(dim, eps)
        self.mlp = SwiGLU(dim, ffn_dim)
        self.residual_dropout, self.ffn_dropout = nn.Dropout(residual_dropout), nn.Dropout(ffn_dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotary: Callable[[Tensor], Tensor] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """`(B, n, D)` to `(B, n, D)`; arguments as for [`CausalAttention`]."""
        x = x + self.residual_dropout(self.attn(self.norm1(x), mask, rotary, cache))
        return x + self.ffn_dropout(self.mlp(self.norm2(x)))
