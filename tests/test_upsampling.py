"""The saving of `upsample_conv` is one of time: its values are those of the plain way."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_vistok.modeling.layers import upsampling
from hf_vistok.modeling.layers.conv_codec import MaskGitDecoder
from hf_vistok.modeling.layers.conv_codec_taming import TamingDecoder
from hf_vistok.modeling.layers.upsampling import upsample_conv


def plain(x, conv):
    return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (8, 6), (16, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_plain_way(size, bias):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(6, 5, 3, padding=1, bias=bias), torch.randn(2, 6, *size)
    with torch.no_grad():
        assert upsampling._saves_time(x, conv)
        torch.testing.assert_close(upsample_conv(x, conv), plain(x, conv), atol=1e-5, rtol=1e-5)


def test_training_and_changed_layers_take_the_plain_way():
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(1, 4, 3, 3)
    upsample_conv(x, conv).sum().backward()
    assert conv.weight.grad is not None
    watched, half = copy.deepcopy(conv), copy.deepcopy(conv).bfloat16()
    calls = []
    watched.register_forward_hook(lambda *args: calls.append(1))

    class Adapter(nn.Conv2d):
        """Stands for a wrapper around a convolution."""

    with torch.no_grad():
        torch.testing.assert_close(upsample_conv(x, watched), plain(x, conv))
        assert calls
        assert not upsampling._saves_time(x.bfloat16(), half)
        assert not upsampling._saves_time(x, Adapter(4, 4, 3, padding=1))
        assert not upsampling._saves_time(x, conv.to("meta"))


@pytest.mark.parametrize("decoder", ["maskgit", "taming"])
def test_large_pictures_in_turn_equal_the_batch(decoder):
    torch.manual_seed(0)
    make = MaskGitDecoder if decoder == "maskgit" else TamingDecoder
    model, x = make(3, 32, [1, 1], 1, 4).eval(), torch.randn(3, 4, 48, 48)
    with torch.no_grad():
        found = model(x)
    torch.testing.assert_close(found, model(x).detach(), atol=1e-5, rtol=1e-5)  # with gradients: the batch at once
