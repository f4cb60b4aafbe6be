"""EVA-CLIP's ViT-g (arXiv 2211.07636) without its last block and norm, as BLIP-2, SEED and LaVIT read images."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .attention import TransformerBlock
from .conv_codec import flatten_grid


class EvaViT(nn.Module):
    """
    Pre-norm ViT with a class token; all its tokens are returned, without a last norm.

    The originals have no bias of keys. A bias of keys adds the same number to all scores of a query and changes
    nothing: the fused layer here has one, which adapters fill with zeros.

    Args:
        image_size, patch_size: of square images.
        dim, num_layers, num_heads, mlp_ratio: its shape; the hidden width is `int(mlp_ratio * dim)`.
        eps: of the norms.
        initializer_range: of fresh positions.
        config: carries the attention implementation.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        eps: float = 1e-6,
        initializer_range: float = 0.02,
        config: Any = None,
    ) -> None:
        super().__init__()
        self.initializer_range = initializer_range
        self.patch_embed = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.position_embedding = nn.Parameter(torch.empty((image_size // patch_size) ** 2 + 1, dim))
        self.layers = nn.ModuleList(
            TransformerBlock(dim, num_heads, int(mlp_ratio * dim), eps=eps, config=config) for _ in range(num_layers)
        )

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.initializer_range)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, 1 + N, D)`."""
        patches = flatten_grid(self.patch_embed(pixels))
        x = torch.cat([self.class_token.expand(len(pixels), -1, -1), patches], 1) + self.position_embedding
        for layer in self.layers:
            x = layer(x)
        return x
