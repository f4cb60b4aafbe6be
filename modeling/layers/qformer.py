"""The Q-Former (BLIP-2, arXiv 2301.12597) without its text half: learned queries that read image features."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention
from .causal import CrossAttention


class QFormerLayer(GradientCheckpointingLayer):
    """Post-norm: self-attention, cross-attention where there is one, GELU MLP."""

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, context_dim: int | None, eps: float, config: Any
    ) -> None:
        super().__init__()
        self.attn, self.norm1 = Attention(dim, num_heads, config=config), nn.LayerNorm(dim, eps=eps)
        self.cross_attn = None
        if context_dim is not None:
            bias = {"q_bias": True, "kv_bias": True, "proj_bias": True}
            self.cross_attn = CrossAttention(dim, num_heads, context_dim, config=config, **bias)
            self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.fc1, self.fc2 = nn.Linear(dim, mlp_dim), nn.Linear(mlp_dim, dim)
        self.norm3 = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor, context: Tensor, is_causal: bool) -> Tensor:
        """`(B, Q, D)` and features `(B, M, D')` to `(B, Q, D)`."""
        x = self.norm1(x + self.attn(x, is_causal=is_causal))
        if self.cross_attn is not None:
            x = self.norm2(x + self.cross_attn(x, self.cross_attn.keys_values(context)))
        return self.norm3(x + self.fc2(F.gelu(self.fc1(x))))


class QFormer(nn.Module):
    """
    BERT-shaped transformer over queries.

    Args:
        dim, num_layers, num_heads, mlp_dim: its shape.
        context_dim: width of the image features.
        cross_attention_every: layers 0, n, 2n, ... look at the features.
        is_causal: whether a query sees only those before it; the features are seen by all (SEED).
        eps: of the norms.
        config: carries the attention implementation.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        context_dim: int,
        *,
        cross_attention_every: int = 2,
        is_causal: bool = False,
        eps: float = 1e-12,
        config: Any = None,
    ) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.layers = nn.ModuleList(
            QFormerLayer(
                dim, num_heads, mlp_dim, context_dim if index % cross_attention_every == 0 else None, eps, config
            )
            for index in range(num_layers)
        )

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Queries `(Q, D)` and features `(B, M, D')` to `(B, Q, D)`."""
        x = self.norm(queries).expand(len(context), -1, -1)
        for layer in self.layers:
            x = layer(x, context, self.is_causal)
        return x
