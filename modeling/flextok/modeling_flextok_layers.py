"""Layers of FlexTok's encoder and flow decoder: patches, positions, blocks with one modulation per stream.

Shape suffixes in comments: B images, P patches, R registers, N = P + R, D width.
"""

from collections.abc import Sequence

import torch
from diffusers.models.normalization import FP32LayerNorm
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..layers.attention import Attention, attend
from ..layers.mlp import SwiGLU


def plain_norm(dim: int) -> FP32LayerNorm:
    """LayerNorm in float32 without weight and bias, eps 1e-5: the only norm of these models."""
    return FP32LayerNorm(dim, eps=1e-5, elementwise_affine=False)


def zero_init(linear: nn.Linear) -> nn.Linear:
    """Marks a layer that starts at zero, and zeroes it."""
    linear.zero_init = True
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def sincos_table(dim: int, height: int, width: int) -> Tensor:
    """
    The authors' fixed positions `(1, D, h, w)`: quarters sin(w), cos(w), sin(h), cos(h).

    Their table runs through w slowly and is then viewed as (h, w), so on a square the "w" quarters vary along rows.
    """
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    index = torch.arange(height * width)
    slow, fast = (index // height).double()[:, None] * omega, (index % height).double()[:, None] * omega
    table = torch.cat([slow.sin(), slow.cos(), fast.sin(), fast.cos()], 1)  # (h * w, D)
    return table.t().reshape(1, dim, height, width).float()


class PositionTable(nn.Module):
    """
    Positions of a grid (two sizes) or a sequence (one size).

    Args:
        dim: width D.
        sizes: largest sizes; smaller ones take the top left corner.
        kind: "sincos" (a stored table, grids only) or "learned" (one learned table per axis, summed).
    """

    def __init__(self, dim: int, sizes: Sequence[int], kind: str) -> None:
        super().__init__()
        self.dim, self.sizes, self.kind = dim, tuple(sizes), kind
        if kind == "sincos" and len(sizes) == 2:
            self.register_buffer("table", sincos_table(dim, *sizes))
        elif kind == "learned":
            self.table = nn.Parameter(0.02 * torch.randn(len(sizes), 1, dim, max(sizes)))
        else:
            raise ValueError(f"Positions of kind {kind!r} over {len(sizes)} axes are not known.")

    def init_own_weights(self) -> None:
        """Fresh values: the fixed table, or a narrow normal."""
        if self.kind == "sincos":
            init.copy_(self.table, sincos_table(self.dim, *self.sizes).to(self.table))
        else:
            init.normal_(self.table, std=0.02)

    def forward(self, *sizes: int) -> Tensor:
        """`(n, D)` for a sequence of n or a grid of n = rows x columns positions."""
        if any(size > most for size, most in zip(sizes, self.sizes, strict=True)):
            raise ValueError(f"There are positions for {self.sizes}, asked for {sizes}.")
        if self.kind == "sincos":
            return self.table[0, :, : sizes[0], : sizes[1]].flatten(1).t()
        axes = [self.table[i, 0, :, :size].t() for i, size in enumerate(sizes)]  # each (size, D)
        return axes[0] if len(axes) == 1 else (axes[0][:, None] + axes[1][None]).flatten(0, 1)


class TextAttention(nn.Module):
    """
    Cross-attention to text tokens, for decoders with text conditioning (ours; starts as zero).

    Args:
        dim, head_dim: width and head width of the pictures.
        text_dim: width of the text tokens.
    """

    def __init__(self, dim: int, head_dim: int, text_dim: int) -> None:
        super().__init__()
        self.head_dim, self.config = head_dim, None
        self.norm, self.query_norm, self.key_norm = plain_norm(dim), plain_norm(head_dim), plain_norm(head_dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(text_dim, 2 * dim, bias=False)
        self.proj = zero_init(nn.Linear(dim, dim, bias=False))

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """`(B, N, D)`, text `(B, T, Dt)` and bool mask `(B, T)` to `(B, N, D)`."""
        query = self.query(self.norm(x)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        key, value = self.key_value(text).unflatten(-1, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        query, key = self.query_norm(query), self.key_norm(key)
        return self.proj(attend(self, query, key, value, mask[:, None, None], scale=8.0 / self.head_dim))


class FlexTokBlock(GradientCheckpointingLayer):
    """
    Pre-norm block, with a modulation from the time for each stream of the sequence (adaLN) in the decoder.

    The softmax is scaled by `8 / head_dim` (muP), which is `head_dim ** -0.5` at 64. q and k are normalised per head.

    Args:
        dim, head_dim: width and head width.
        streams: 0 (no modulation), 1, or 2 (patches and registers apart).
        text_dim: width of text tokens to attend to, 0 for none.
    """

    def __init__(self, dim: int, head_dim: int, streams: int = 0, text_dim: int = 0) -> None:
        super().__init__()
        self.streams = streams
        self.norm1, self.norm2 = plain_norm(dim), plain_norm(dim)
        self.attn = Attention(
            dim,
            dim // head_dim,
            qkv_bias=False,
            proj_bias=False,
            scale=8.0 / head_dim,
            q_norm=plain_norm(head_dim),
            k_norm=plain_norm(head_dim),
        )
        self.mlp = SwiGLU(dim, int(2 * (4 * dim) / 3))
        self.modulation = zero_init(nn.Linear(dim, streams * 6 * dim)) if streams else None
        self.text_attn = TextAttention(dim, head_dim, text_dim) if text_dim else None

    def forward(
        self,
        x: Tensor,
        time: Tensor | None = None,
        sizes: Sequence[int] = (),
        mask: Tensor | None = None,
        text: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """
        `(B, N, D)` to `(B, N, D)`.

        Args:
            x: the sequence.
            time: activated time embedding `(B, D)`, where there is modulation.
            sizes: lengths of the streams.
            mask: bool `(N, N)`, True where a row may look.
            text: tokens `(B, T, Dt)` and their bool mask `(B, T)`.
        """
        if self.modulation is None:
            x = x + self.attn(self.norm1(x), mask)
            return x + self.mlp(self.norm2(x))
        values = self.modulation(time).unflatten(-1, (self.streams, 6, -1))
        gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = values.unbind(2)  # each (B, streams, D)
        x = x + gate(self.attn(modulate(self.norm1(x), shift_attn, scale_attn, sizes), mask), gate_attn, sizes)
        if self.text_attn is not None:
            x = x + self.text_attn(x, *text)
        return x + gate(self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp, sizes)), gate_mlp, sizes)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, sizes: Sequence[int]) -> Tensor:
    """`x (1 + scale) + shift` with the values of each stream; shift and scale are `(B, streams, D)`."""
    if shift.shape[1] == 1:
        return x * (1 + scale) + shift
    parts = x.split(list(sizes), 1)
    return torch.cat([part * (1 + scale[:, i, None]) + shift[:, i, None] for i, part in enumerate(parts)], 1)


def gate(x: Tensor, values: Tensor, sizes: Sequence[int]) -> Tensor:
    """`x * values` with the values `(B, streams, D)` of each stream."""
    if values.shape[1] == 1:
        return x * values
    return torch.cat([part * values[:, i, None] for i, part in enumerate(x.split(list(sizes), 1))], 1)


class TimeEmbedding(nn.Module):
    """
    Times in [0, 1] to `(B, D)`: cosines, then sines, of frequencies between `1000 / max_timestep` and 1/256 of it.

    Args:
        dim: width D.
        frequency_dim: number of cosines and sines.
        max_timestep: 1 or 1000 in published configurations.
    """

    def __init__(self, dim: int, frequency_dim: int, max_timestep: float) -> None:
        super().__init__()
        self.frequency_dim, self.scale = frequency_dim, 1000.0 / max_timestep
        self.fc1, self.fc2 = nn.Linear(frequency_dim, dim), nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """`(B,)` to `(B, D)`."""
        half = self.frequency_dim // 2
        exponents = torch.arange(half, device=t.device, dtype=torch.float32) / half
        angles = t.float()[:, None] * (self.scale * 256.0**-exponents)
        embedding = torch.cat([angles.cos(), angles.sin()], 1)
        return self.fc2(F.silu(self.fc1(embedding.to(self.fc1.weight.dtype))))
