"""The decoder of a masked autoencoder as a pixel decoder of all tokens (RAE, arXiv 2510.11690, section 3)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .attention import TransformerBlock
from .conv_codec import flatten_grid
from .patches import unpatchify
from .positions import sincos_table


class MaeDecoder(nn.Module):
    """
    ViT with a learned class token and stored positions; its last layer writes pixels.

    Args:
        in_dim: width of the latents.
        dim, num_layers, num_heads, mlp_dim: of the transformer.
        patch_size: pixels that a token becomes, along a side.
        grid: side of the token grid that it was trained on; others are resized to it.
        eps: of the LayerNorms.
        qkv_bias: whether q, k and v have biases.
        num_channels: of the picture.
        config: carries the attention implementation.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        *,
        patch_size: int,
        grid: int,
        eps: float = 1e-12,
        qkv_bias: bool = True,
        num_channels: int = 3,
        config: Any = None,
    ) -> None:
        super().__init__()
        self.grid, self.patch_size, self.dim = grid, patch_size, dim
        self.embed = nn.Linear(in_dim, dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("position_embedding", torch.zeros(1 + grid**2, dim))
        self.layers = nn.ModuleList(
            TransformerBlock(dim, num_heads, mlp_dim, eps=eps, qkv_bias=qkv_bias, config=config)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.head = nn.Linear(dim, patch_size**2 * num_channels)

    def init_own_weights(self) -> None:
        """A small class token; sines and cosines of the grid with a row of zeros for the class token."""
        init.normal_(self.class_token, std=0.02)
        table = sincos_table((self.grid, self.grid), self.dim)
        init.copy_(self.position_embedding, torch.cat([table.new_zeros(1, self.dim), table]))

    def forward(self, latents: Tensor) -> Tensor:
        """`(B, C, h, w)` to `(B, 3, grid * p, grid * p)`, in the space of normalised pixels."""
        x = self.embed(flatten_grid(latents))  # (B, N, D)
        if tuple(latents.shape[2:]) != (self.grid, self.grid):
            x = x.transpose(1, 2).unflatten(2, tuple(latents.shape[2:]))
            x = F.interpolate(x, (self.grid, self.grid), mode="bilinear", align_corners=False)
            x = flatten_grid(x)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.position_embedding
        for layer in self.layers:
            x = layer(x)
        return unpatchify(self.head(self.norm(x))[:, 1:], self.grid, self.grid, self.patch_size)
