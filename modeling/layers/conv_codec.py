"""Convolutional encoders and decoders of the VQGAN kind, in the dialects of published checkpoints."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .upsampling import pictures_in_turn, upsample_conv


class ResidualBlock(GradientCheckpointingLayer):
    """
    GroupNorm, SiLU, conv 3x3, twice, plus a skip.

    Args:
        in_channels, out_channels: widths; where they differ a 1x1 convolution `shortcut` adapts the skip.
        groups: of the GroupNorms (eps 1e-6).
        bias: whether convolutions have one.
        dropout: before the second convolution.
        shortcut_of_branch: apply the 1x1 convolution to the branch's *output* and drop the input (MaskGIT-VQGAN).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int = 32,
        bias: bool = True,
        dropout: float = 0.0,
        shortcut_of_branch: bool = False,
    ) -> None:
        super().__init__()
        self.shortcut_of_branch = shortcut_of_branch
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(out_channels if shortcut_of_branch else in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', H, W)`."""
        branch = self.conv1(F.silu(self.norm1(x)))
        branch = self.conv2(self.dropout(F.silu(self.norm2(branch))))
        if self.shortcut is None:
            return x + branch
        return branch + self.shortcut(branch if self.shortcut_of_branch else x)


class MaskGitEncoder(nn.Module):
    """
    The encoder of MaskGIT-VQGAN: no attention, no biases but the last, 2x2 average pooling (families.md: V2).

    Args:
        in_channels: of the image.
        hidden_channels: width that `channel_mult` multiplies.
        channel_mult: one factor per level, fine to coarse; every level but the last halves the picture.
        num_res_blocks: per level, and in the middle unless `num_mid_blocks` is given.
        z_channels: width of the output.
        dropout: in the residual blocks.
        num_mid_blocks: residual blocks in the middle.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        dropout: float = 0.0,
        num_mid_blocks: int | None = None,
    ) -> None:
        super().__init__()
        options = {"bias": False, "dropout": dropout, "shortcut_of_branch": True}
        self.conv_in = nn.Conv2d(in_channels, hidden_channels, 3, padding=1, bias=False)
        self.down, width = nn.ModuleList(), hidden_channels
        for mult in channel_mult:
            level = nn.ModuleList()
            for _ in range(num_res_blocks):
                level.append(ResidualBlock(width, hidden_channels * mult, **options))
                width = hidden_channels * mult
            self.down.append(level)
        mid = num_mid_blocks or num_res_blocks
        self.mid = nn.ModuleList(ResidualBlock(width, width, **options) for _ in range(mid))
        self.norm_out = nn.GroupNorm(32, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, z_channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, z, h, w)`."""
        x = self.conv_in(pixels)
        for i, level in enumerate(self.down):
            for block in level:
                x = block(x)
            if i < len(self.down) - 1:
                x = F.avg_pool2d(x, 2)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class MaskGitDecoder(nn.Module):
    """The decoder of MaskGIT-VQGAN; arguments as for [`MaskGitEncoder`]."""

    def __init__(
        self,
        out_channels: int,
        hidden_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        dropout: float = 0.0,
        num_mid_blocks: int | None = None,
    ) -> None:
        super().__init__()
        options = {"bias": False, "dropout": dropout, "shortcut_of_branch": True}
        width = hidden_channels * channel_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        mid = num_mid_blocks or num_res_blocks
        self.mid = nn.ModuleList(ResidualBlock(width, width, **options) for _ in range(mid))
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()  # both coarse to fine
        for i, mult in reversed(list(enumerate(channel_mult))):
            level = nn.ModuleList()
            for _ in range(num_res_blocks):
                level.append(ResidualBlock(width, hidden_channels * mult, **options))
                width = hidden_channels * mult
            self.up.append(level)
            if i > 0:
                self.upsample.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm_out = nn.GroupNorm(32, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    @pictures_in_turn
    def forward(self, latents: Tensor) -> Tensor:
        """`(B, z, h, w)` to `(B, 3, H, W)`, not clamped."""
        x = self.conv_in(latents)
        for block in self.mid:
            x = block(x)
        for i, level in enumerate(self.up):
            for block in level:
                x = block(x)
            if i < len(self.upsample):
                x = upsample_conv(x, self.upsample[i])
        return self.conv_out(F.silu(self.norm_out(x)))


def flatten_grid(grid: Tensor) -> Tensor:
    """`(B, D, h, w)` to `(B, h * w, D)`, row by row."""
    return grid.flatten(2).transpose(1, 2)


def unflatten_grid(sequence: Tensor, height: int, width: int) -> Tensor:
    """`(B, h * w, D)` to `(B, D, h, w)`, row by row."""
    return sequence.transpose(1, 2).unflatten(2, (height, width))


def grid_of(num_tokens: int, image_size: int | tuple[int, int] | None, factor: int) -> tuple[int, int]:
    """
    Rows and columns of a flat sequence of `num_tokens`: those of `image_size` pixels, or a square.

    Raises:
        ValueError: where the count does not fit.
    """
    if image_size is None:
        side = math.isqrt(num_tokens)
        if side * side != num_tokens:
            raise ValueError(f"{num_tokens} tokens are no square grid: give image_size=(height, width) in pixels.")
        return side, side
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if (height // factor) * (width // factor) != num_tokens:
        expected = (height // factor) * (width // factor)
        raise ValueError(f"A picture of {height} x {width} pixels has {expected} tokens, got {num_tokens}.")
    return height // factor, width // factor


def check_multiple(name: str, height: int, width: int, factor: int) -> None:
    """Raises a ValueError unless both sides are positive multiples of `factor`."""
    if height % factor or width % factor or not height or not width:
        raise ValueError(f"{name} takes images whose sides are multiples of {factor}, got {height} x {width}.")
