"""
Convolutional encoder and decoder of the taming kind (families.md: V1): LlamaGen's VQGAN and the many built on it.

Convolutions have biases; pictures shrink by a stride-2 convolution padded on the right and at the bottom; the coarsest
level and the middle have attention over all positions.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attend
from .conv_codec import ResidualBlock, flatten_grid, unflatten_grid
from .upsampling import pictures_in_turn, upsample_conv


class GridAttention(nn.Module):
    """
    One head of attention over all positions of a grid, with a residual connection.

    Args:
        channels: width.
        groups: of the GroupNorm (eps 1e-6).
    """

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, h, w)` to the same."""
        normed = self.norm(x)
        query, key, value = (flatten_grid(layer(normed))[:, None] for layer in (self.q, self.k, self.v))
        return x + self.proj_out(unflatten_grid(attend(self, query, key, value), *x.shape[2:]))


class TamingLevel(nn.Module):
    """
    Residual blocks of one level, each followed by attention where wanted.

    Args:
        in_channels, out_channels: the width changes in the first block.
        num_blocks: residual blocks.
        attention: whether each is followed by attention.
        groups, dropout: see [`ResidualBlock`].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        *,
        attention: bool = False,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(in_channels if i == 0 else out_channels, out_channels, groups=groups, dropout=dropout)
            for i in range(num_blocks)
        )
        self.attentions = nn.ModuleList(GridAttention(out_channels, groups) for _ in range(num_blocks * attention))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, h, w)` to `(B, C', h, w)`."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attentions):
                x = self.attentions[i](x)
        return x


class TamingMiddle(nn.Module):
    """Residual block, attention (where wanted), residual block."""

    def __init__(self, channels: int, *, attention: bool = True, groups: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.block1 = ResidualBlock(channels, channels, groups=groups, dropout=dropout)
        self.attention = GridAttention(channels, groups) if attention else None
        self.block2 = ResidualBlock(channels, channels, groups=groups, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, h, w)` to the same."""
        x = self.block1(x)
        if self.attention is not None:
            x = self.attention(x)
        return self.block2(x)


def attention_levels(attention: bool | Sequence[bool], count: int) -> list[bool]:
    """One flag per level, fine to coarse: a bare flag is that of the coarsest level."""
    if isinstance(attention, bool):
        return [False] * (count - 1) + [attention]
    if len(attention) != count:
        raise ValueError(f"attention must be one flag, or one for each of {count} levels, got {len(attention)}.")
    return list(attention)


class TamingEncoder(nn.Module):
    """
    Pixels to features.

    Args:
        in_channels: of the image.
        hidden_channels: width that `channel_mult` multiplies.
        channel_mult: one factor per level, fine to coarse; every level but the last halves the picture.
        num_res_blocks: per level.
        z_channels: width of the output; None leaves `norm_out` and `conv_out` away (families with heads of their own).
        attention: whether the coarsest level and the middle have attention (GigaTok: not); or one flag per level, fine
            to coarse.
        mid_attention: of the middle, where it differs; True where there is a flag per level.
        groups: of the GroupNorms.
        dropout: in residual blocks.
        out_kernel: kernel size of `conv_out`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int | None,
        *,
        attention: bool | Sequence[bool] = True,
        mid_attention: bool | None = None,
        groups: int = 32,
        dropout: float = 0.0,
        out_kernel: int = 3,
    ) -> None:
        super().__init__()
        options, flags = {"groups": groups, "dropout": dropout}, attention_levels(attention, len(channel_mult))
        self.conv_in = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        width, last = hidden_channels, len(channel_mult) - 1
        for i, mult in enumerate(channel_mult):
            out = hidden_channels * mult
            self.down.append(TamingLevel(width, out, num_res_blocks, attention=flags[i], **options))
            width = out
            if i < last:
                self.downsample.append(nn.Conv2d(width, width, 3, stride=2))
        self.mid = TamingMiddle(width, attention=bool(attention) if mid_attention is None else mid_attention, **options)
        self.norm_out = self.conv_out = None
        if z_channels is not None:
            self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
            self.conv_out = nn.Conv2d(width, z_channels, out_kernel, padding=out_kernel // 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, z, h, w)`."""
        x = self.conv_in(pixels)
        for i, level in enumerate(self.down):
            x = level(x)
            if i < len(self.downsample):
                x = self.downsample[i](F.pad(x, (0, 1, 0, 1)))
        x = self.mid(x)
        return x if self.conv_out is None else self.conv_out(F.silu(self.norm_out(x)))


class TamingDecoder(nn.Module):
    """
    Features to pixels; arguments as for [`TamingEncoder`].

    Every level has `num_res_blocks + 1` residual blocks; `up[0]` is the coarsest.
    """

    def __init__(
        self,
        out_channels: int,
        hidden_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        *,
        attention: bool | Sequence[bool] = True,
        mid_attention: bool | None = None,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        options, flags = {"groups": groups, "dropout": dropout}, attention_levels(attention, len(channel_mult))
        width = hidden_channels * channel_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = TamingMiddle(width, attention=bool(attention) if mid_attention is None else mid_attention, **options)
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for i, mult in enumerate(reversed(channel_mult)):
            out = hidden_channels * mult
            self.up.append(TamingLevel(width, out, num_res_blocks + 1, attention=flags[-1 - i], **options))
            width = out
            if i < len(channel_mult) - 1:
                self.upsample.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    @pictures_in_turn
    def forward(self, latents: Tensor) -> Tensor:
        """`(B, z, h, w)` to `(B, 3, H, W)`, not clamped."""
        x = self.mid(self.conv_in(latents))
        for i, level in enumerate(self.up):
            x = level(x)
            if i < len(self.upsample):
                x = upsample_conv(x, self.upsample[i])
        return self.conv_out(F.silu(self.norm_out(x)))


# The names of LlamaGen's files (and of the families built on it): prefix is "encoder" or "decoder".
TAMING_RENAMES: list[tuple[str, str]] = [
    (r"\bencoder\.conv_blocks\.(\d+)\.res\.(\d+)\.", r"encoder.down.\1.blocks.\2."),
    (r"\bencoder\.conv_blocks\.(\d+)\.attn\.(\d+)\.", r"encoder.down.\1.attentions.\2."),
    (r"\bencoder\.conv_blocks\.(\d+)\.downsample\.conv\.", r"encoder.downsample.\1."),
    (r"\bdecoder\.conv_blocks\.(\d+)\.res\.(\d+)\.", r"decoder.up.\1.blocks.\2."),
    (r"\bdecoder\.conv_blocks\.(\d+)\.attn\.(\d+)\.", r"decoder.up.\1.attentions.\2."),
    (r"\bdecoder\.conv_blocks\.(\d+)\.upsample\.conv\.", r"decoder.upsample.\1."),
    (r"\.mid\.0\.", ".mid.block1."),
    (r"\.mid\.1\.", ".mid.attention."),
    (r"\.mid\.2\.", ".mid.block2."),
    (r"\.nin_shortcut\.", ".shortcut."),
]
