"""The decoder block of DETR in its pre-norm form, where positions are added to queries and keys in every layer."""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Mlp, attend


class QueryAttention(nn.Module):
    """
    Multi-head attention whose queries, keys and values come from three inputs.

    Args:
        dim, num_heads: width and heads.
        config: carries the attention implementation.
    """

    def __init__(self, dim: int, num_heads: int, config: Any = None) -> None:
        super().__init__()
        self.config, self.head_dim = config, dim // num_heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """`(B, N, D)`, `(B, M, D)`, `(B, M, D)` to `(B, N, D)`; `mask` broadcasts to `(B, H, N, M)`."""
        heads = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        return self.proj(attend(self, *heads, mask))


class QueryBlock(GradientCheckpointingLayer):
    """
    Self-attention of the queries, cross-attention to a memory, MLP.

    Args:
        dim, num_heads: width and heads.
        mlp_dim: hidden width of the MLP.
        cross_attention: False leaves the memory out: the encoder block of DETR.
        config: carries the attention implementation.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, *, cross_attention: bool = True, config: Any = None
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim) if cross_attention else None
        self.self_attn = QueryAttention(dim, num_heads, config)
        self.cross_attn = QueryAttention(dim, num_heads, config) if cross_attention else None
        self.mlp = Mlp(dim, mlp_dim)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        positions: Tensor,
        memory_positions: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            x: queries `(B, N, D)`.
            memory: `(B, M, D)`; it is not normalised here.
            positions, memory_positions: `(N, D)` and `(M, D)`; values stay without them.
            mask: bool, which of the memory is seen, broadcastable to `(B, H, N, M)`.
        """
        normed = self.norm1(x)
        placed = normed + positions
        y = x + self.self_attn(placed, placed, normed)
        if self.cross_attn is None:
            return y + self.mlp(self.norm2(y))
        y = y + self.cross_attn(self.norm2(y) + positions, memory + memory_positions, memory, mask)
        return y + self.mlp(self.norm3(y))


# nn.MultiheadAttention's names -> ours; `split_packed_projections` does the rest
QUERY_BLOCK_RENAMES: list[tuple[str, str]] = [
    (r"\.multihead_attn\.", ".cross_attn."),
    (r"(self_attn|cross_attn)\.out_proj\.", r"\1.proj."),
    (r"\.linear(1|2)\.", r".mlp.fc\1."),
]


def split_packed_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`in_proj_weight` and `in_proj_bias`, rows of q, k and v one after the other, as three layers."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, found, kind = name.partition(".in_proj_")
        if not found:
            split[name] = tensor
            continue
        for part, rows in zip("qkv", tensor.chunk(3), strict=True):
            split[f"{prefix}.{part}.{kind}"] = rows
    return split
