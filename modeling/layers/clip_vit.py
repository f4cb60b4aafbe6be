"""OpenAI CLIP's image tower (arXiv 2103.00020) as tokenizers read it: all patch tokens behind the last norm."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .attention import Mlp, TransformerBlock
from .conv_codec import flatten_grid
from .positions import resize_table_bicubic


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`."""

    def forward(self, x: Tensor) -> Tensor:
        """`(...)` to the same."""
        return x * torch.sigmoid(1.702 * x)


class QuickMlp(Mlp):
    """Linear, QuickGELU, Linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(dim, hidden_dim)
        self.act = QuickGELU()


class ClipViT(nn.Module):
    """
    Pre-norm ViT with a class token, a norm in front and one behind; the projection of the class token is left out.

    Args:
        image_size, patch_size: of the pictures whose positions are stored; others get positions resized as DINO does.
        dim, num_layers, num_heads, mlp_dim: its shape.
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
        mlp_dim: int,
        *,
        initializer_range: float = 0.02,
        config: Any = None,
    ) -> None:
        super().__init__()
        self.initializer_range, self.side = initializer_range, image_size // patch_size
        self.patch_embed = nn.Conv2d(3, dim, patch_size, stride=patch_size, bias=False)
        self.class_token = nn.Parameter(torch.empty(dim))
        self.position_embedding = nn.Parameter(torch.empty(self.side**2 + 1, dim))
        self.norm_pre = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            TransformerBlock(dim, num_heads, mlp_dim, mlp=QuickMlp(dim, mlp_dim), config=config)
            for _ in range(num_layers)
        )
        self.norm_post = nn.LayerNorm(dim)

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.initializer_range)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` to patch tokens `(B, N, D)` in raster order."""
        patches = self.patch_embed(pixels)
        positions = resize_table_bicubic(self.position_embedding[1:], (self.side, self.side), tuple(patches.shape[2:]))
        first = (self.class_token + self.position_embedding[0]).expand(len(pixels), 1, -1)
        x = self.norm_pre(torch.cat([first, flatten_grid(patches) + positions], 1))
        for layer in self.layers:
            x = layer(x)
        return self.norm_post(x[:, 1:])
