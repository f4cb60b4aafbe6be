"""ViTamin (arXiv 2404.02132): convolutions to a sixteenth of a picture, then a ViT; and UniTok's mirror image of it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import TransformerBlock
from .attention_projection import NormedGEGLU
from .conv_codec import flatten_grid, unflatten_grid
from .upsampling import pictures_in_turn, upsample_conv

EPS = 1e-6
RESAMPLE = (None, "down", "up")


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MbConvLN(GradientCheckpointingLayer):
    """
    Norm, 1x1 convolution to a wide map, depthwise 3x3, 1x1 back, plus a skip.

    Args:
        in_channels, out_channels: widths.
        resample: "down" halves the picture (a stride; the skip is averaged), "up" doubles it (nearest neighbours and a
            convolution, in branch and skip), None keeps its size.
        expansion: of the wide map, relative to `out_channels`; its width is rounded to a multiple of 8.
    """

    def __init__(self, in_channels: int, out_channels: int, resample: str | None = None, *, expansion: int = 4) -> None:
        super().__init__()
        if resample not in RESAMPLE:
            raise ValueError(f"resample must be one of {RESAMPLE}, got {resample!r}.")
        self.resample, middle = resample, (expansion * out_channels + 4) // 8 * 8
        self.norm = LayerNorm2d(in_channels, eps=EPS)
        self.expand = nn.Conv2d(in_channels, middle, 1)
        self.up = nn.Conv2d(middle, middle, 3, padding=1) if resample == "up" else None
        stride = 2 if resample == "down" else 1
        self.depthwise = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle)
        self.project = nn.Conv2d(middle, out_channels, 1)
        self.shortcut = None
        if resample == "up":
            self.shortcut = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        elif in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', H', W')`."""
        branch = F.gelu(self.expand(self.norm(x)))
        if self.up is not None:
            branch = upsample_conv(branch, self.up)
        return self.project(F.gelu(self.depthwise(branch))) + self._skip(x)

    def _skip(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return upsample_conv(x, self.shortcut)
        if self.resample == "down":
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return x if self.shortcut is None else self.shortcut(x)


def stage(in_channels: int, out_channels: int, count: int, resample: str) -> nn.Sequential:
    """`count` blocks; the first changes width and size."""
    first = MbConvLN(in_channels, out_channels, resample)
    return nn.Sequential(first, *(MbConvLN(out_channels, out_channels) for _ in range(count - 1)))


def vit_blocks(dim: int, depth: int, num_heads: int, config: Any) -> nn.ModuleList:
    """Pre-norm blocks whose MLP is gated and has a norm of its own."""
    return nn.ModuleList(
        TransformerBlock(dim, num_heads, 2 * dim, eps=EPS, mlp=NormedGEGLU(dim), config=config) for _ in range(depth)
    )


class ViTaminStem(nn.Module):
    """Convolution of stride 2, norm, GELU, convolution."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=2, padding=1)
        self.norm = LayerNorm2d(width, eps=EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, C, H/2, W/2)`."""
        return self.conv2(F.gelu(self.norm(self.conv1(x))))


class ViTaminEncoder(nn.Module):
    """
    Pictures to tokens; a token stands for 16 x 16 pixels.

    Args:
        in_channels: of the picture.
        stem_width: of the first convolutions.
        widths: three, of the two convolutional stages and of the ViT.
        stage_depths: blocks of the two stages; the first of each halves the picture.
        depth, num_heads: of the ViT.
        config: carries the attention implementation.
    """

    def __init__(
        self,
        in_channels: int,
        stem_width: int,
        widths: tuple[int, ...] | list[int],
        stage_depths: tuple[int, ...] | list[int],
        depth: int,
        num_heads: int,
        config: Any = None,
    ) -> None:
        super().__init__()
        self.stem = ViTaminStem(in_channels, stem_width)
        fine, coarse, tokens = widths
        self.stages = nn.ModuleList(
            [
                stage(stem_width, fine, stage_depths[0], "down"),
                stage(fine, coarse, stage_depths[1], "down"),
            ]
        )
        self.pool_norm = LayerNorm2d(coarse, eps=EPS)
        self.pool_conv = nn.Conv2d(coarse, tokens, 3, stride=2, padding=1)
        # one vector for all positions: the original's constructor fixes it at zero, and adds it
        self.position_embedding = nn.Parameter(torch.zeros(tokens), requires_grad=False)
        self.layers = vit_blocks(tokens, depth, num_heads, config)
        self.norm = nn.LayerNorm(tokens, eps=EPS)

    def init_own_weights(self) -> None:
        """There is no position of its own."""
        init.zeros_(self.position_embedding)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, H/16 * W/16, D)`, row by row."""
        x = self.stem(pixels)
        for stage in self.stages:
            x = stage(x)
        x = flatten_grid(self.pool_conv(self.pool_norm(x))) + self.position_embedding
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class UpsampleConv(nn.Module):
    """Twice the size by nearest neighbours, then a convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', 2H, 2W)`."""
        return upsample_conv(x, self.conv)


class InverseStem(nn.Module):
    """Twice the size, norm, GELU, convolution to colours."""

    def __init__(self, in_channels: int, width: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = LayerNorm2d(width, eps=EPS)
        self.conv2 = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, 3, 2H, 2W)`."""
        return self.conv2(F.gelu(self.norm(upsample_conv(x, self.conv1))))


class ConvUpsampler(nn.Module):
    """
    A map of tokens to a picture of 16 times its size.

    Args:
        out_channels: of the picture.
        stem_width, widths: as for [`ViTaminEncoder`].
        stage_depths: blocks of the two stages that double the map, coarse to fine.
    """

    def __init__(
        self,
        out_channels: int,
        stem_width: int,
        widths: tuple[int, ...] | list[int],
        stage_depths: tuple[int, ...] | list[int],
    ) -> None:
        super().__init__()
        fine, coarse, tokens = widths
        self.upsample = nn.ModuleList(
            [
                UpsampleConv(tokens, coarse),
                stage(coarse, coarse, stage_depths[0], "up"),
                stage(coarse, fine, stage_depths[1], "up"),
                InverseStem(fine, stem_width, out_channels),
            ]
        )

    @pictures_in_turn
    def forward(self, x: Tensor) -> Tensor:
        """`(B, D, h, w)` to `(B, 3, 16h, 16w)`."""
        for level in self.upsample:
            x = level(x)
        return x


class ViTaminDecoder(nn.Module):
    """Tokens to pictures: a ViT, then convolutions that double the map four times; arguments as for the encoder."""

    def __init__(
        self,
        out_channels: int,
        stem_width: int,
        widths: tuple[int, ...] | list[int],
        stage_depths: tuple[int, ...] | list[int],
        depth: int,
        num_heads: int,
        config: Any = None,
    ) -> None:
        super().__init__()
        self.layers = vit_blocks(widths[-1], depth, num_heads, config)
        self.norm = nn.LayerNorm(widths[-1], eps=EPS)
        self.upsampler = ConvUpsampler(out_channels, stem_width, widths, stage_depths)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """`(B, h * w, D)` to `(B, 3, 16h, 16w)`."""
        for layer in self.layers:
            x = layer(x)
        return self.upsampler(unflatten_grid(self.norm(x), height, width))
