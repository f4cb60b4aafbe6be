"""What sources give: batches for training, rows for one pass over everything."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .emoji import Record


@dataclass
class Samples:
    """
    A batch of a source.

    Args:
        images: pictures uint8 `(B, H, W, 3)`; cached latents or ids `(B, ...)` where a stage reads those.
        captions: "" where there is none.
        records: of the emoji set: style and tags besides the name.
        token_mask: bool of the shape of ids, where their number differs between pictures.
        labels: int64 classes `(B,)`.
        pictures: uint8 `(B, H, W, 3)` beside cached latents, where a stage wants both.
    """

    images: np.ndarray
    captions: list[str]
    records: list[Record] | None = None
    token_mask: np.ndarray | None = None
    labels: np.ndarray | None = None
    pictures: np.ndarray | None = None

    def __getitem__(self, part: slice) -> "Samples":
        """Some of the samples."""
        further = (None if x is None else x[part] for x in (self.token_mask, self.labels, self.pictures))
        return Samples(self.images[part], self.captions[part], self.records and self.records[part], *further)


@dataclass
class Row:
    """
    A sample in a pass over a whole source.

    Args:
        name: unique in the source.
        caption: "" where there is none.
        load: gives the picture, uint8 `(H, W, 3)`; None where it cannot be read.
        record: of the emoji set.
    """

    name: str
    caption: str
    load: Callable[[], np.ndarray | None]
    record: Record | None = None


def spread_rows(length: int, count: int) -> np.ndarray:
    """Evenly spread rows of a source, int64; all where `count` is 0 or too large."""
    count = min(count or length, length)
    return np.arange(count) * length // count


def caption_text(value: Any) -> str:
    """A caption as stored to text: the first of several, "" for none."""
    if isinstance(value, (list, tuple)):
        value = next((item for item in value if item), None)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return "" if value is None else str(value).strip()
