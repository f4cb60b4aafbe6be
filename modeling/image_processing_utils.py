"""The processor of image tokenizers: pictures of any kind to `pixel_values`, and `sample` back to pictures."""

import os
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs

MAX_PIXELS = 64_000_000  # a picture with more pixels is refused before it is decoded


class ImageTokenizerProcessorKwargs(ImagesKwargs, total=False):
    """Options of [`ImageTokenizerProcessor`] beyond those of transformers."""

    max_pixels: int


class ImageTokenizerProcessor(PilBackend):
    """
    Makes `pixel_values` float32 `(B, 3, H, W)` in the checkpoint's range, and pictures of its output.

    Alpha is composed on white, EXIF orientation applied, 16 bit scaled, CMYK, P, LA and L converted to RGB; of an
    animation the first frame counts. Float arrays and tensors are taken to lie in [0, 1].

    Args:
        size: `{"shortest_edge": s}` or `{"height": h, "width": w}`.
        crop_size: `{"height": h, "width": w}` of the centre crop.
        resample: PIL's resampling filter of the checkpoint.
        image_mean, image_std: `pixel_values = (x - mean) / std` for x in [0, 1].
        max_pixels: larger pictures are refused.

    Raises:
        ValueError: for a file that is no picture, one with too many pixels, and arrays of a wrong kind.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = ImageTokenizerProcessorKwargs
    do_resize = True
    size = {"shortest_edge": 256}
    default_to_square = False
    resample = PILImageResampling.BICUBIC
    do_center_crop = True
    crop_size = {"height": 256, "width": 256}
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = [0.0, 0.0, 0.0]
    image_std = [1.0, 1.0, 1.0]
    do_convert_rgb = True
    max_pixels = MAX_PIXELS

    @classmethod
    def for_size(cls, image_size: int, pixel_range: tuple[float, float] = (0.0, 1.0), **kwargs: Any):
        """Shorter side to `image_size`, centre crop, black and white to the ends of `pixel_range`."""
        low, high = pixel_range
        options = {
            "size": {"shortest_edge": image_size},
            "crop_size": {"height": image_size, "width": image_size},
            "image_mean": [0.0 - low / (high - low)] * 3,
            "image_std": [1.0 / (high - low)] * 3,
        }
        return cls(**{**options, **kwargs})

    @classmethod
    def for_config(cls, config: Any, **kwargs: Any):
        """The processor of a tokenizer that was saved without one: its configured size and pixel space."""
        if config.pixel_range is not None:
            return cls.for_size(config.image_size, tuple(config.pixel_range), **kwargs)
        return cls.for_size(
            config.image_size, image_mean=list(config.image_mean), image_std=list(config.image_std), **kwargs
        )

    def __call__(self, images: Any, **kwargs: Any):
        """Pictures (PIL, numpy, torch, path, URL, or lists of them) to a `BatchFeature` with `pixel_values`."""
        if isinstance(images, (list, tuple)) and len(images) == 0:
            raise ValueError("Got an empty list of images.")
        if isinstance(images, os.PathLike):
            images = os.fspath(images)
        elif isinstance(images, (list, tuple)):
            images = [os.fspath(image) if isinstance(image, os.PathLike) else image for image in images]
        return super().__call__(images, **kwargs)

    def fetch_images(self, images: Any) -> Any:
        """Opens paths; unlike the base class it keeps the alpha of files, and refuses what is no picture."""
        if isinstance(images, (list, tuple)):
            if len(images) == 0:
                raise ValueError("Got an empty list of images.")
            return [self.fetch_images(image) for image in images]
        if getattr(images, "ndim", None) == 2:  # a grey array (H, W)
            return images[None]
        if isinstance(images, str) and not images.startswith(("http://", "https://", "data:")):
            return self._open(images)
        return super().fetch_images(images)

    def _open(self, path: str) -> Image.Image:
        if not os.path.isfile(path):
            raise ValueError(f"No such picture: {path}")
        try:
            image = Image.open(path)
            self._check_pixels(image)
            image.load()
            return image
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path}: {error}") from error
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"{path} is not a picture that Pillow can read: {error}") from error

    def _check_pixels(self, image: Image.Image) -> None:
        if image.width * image.height > self.max_pixels:
            raise ValueError(
                f"A picture of {image.width} x {image.height} pixels is over the limit of {self.max_pixels} "
                "(`max_pixels` of the processor)."
            )

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs: Any) -> np.ndarray:
        """One picture to a channels-first uint8 or float array with three channels."""
        if isinstance(image, Image.Image):
            self._check_pixels(image)
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bit: 65535 / 257 = 255
                image = Image.fromarray(np.round(np.asarray(image) / 257.0).clip(0, 255).astype(np.uint8))
        elif "uint16" in str(image.dtype):
            raise ValueError("16-bit arrays: pass uint8, or float in [0, 1].")
        elif "float" in str(image.dtype):
            image = self._scale_floats(image)
        array = super().process_image(image, do_convert_rgb=True, **kwargs)
        if array.shape[0] == 1:
            array = np.repeat(array, 3, axis=0)
        if array.shape[0] != 3:
            raise ValueError(f"A picture needs 1, 3 or 4 channels, got an array of shape {array.shape}.")
        return array

    def _scale_floats(self, image: Any) -> Any:
        low, high = float(image.min()), float(image.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN
            raise ValueError(f"Float images must lie in [0, 1], got values from {low:.3g} to {high:.3g}.")
        return image * 255.0

    def resize(self, image: np.ndarray, size: Any, resample: Any = None, **kwargs: Any) -> np.ndarray:
        """A channels-first array to the goal's size; floats (in [0, 255] here) are rounded to 8 bits if it differs."""
        if np.issubdtype(image.dtype, np.floating):
            if getattr(size, "shortest_edge", None) == min(image.shape[1:]):
                return image
            image = image.round().clip(0, 255).astype(np.uint8)
        return super().resize(image, size, resample=resample, **kwargs)

    def postprocess(self, sample: torch.Tensor, output_type: str = "pil") -> Any:
        """
        Makes pictures of a model's `sample`.

        Args:
            sample: `(B, 3, H, W)` in the checkpoint's range; values outside are clamped.
            output_type: "pil" (list of images), "np" (float `(B, H, W, 3)` in [0, 1]) or "pt" (float `(B, 3, H, W)`
                in [0, 1]).
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'output_type must be "pil", "np" or "pt", got {output_type!r}.')
        mean, std = (sample.new_tensor(x).view(1, -1, 1, 1) for x in (self.image_mean, self.image_std))
        images = (sample.detach().float() * std + mean).clamp(0, 1)
        if output_type == "pt":
            return images
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return arrays
        return [Image.fromarray(array) for array in (arrays * 255).round().astype(np.uint8)]
