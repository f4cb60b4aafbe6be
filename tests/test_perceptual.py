"""LPIPS on weights that the user brings."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_vistok.training.lpips import BACKBONES
from hf_vistok.training.perceptual import build_network, perceptual_distance
from hf_vistok.training.recipe import RecipeError


def torchvision_vgg() -> nn.Sequential:
    """VGG16's features as torchvision lays them out."""
    layers, channels = [], 3
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


def torchvision_alexnet() -> nn.Sequential:
    conv, relu, pool = nn.Conv2d, nn.ReLU, nn.MaxPool2d
    return nn.Sequential(
        conv(3, 64, 11, 4, 2), relu(), pool(3, 2), conv(64, 192, 5, padding=2), relu(), pool(3, 2),
        conv(192, 384, 3, padding=1), relu(), conv(384, 256, 3, padding=1), relu(), conv(256, 256, 3, padding=1),
        relu(), pool(3, 2),
    )  # fmt: skip


def reference(features: nn.Sequential, taps: list[int], heads: list[torch.Tensor], a, b) -> torch.Tensor:
    """LPIPS as published, on pictures in [0, 1]."""
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    total = 0
    x, y = (((image * 2 - 1) - shift) / scale for image in (a, b))
    for index, layer in enumerate(features):
        x, y = layer(x), layer(y)
        if index in taps:
            p, q = (v / (v.square().sum(1, keepdim=True).sqrt() + 1e-10) for v in (x, y))
            total = total + ((p - q).square() * heads[taps.index(index)]).sum(1).mean((1, 2))
    return total.mean()


@pytest.mark.parametrize("kind", ["lpips_vgg", "lpips_alex"])
def test_lpips_on_the_weights_of_a_file(tmp_path, kind):
    torch.manual_seed(0)
    build, taps = {
        "lpips_vgg": (torchvision_vgg, [3, 8, 15, 22, 29]),
        "lpips_alex": (torchvision_alexnet, [1, 4, 7, 9, 11]),
    }[kind]
    features = build().requires_grad_(False)
    sizes = [features[tap - 1].out_channels for tap in taps]
    heads = [torch.rand(1, size, 1, 1) for size in sizes]
    tensors = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save({**tensors, "classifier.0.weight": torch.zeros(2)}, tmp_path / "backbone.pth")
    save_file({f"lin{i}.model.1.weight": head for i, head in enumerate(heads)}, tmp_path / "heads.safetensors")
    network = build_network(kind, str(tmp_path / "backbone.pth"), str(tmp_path / "heads.safetensors"))
    a, b = torch.rand(2, 2, 3, 64, 64)
    expected = reference(features, taps, heads, a, b)
    a.requires_grad_(True)
    value = perceptual_distance(network, a, b)
    assert torch.allclose(value, expected, rtol=1e-4)
    value.backward()
    assert a.grad.abs().sum() > 0 and not any(p.requires_grad for p in network.parameters())
    plain = build_network(kind, str(tmp_path / "backbone.pth"))
    assert torch.allclose(
        perceptual_distance(plain, a, b), reference(features, taps, [torch.ones(1, n, 1, 1) for n in sizes], a, b)
    )


def test_files_that_do_not_fit(tmp_path):
    with pytest.raises(RecipeError, match=r"needs `perceptual\.weights`"):
        build_network("lpips_vgg")
    with pytest.raises(RecipeError, match="there is no file"):
        build_network("lpips_vgg", str(tmp_path / "none.pth"))
    (tmp_path / "bad.pth").write_bytes(b"no file of torch")
    with pytest.raises(RecipeError, match="cannot be read"):
        build_network("lpips_vgg", str(tmp_path / "bad.pth"))
    save_file({"features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "alex.safetensors")
    with pytest.raises(RecipeError, match=r"features\.0\.weight is missing or of another shape"):
        build_network("lpips_vgg", str(tmp_path / "alex.safetensors"))
    with pytest.raises(RecipeError, match="efficientnet_lite0 takes no weights; lpips_vgg, lpips_alex do"):
        build_network("efficientnet_lite0", "x")
    assert set(BACKBONES) == {"lpips_vgg", "lpips_alex"}
