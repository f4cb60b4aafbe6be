"""The centre crop of ADM (guided diffusion), which LlamaGen and many systems after it use on ImageNet."""

from typing import Any

import numpy as np
from PIL import Image

from .image_processing_utils import ImageTokenizerProcessor


class AdmCropProcessor(ImageTokenizerProcessor):
    """
    As [`ImageTokenizerProcessor`], but large pictures are first halved with a box filter.

    That goes on for as long as the shorter side is at least twice its goal; the rest of the way is bicubic.
    """

    def resize(self, image: np.ndarray, size: Any, resample: Any = None, **kwargs: Any) -> np.ndarray:
        """`(C, H, W)` to the goal's shorter side; other kinds of `size` are left to the base class."""
        shortest = getattr(size, "shortest_edge", None)
        if not shortest or shortest == min(image.shape[1:]):
            return super().resize(image, size, resample=resample, **kwargs)
        image = image.round().clip(0, 255).astype(np.uint8) if image.dtype != np.uint8 else image
        picture = Image.fromarray(np.moveaxis(image, 0, -1))
        while min(picture.size) >= 2 * shortest:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        scale = shortest / min(picture.size)
        sides = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(sides, Image.Resampling.BICUBIC)
        return np.moveaxis(np.asarray(picture), -1, 0)
