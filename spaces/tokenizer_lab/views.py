"""Ways to look at a reconstruction: error in dB, an error map, what JPEG and WebP do with as many bytes."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hf_vistok.spaces.common import own_file

# from no error to much: a dark blue over violet and orange to a pale yellow, bright steps for people of any sight
HEAT = np.array([[8, 10, 40], [70, 20, 110], [180, 50, 100], [245, 130, 50], [252, 245, 180]], dtype=np.float64)
HEAT_TOP = 0.5  # mean absolute error of a pixel that is drawn brightest
QUALITIES = (1, 2, 4, 7, 11, 16, 23, 32, 45, 60, 75, 90)
SCALES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)


def floats(picture: Image.Image) -> np.ndarray:
    """Pixels (H, W, 3) in [0, 1]."""
    return np.asarray(picture.convert("RGB"), dtype=np.float64) / 255


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal to noise ratio in dB; 99 for equal pictures."""
    error = float(np.square(floats(one) - floats(other)).mean())
    return 99.0 if error < 1e-10 else -10 * math.log10(error)


def error_map(one: Image.Image, other: Image.Image) -> Image.Image:
    """The mean absolute difference of each pixel, dark where there is none."""
    level = np.abs(floats(one) - floats(other)).mean(-1).clip(0, HEAT_TOP) / HEAT_TOP * (len(HEAT) - 1)
    low = np.floor(level).astype(int).clip(0, len(HEAT) - 2)
    share = (level - low)[..., None]
    colours = HEAT[low] * (1 - share) + HEAT[low + 1] * share
    return own_file(Image.fromarray(colours.round().astype(np.uint8)))


def changed_share(one: Image.Image, other: Image.Image, threshold: float = 0.02) -> float:
    """Share of the pixels that differ by more than `threshold`."""
    return float((np.abs(floats(one) - floats(other)).max(-1) > threshold).mean())


# ---------------------------------------------------------------------- other codecs


@dataclass(frozen=True)
class Coded:
    """
    A picture after a codec.

    Args:
        picture: what comes back, at the original's size.
        data_bytes: coded data alone, without the headers that every file repeats.
        file_bytes: the file.
        psnr: against the original, in dB.
        side: width in pixels that was coded; smaller than the picture where that was better.
        fits: whether `data_bytes` are within the budget.
    """

    picture: Image.Image
    data_bytes: int
    file_bytes: int
    psnr: float
    side: int
    fits: bool


def jpeg_data_bytes(file: bytes) -> int:
    """Bytes of the entropy-coded scan of a baseline JPEG: all that stands between the scan's header and the end."""
    start = file.index(b"\xff\xda")
    header = int.from_bytes(file[start + 2 : start + 4], "big")
    return len(file) - (start + 2 + header) - 2


def webp_data_bytes(file: bytes) -> int:
    """Bytes of the chunk of a lossy WebP."""
    return len(file) - 20


CODECS = {
    "JPEG": (jpeg_data_bytes, {"format": "JPEG", "subsampling": 2, "optimize": True}),
    "WebP": (webp_data_bytes, {"format": "WEBP", "method": 4}),
}


def _tries(picture: Image.Image, codec: str, budget: float) -> Iterator[Coded]:
    count, options = CODECS[codec]
    for scale in SCALES:
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        small = picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)
        for quality in QUALITIES:
            buffer = io.BytesIO()
            small.save(buffer, quality=quality, **options)
            file = buffer.getvalue()
            data = count(file)
            if data > budget and quality > QUALITIES[0]:
                break  # sizes grow with quality: the rest does not fit either
            back = Image.open(buffer).convert("RGB").resize(picture.size, Image.Resampling.BICUBIC)
            yield Coded(back, data, len(file), psnr(picture, back), size[0], data <= budget)


def code_within(picture: Image.Image, codec: str, budget: float) -> Coded:
    """
    The best that a codec does with so many bytes, over qualities and over smaller copies of the picture.

    Args:
        picture: RGB.
        codec: "JPEG" or "WebP".
        budget: bytes of coded data; headers are not counted, in the codec's favour.

    Returns:
        [`Coded`]; where nothing fits, the smallest there is, with `fits=False`.
    """
    tries = list(_tries(picture.convert("RGB"), codec, budget))
    fitting = [coded for coded in tries if coded.fits]
    return max(fitting, key=lambda c: c.psnr) if fitting else min(tries, key=lambda c: c.data_bytes)


def amount(size: float) -> str:
    """Bytes for people."""
    return f"{size:.0f} bytes" if size >= 10 else f"{size:.1f} bytes"


def comparison(picture: Image.Image, drawn: Image.Image, budget: float) -> tuple[list[tuple[Any, str]], str]:
    """
    The picture from tokens beside JPEG and WebP of equal size.

    Returns:
        pictures with captions, and a table in Markdown.
    """
    rows = ["| | data | file | PSNR |", "|---|---|---|---|"]
    rows.append(f"| tokens | {amount(budget)} | {amount(budget)} | {psnr(picture, drawn):.1f} dB |")
    pictures = [(picture, "original"), (drawn, f"tokens, {amount(budget)}")]
    for codec in CODECS:
        coded = code_within(picture, codec, budget)
        small = "" if coded.side == picture.width else f", coded at {coded.side} pixels"
        size = f"{amount(coded.data_bytes)}{'' if coded.fits else ' (its smallest)'}"
        rows.append(f"| {codec}{small} | {size} | {amount(coded.file_bytes)} | {coded.psnr:.1f} dB |")
        pictures.append((own_file(coded.picture), f"{codec}, {amount(coded.data_bytes)}"))
    return pictures, "\n".join(rows)
