"""InternViT (arXiv 2312.14238): a ViT with LayerScale and, in its larger sizes, norms on q and k of full width."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Mlp, attend
from .conv_codec import flatten_grid
from .norm import RMSNorm

NORMS = ("layer_norm", "rms_norm")


def intern_norm(dim: int, kind: str, eps: float) -> nn.Module:
    """A norm by InternViT's name for it."""
    if kind not in NORMS:
        raise ValueError(f"norm_type must be one of {NORMS}, got {kind!r}.")
    return nn.LayerNorm(dim, eps=eps) if kind == "layer_norm" else RMSNorm(dim, eps)


class InternAttention(nn.Module):
    """
    Self-attention; q and k may be normalised over all heads together.

    Args:
        dim, num_heads: width and heads.
        qkv_bias: whether q, k and v have biases.
        qk_norm: whether q and k are normalised (RMSNorm over `dim`).
        eps: of those norms.
        config: carries the attention implementation.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, qk_norm: bool, eps: float, config: Any) -> None:
        super().__init__()
        self.config, self.num_heads = config, num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.q_norm, self.k_norm = (RMSNorm(dim, eps) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, N, D)` to the same."""
        query, key, value = self.qkv(x).chunk(3, -1)
        parts = (self.q_norm(query), self.k_norm(key), value)
        heads = [part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts]  # (B, H, N, d)
        return self.proj(attend(self, *heads))


class InternBlock(GradientCheckpointingLayer):
    """`x += ls1 * attn(norm1(x)); x += ls2 * mlp(norm2(x))`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        norm_type: str,
        eps: float,
        qkv_bias: bool,
        qk_norm: bool,
        scale: float,
        config: Any,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.norm1, self.norm2 = intern_norm(dim, norm_type, eps), intern_norm(dim, norm_type, eps)
        self.attn = InternAttention(dim, num_heads, qkv_bias, qk_norm, eps, config)
        self.mlp = Mlp(dim, mlp_dim)
        self.ls1, self.ls2 = (nn.Parameter(torch.full((dim,), float(scale))) for _ in range(2))

    def init_own_weights(self) -> None:
        """LayerScale starts at its factor."""
        init.constant_(self.ls1, self.scale)
        init.constant_(self.ls2, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, N, D)` to the same."""
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp(self.norm2(x))


class InternVit(nn.Module):
    """
    Pixels to tokens, the class token first, without a last norm.

    Args:
        image_size, patch_size, num_channels: of the native grid; other sizes interpolate the positions.
        dim, num_layers, num_heads, mlp_dim: of the transformer.
        norm_type: "layer_norm" or "rms_norm".
        eps: of the norms.
        qkv_bias, qk_norm: see [`InternAttention`].
        scale: at which LayerScale starts.
        config: carries the attention implementation.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        *,
        num_channels: int = 3,
        norm_type: str = "layer_norm",
        eps: float = 1e-6,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        scale: float = 1.0,
        config: Any = None,
    ) -> None:
        super().__init__()
        self.grid = image_size // patch_size
        self.patch_embed = nn.Conv2d(num_channels, dim, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position_embedding = nn.Parameter(torch.randn(1, 1 + self.grid**2, dim) * 0.02)
        options = {"norm_type": norm_type, "eps": eps, "qkv_bias": qkv_bias, "qk_norm": qk_norm, "scale": scale}
        self.layers = nn.ModuleList(
            InternBlock(dim, num_heads, mlp_dim, **options, config=config) for _ in range(num_layers)
        )

    def init_own_weights(self) -> None:
        """Small normal draws."""
        init.normal_(self.class_token, std=0.02)
        init.normal_(self.position_embedding, std=0.02)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Positions of the class token and a grid, `(1, 1 + rows * columns, D)`."""
        table = self.position_embedding
        if (rows, columns) == (self.grid, self.grid):
            return table
        patches = table[:, 1:].float().transpose(1, 2).unflatten(-1, (self.grid, self.grid))
        patches = F.interpolate(patches, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([table[:, :1], flatten_grid(patches).to(table)], 1)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """`(B, 3, H, W)` to the tokens in front of the first block and behind each, `(B, 1 + N, D)` each."""
        patches = self.patch_embed(pixels)
        tokens = torch.cat([self.class_token.expand(len(pixels), -1, -1), flatten_grid(patches)], 1)
        states = [tokens + self.positions(*patches.shape[2:])]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states
