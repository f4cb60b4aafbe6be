"""MedITok's processor: the whole picture, squeezed into a square."""

from typing import Any

import numpy as np
from transformers.image_utils import PILImageResampling

from ..image_processing_utils import ImageTokenizerProcessor


class MedITokProcessor(ImageTokenizerProcessor):
    """
    As [`ImageTokenizerProcessor`], but nothing is cut off: pictures are resized to a square with Lanczos' filter, and
    their sides' ratio is lost.
    """

    size = {"height": 256, "width": 256}
    resample = PILImageResampling.LANCZOS
    do_center_crop = False

    @classmethod
    def for_size(cls, image_size: int, pixel_range: tuple[float, float] = (-1.0, 1.0), **kwargs: Any):
        """Both sides to `image_size`, black and white to the ends of `pixel_range`."""
        square = {"height": image_size, "width": image_size}
        return super().for_size(image_size, pixel_range, **{"size": square, **kwargs})

    def resize(self, image: np.ndarray, size: Any, resample: Any = None, **kwargs: Any) -> np.ndarray:
        """`(C, H, W)` to the goal's size; a picture that has it is left alone."""
        if image.shape[1:] == (getattr(size, "height", None), getattr(size, "width", None)):
            return image
        return super().resize(image, size, resample=resample, **kwargs)
