"""LPIPS (Zhang et al. 2018) on weights that the user brings: an ImageNet backbone, and the learned heads."""

from pathlib import Path

import torch
from torch import Tensor, nn

from .recipe import RecipeError

# convolutions as (index in torchvision's `features`, out channels, kernel, stride, padding); "M" pools
VGG16 = [
    (0, 64, 3, 1, 1), (2, 64, 3, 1, 1), "M", (5, 128, 3, 1, 1), (7, 128, 3, 1, 1), "M",
    (10, 256, 3, 1, 1), (12, 256, 3, 1, 1), (14, 256, 3, 1, 1), "M",
    (17, 512, 3, 1, 1), (19, 512, 3, 1, 1), (21, 512, 3, 1, 1), "M",
    (24, 512, 3, 1, 1), (26, 512, 3, 1, 1), (28, 512, 3, 1, 1),
]  # fmt: skip
ALEXNET = [
    (0, 64, 11, 4, 2), "M", (3, 192, 5, 1, 2), "M", (6, 384, 3, 1, 1), (8, 256, 3, 1, 1), (10, 256, 3, 1, 1),
]  # fmt: skip
BACKBONES = {"lpips_vgg": (VGG16, (2, 2), (2, 7, 14, 21, 28)), "lpips_alex": (ALEXNET, (3, 2), (0, 3, 6, 8, 10))}
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1]


class LpipsFeatures(nn.Module):
    """
    Features behind five rectifiers of VGG16 or AlexNet.

    Args:
        kind: "lpips_vgg" or "lpips_alex".
        weights: file of the backbone with torchvision's names (`features.0.weight`, ...), safetensors or torch.
        heads: file of LPIPS's learned weights (`lin0.model.1.weight`, ...); None weighs all channels alike.

    Raises:
        RecipeError: for a file that is missing or holds other tensors.
    """

    def __init__(self, kind: str, weights: str | None, heads: str | None = None) -> None:
        super().__init__()
        layers, self.pool, self.taps = BACKBONES[kind]
        if weights is None:
            raise RecipeError(
                f"The perceptual network {kind} needs `perceptual.weights`: a file with torchvision's ImageNet weights."
            )
        tensors = _read(weights)
        self.order: list[int | None] = []
        self.convs = nn.ModuleDict()
        channels = 3
        for layer in layers:
            self.order.append(None if layer == "M" else layer[0])
            if layer != "M":
                index, out, kernel, stride, padding = layer
                self.convs[str(index)] = nn.Conv2d(channels, out, kernel, stride, padding)
                channels = out
        self._load(tensors, weights)
        self.heads = None if heads is None else self._heads(heads)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def _load(self, tensors: dict[str, Tensor], path: str) -> None:
        found = {name.split("features.", 1)[1]: value for name, value in tensors.items() if "features." in name}
        wanted = self.convs.state_dict()
        wrong = [name for name, value in wanted.items() if name not in found or found[name].shape != value.shape]
        if wrong:
            raise RecipeError(f"{path} does not fit: features.{wrong[0]} is missing or of another shape.")
        self.convs.load_state_dict({name: found[name] for name in wanted})

    def _heads(self, path: str) -> nn.ParameterList:
        tensors = _read(path)
        sizes = [self.convs[str(tap)].out_channels for tap in self.taps]
        heads = []
        for index, size in enumerate(sizes):
            name = next((name for name in tensors if name.startswith(f"lin{index}.") and name.endswith("weight")), None)
            if name is None or tensors[name].numel() != size:
                raise RecipeError(f"{path} should hold lin{index}.model.1.weight of {size} values.")
            heads.append(tensors[name].float().view(1, size, 1, 1))
        return nn.ParameterList(heads)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images `(B, 3, H, W)` in [0, 1] to five feature maps."""
        x, features = (images * 2 - 1 - self.shift) / self.scale, []
        for index in self.order:
            if index is None:
                x = nn.functional.max_pool2d(x, *self.pool)
                continue
            x = self.convs[str(index)](x).relu()
            if index in self.taps:
                features.append(x)
        return features


def _read(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise RecipeError(f"recipe.perceptual: there is no file {path}.")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content.get("state_dict", content)
    except Exception as error:  # each of the two libraries raises kinds of its own
        raise RecipeError(f"recipe.perceptual: {path} cannot be read: {error}") from error
