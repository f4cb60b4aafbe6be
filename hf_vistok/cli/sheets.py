"""Sheets of pictures: columns with a heading, side by side."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .console import batches


@dataclass
class Column:
    """
    One column of a sheet.

    Args:
        heading: its lines.
        pictures: from top to bottom.
        num_tokens: tokens that they were drawn from, None for the originals.
        bytes_per_image: size of those tokens, None where it is not defined.
        psnr: mean over the pictures in dB, None for the originals.
    """

    heading: list[str]
    pictures: list[Image.Image]
    num_tokens: int | None = None
    bytes_per_image: float | None = None
    psnr: float | None = None


def bytes_of(model: Any, num_tokens: int) -> float | None:
    """Bytes of the first `num_tokens` of one picture, not entropy-coded; None for continuous tokenizers."""
    bits = model.bits_per_image
    return None if bits is None else bits * num_tokens / model.num_tokens / 8


def reconstruction_columns(
    model: Any,
    processor: Any,
    paths: Sequence[Path],
    lengths: Sequence[int] | None = None,
    batch_size: int = 8,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Column]:
    """
    The originals, and a column for each number of tokens.

    Args:
        model, processor: a tokenizer that decodes to pixels.
        paths: pictures.
        lengths: numbers of tokens; 1, 2, 4, ... and all by default.
        batch_size: pictures at once.
        progress: wraps the batches.

    Raises:
        ValueError: for a length that the tokenizer does not have, or one that does not decode to pixels.
    """
    import torch

    from hf_vistok.evaluation.reconstruction import doubling_lengths, reconstruct_lengths

    if model.decodes_to != "pixels":
        raise ValueError(f"{type(model).__name__} decodes to {model.decodes_to}, not to pixels.")
    lengths = list(lengths or doubling_lengths(model))
    for length in lengths:
        model._check_num_tokens(length)
    real: list[Image.Image] = []
    fake: dict[int, list[Image.Image]] = {length: [] for length in lengths}
    errors: dict[int, list[Any]] = {length: [] for length in lengths}
    for part in progress(list(batches(list(paths), batch_size))):
        values = processor([str(path) for path in part], return_tensors="pt").pixel_values
        pixels = processor.postprocess(values, "pt").to(model.device)
        real.extend(processor.postprocess(values))
        for length, drawn in reconstruct_lengths(model, pixels, lengths):
            fake[length].extend(processor.postprocess(model.normalize_pixels(drawn).cpu()))
            errors[length].append((drawn - pixels).square().mean((1, 2, 3)).double().cpu())
    columns = [Column(["original"], real)]
    for length in lengths:
        psnr = float((-10 * torch.log10(torch.cat(errors[length]).clamp_min(1e-10))).mean())
        size = bytes_of(model, length)
        head = [f"{length} token{'s' if length > 1 else ''}", "continuous" if size is None else _bytes(size)]
        columns.append(Column([*head, f"{psnr:.1f} dB"], fake[length], length, size, psnr))
    return columns


def _bytes(size: float) -> str:
    return f"{size:.0f} bytes" if size >= 10 else f"{size:.1f} bytes"


def summary_lines(columns: Sequence[Column]) -> list[str]:
    """A table of the columns as text."""
    lines = [f"{'tokens':>8} {'bytes':>8} {'PSNR (dB)':>10}"]
    for column in columns:
        if column.num_tokens is not None:
            size = "-" if column.bytes_per_image is None else f"{column.bytes_per_image:.1f}"
            lines.append(f"{column.num_tokens:>8} {size:>8} {column.psnr:>10.2f}")
    return lines


def reconstruction_sheet(columns: Sequence[Column], tile: int = 128) -> Image.Image:
    """Columns side by side; small pictures are enlarged to about `tile` pixels without smoothing."""
    width, height = columns[0].pictures[0].size
    zoom = max(1, round(tile / max(width, height)))
    width, height, gap = max(width * zoom, 84), height * zoom, 6
    font, line = ImageFont.load_default(15), 20
    top = line * max(len(column.heading) for column in columns) + 2 * gap
    rows = max(len(column.pictures) for column in columns)
    size = (gap + len(columns) * (width + gap), top + rows * (height + gap))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for x, column in enumerate(columns):
        left = gap + x * (width + gap)
        for y, text in enumerate(column.heading):
            draw.text((left + width // 2, gap + y * line), text, fill="black", font=font, anchor="ma")
        for y, picture in enumerate(column.pictures):
            drawn = picture.convert("RGB").resize(
                (picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST
            )
            sheet.paste(drawn, (left + (width - drawn.width) // 2, top + y * (height + gap)))
    return sheet


def caption_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], columns: int = 4, tile: int = 160
) -> Image.Image:
    """Pictures in rows of `columns`, each above its caption."""
    import textwrap

    zoom = max(1, round(tile / max(pictures[0].size)))
    width, height, gap, line = max(pictures[0].width * zoom, tile), pictures[0].height * zoom, 8, 18
    font = ImageFont.load_default(14)
    texts = [textwrap.wrap(caption, max(8, width // 8)) or [""] for caption in captions]
    foot = line * max(len(text) for text in texts)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + foot + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left, top = gap + index % columns * (width + gap), gap + index // columns * (height + foot + gap)
        drawn = picture.convert("RGB").resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
        sheet.paste(drawn, (left + (width - drawn.width) // 2, top))
        for row, words in enumerate(text):
            draw.text((left + width // 2, top + height + 2 + row * line), words, fill="black", font=font, anchor="ma")
    return sheet
