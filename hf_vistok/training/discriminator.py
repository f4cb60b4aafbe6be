"""The patch discriminator of TiTok's recipes: convolutions, blurred downsampling, logits on a 16 x 16 grid."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLUR = {2: (1.0, 1.0), 3: (1.0, 2.0, 1.0), 4: (1.0, 3.0, 3.0, 1.0), 5: (1.0, 4.0, 6.0, 4.0, 1.0)}


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zero padding after which a convolution gives ceil(size / stride); the odd pixel goes to the right and below."""
    pads = [max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) for size in (x.shape[-1], x.shape[-2])]
    left = [pad // 2 for pad in pads]
    return F.pad(x, (left[0], pads[0] - left[0], left[1], pads[1] - left[1]))


class SameConv2d(nn.Conv2d):
    """A convolution with [`pad_same`]."""

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', ceil(H / stride), ceil(W / stride))`."""
        return super().forward(pad_same(x, self.kernel_size[0], self.stride[0]))


class BlurDownsample(nn.Module):
    """
    Halves a feature map after a binomial blur.

    Args:
        kernel_size: 2 to 5.
    """

    def __init__(self, kernel_size: int = 4) -> None:
        super().__init__()
        row = torch.tensor(BLUR[kernel_size])
        kernel = torch.outer(row, row)
        self.register_buffer("kernel", (kernel / kernel.sum())[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C, ceil(H / 2), ceil(W / 2))`."""
        channels, kernel = x.shape[1], self.kernel.to(x.dtype)
        x = pad_same(x, kernel.shape[-1], 2)
        return F.conv2d(x, kernel.expand(channels, 1, -1, -1), stride=2, groups=channels)


class PatchDiscriminator(nn.Module):
    """
    Pictures to logits, high where a patch looks real.

    Args:
        channels: width of the first stage; each further stage doubles it.
        stages: number of halvings.
        num_channels: of the pictures.
        blur: blurred downsampling; otherwise average pooling.
        blur_kernel_size: of the blur.
    """

    def __init__(
        self,
        channels: int = 128,
        stages: int = 3,
        num_channels: int = 3,
        blur: bool = True,
        blur_kernel_size: int = 4,
    ) -> None:
        super().__init__()
        self.conv_in = SameConv2d(num_channels, channels, 5)
        widths = [channels] + [channels * 2**i for i in range(stages)]
        self.convs = nn.ModuleList(SameConv2d(a, b, 3) for a, b in zip(widths, widths[1:], strict=False))
        self.downs = nn.ModuleList(
            BlurDownsample(blur_kernel_size) if blur else nn.AvgPool2d(2, 2) for _ in range(stages)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(32, width) for width in widths[1:])
        self.head = SameConv2d(widths[-1], widths[-1], 1)
        self.conv_out = SameConv2d(widths[-1], 1, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1] to logits `(B, 1, 16, 16)`."""
        x = F.leaky_relu(self.conv_in(images), 0.1)
        for conv, down, norm in zip(self.convs, self.downs, self.norms, strict=True):
            x = F.leaky_relu(norm(down(conv(x))), 0.1)
        x = F.adaptive_max_pool2d(x, (16, 16))
        return self.conv_out(F.leaky_relu(self.head(x), 0.1))
