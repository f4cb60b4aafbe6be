"""
The taming decoder with adaptive group norms and depth-to-space upsampling (families.md: V3; Open-MAGVIT2's additions).
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .conv_codec import flatten_grid
from .conv_codec_taming import TamingDecoder
from .patches import unpatchify
from .upsampling import pictures_in_turn, upsample_conv


class AdaptiveGroupNorm(nn.Module):
    """
    GroupNorm whose gain and bias come from the statistics of a style map.

    Args:
        channels: of the features.
        style_channels: of the style map.
        groups: of the norm.
        eps: of the norm, and added to the variance of the style.
    """

    def __init__(self, channels: int, style_channels: int, *, groups: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.gamma = nn.Linear(style_channels, channels)
        self.beta = nn.Linear(style_channels, channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """`(B, C, H, W)` and `(B, S, h, w)` to `(B, C, H, W)`."""
        style = style.flatten(2)
        std = (style.float().var(-1) + self.eps).sqrt().to(style.dtype)  # the unbiased variance
        gain, bias = self.gamma(std), self.beta(style.mean(-1))
        return F.group_norm(x, self.groups, eps=self.eps) * gain[..., None, None] + bias[..., None, None]


class AdaptiveTamingDecoder(TamingDecoder):
    """
    [`TamingDecoder`] whose input also sets the norm in front of every level.

    Args:
        out_channels, hidden_channels, channel_mult, num_res_blocks, z_channels: as there, and its keyword arguments.
        adaptive_norm: whether there is an [`AdaptiveGroupNorm`] before each level.
        depth_to_space: enlarge by a convolution to four times the channels, which become 2 x 2 pixels (channels in
            the order row, column, feature), and not by repeating pixels before the convolution.
    """

    def __init__(
        self,
        out_channels: int,
        hidden_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        *,
        adaptive_norm: bool = True,
        depth_to_space: bool = True,
        groups: int = 32,
        **options: bool | float,
    ) -> None:
        super().__init__(
            out_channels, hidden_channels, channel_mult, num_res_blocks, z_channels, groups=groups, **options
        )
        self.depth_to_space = depth_to_space
        widths = [hidden_channels * mult for mult in reversed(channel_mult)]
        if depth_to_space:
            self.upsample = nn.ModuleList(nn.Conv2d(width, 4 * width, 3, padding=1) for width in widths[:-1])
        self.adaptive = None
        if adaptive_norm:
            self.adaptive = nn.ModuleList(
                AdaptiveGroupNorm(width, z_channels, groups=groups) for width in [widths[0], *widths[:-1]]
            )

    def _enlarge(self, x: Tensor, level: int) -> Tensor:
        if self.depth_to_space:
            return unpatchify(flatten_grid(self.upsample[level](x)), *x.shape[2:], 2)
        return upsample_conv(x, self.upsample[level])

    @pictures_in_turn
    def forward(self, latents: Tensor) -> Tensor:
        """`(B, z, h, w)` to `(B, 3, H, W)`, not clamped."""
        x = self.mid(self.conv_in(latents))
        for i, level in enumerate(self.up):
            x = level(x if self.adaptive is None else self.adaptive[i](x, latents))
            if i < len(self.upsample):
                x = self._enlarge(x, i)
        return self.conv_out(F.silu(self.norm_out(x)))
