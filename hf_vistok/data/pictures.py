"""Pictures of any kind to square uint8 arrays, and the augmentations of training."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
MAX_PIXELS = 64_000_000
UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright RGB picture: EXIF orientation applied, alpha composed on white, 16 bit scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) / 257.0).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def load_square(source: Any, size: int) -> np.ndarray:
    """
    One picture, its shorter side resized to `size` and cropped at the centre.

    Args:
        source: a path, the bytes of a file, or a PIL image.
        size: side in pixels.

    Returns:
        uint8 `(size, size, 3)`.

    Raises:
        one of `UNREADABLE`, for what is no picture.
    """
    if isinstance(source, (bytes, bytearray)):
        source = io.BytesIO(source)
    image = source if isinstance(source, Image.Image) else Image.open(source)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"a picture of {image.width} x {image.height} pixels is over the limit of {MAX_PIXELS}")
    return np.asarray(ImageOps.fit(to_rgb(image), (size, size), Image.Resampling.BICUBIC))


def find_pictures(folder: Path) -> list[Path]:
    """Picture files below `folder`, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())


def augment(
    images: np.ndarray, flip: np.ndarray, shift: np.ndarray | None = None, fill: int | None = None
) -> np.ndarray:
    """
    Flips and shifts a batch.

    Args:
        images: uint8 `(B, H, W, 3)`.
        flip: bool `(B,)`, mirrored left to right where True.
        shift: int `(B, 2)`, pixels down and right, or None.
        fill: value of the uncovered border; None repeats the edge.

    Returns:
        uint8 `(B, H, W, 3)`, a new array.
    """
    images = np.where(flip[:, None, None, None], images[:, :, ::-1], images)
    if shift is None or not shift.any():
        return images
    reach = int(np.abs(shift).max())
    mode = {"mode": "edge"} if fill is None else {"mode": "constant", "constant_values": fill}
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), **mode)
    height, width = images.shape[1:3]
    rows = reach - shift[:, :1] + np.arange(height)  # (B, H)
    columns = reach - shift[:, 1:] + np.arange(width)  # (B, W)
    batch = np.arange(len(images))[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]]
