"""
Sources of pictures behind one small interface.

A source that can be indexed has `len()` and `take(indices)`; a stream has `batches(start, count, part)`. Both give a
[`Samples`], and both have `scan()` for one pass in the stored order. A picture that cannot be read is
skipped, counted in `source.skipped`, and another takes its place.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .emoji import DataError, load_records
from .pictures import EXTENSIONS, UNREADABLE, find_pictures, load_square
from .samples import Row, Samples, caption_text
from .streams import HubSource, ShardSource, StreamSource
from .token_source import TokenSource

__all__ = [
    "EmojiSource",
    "FolderSource",
    "HubSource",
    "Samples",
    "ShardSource",
    "Source",
    "StreamSource",
    "TokenSource",
    "open_source",
]
METADATA = ("metadata.jsonl", "metadata.csv")


class EmojiSource:
    """
    The emoji set of [`build_emoji`].

    Args:
        folder: of the set.
        size: side of the pictures; must be that of the set.
        split: "train", "names", "pairs", or "held_out" for the latter two.
        styles: drawing styles to keep, all by default.
    """

    def __init__(self, folder: Path, size: int, split: str = "train", styles: list[str] | None = None) -> None:
        wanted = ("names", "pairs") if split == "held_out" else (split,)
        every = load_records(folder)
        self.rows = np.array(
            [i for i, r in enumerate(every) if r.split in wanted and (not styles or r.style in styles)], np.int64
        )
        if len(self.rows) == 0:
            raise DataError(f"{folder} has no pictures of split {split!r} and styles {styles or 'all'}.")
        self.records = [every[i] for i in self.rows]
        self._images = np.load(folder / "images.npy", mmap_mode="r")
        if self._images.shape[1] != size:
            raise DataError(f"{folder} holds pictures of {self._images.shape[1]} pixels, the recipe asks for {size}.")
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray) -> Samples:
        """The samples at `indices`."""
        records = [self.records[i] for i in indices]
        return Samples(self._images[self.rows[indices]], [record.name for record in records], records)

    def scan(self) -> Iterator[Row]:
        """Every sample once."""
        for row, record in zip(self.rows, self.records, strict=True):
            yield Row(
                f"{record.style}/{record.code or record.name}", record.name, lambda i=row: self._images[i], record
            )


class FolderSource:
    """
    Picture files below a folder.

    A caption is the text file of the same name beside the picture, else what `metadata.jsonl` or `metadata.csv` of the
    picture's folder (or of one above it) says: `file_name`, and `text` or `caption`.

    Args:
        folder: searched recursively.
        size: side of the pictures, after resizing the shorter side and a centre crop.
        caption_column: name of the caption in the metadata; `text` or `caption` by default.
        require_captions: leave out pictures without a caption.

    Raises:
        DataError: for a folder without pictures, without captions where they are required, or with metadata that cannot
            be read.
    """

    def __init__(
        self, folder: Path, size: int, caption_column: str | None = None, require_captions: bool = False
    ) -> None:
        if not folder.is_dir():
            raise DataError(f"No such folder: {folder}")
        self.files = find_pictures(folder)
        if not self.files:
            raise DataError(f"{folder} holds no pictures ({', '.join(EXTENSIONS)}).")
        self.size, self.bad, self.folder = size, set(), folder
        self.metadata = _read_metadata(folder, caption_column)
        if require_captions:
            self.files = [path for path in self.files if self._caption(path)]
            if not self.files:
                raise DataError(
                    f"The pictures of {folder} have no captions: put a .txt file of the same name beside each, or a "
                    f"metadata.jsonl with `file_name` and `{caption_column or 'text'}` into the folder."
                )

    @property
    def skipped(self) -> int:
        """Number of files that could not be read so far."""
        return len(self.bad)

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: np.ndarray) -> Samples:
        """The samples at `indices`; the next readable file takes the place of one that cannot be read."""
        found = [self._next_readable(int(index)) for index in indices]
        return Samples(np.stack([image for _, image in found]), [self._caption(path) for path, _ in found])

    def scan(self) -> Iterator[Row]:
        """Every file once."""
        for path in self.files:
            name = path.relative_to(self.folder).as_posix()
            yield Row(name, self._caption(path), lambda path=path: self._load(path))

    def _next_readable(self, index: int) -> tuple[Path, np.ndarray]:
        for offset in range(len(self.files)):
            path = self.files[(index + offset) % len(self.files)]
            image = None if path in self.bad else self._load(path)
            if image is not None:
                return path, image
        raise DataError(f"None of the {len(self.files)} picture files in {self.folder} can be read.")

    def _load(self, path: Path) -> np.ndarray | None:
        try:
            return load_square(path, self.size)
        except UNREADABLE:
            self.bad.add(path)
            return None

    def _caption(self, path: Path) -> str:
        text = path.with_suffix(".txt")
        if text.is_file():
            return text.read_text(encoding="utf-8", errors="replace").strip()
        return self.metadata.get(path, "")


def _read_metadata(folder: Path, column: str | None) -> dict[Path, str]:
    """Captions of the metadata files below a folder, by picture."""
    captions: dict[Path, str] = {}
    for name in METADATA:
        for path in sorted(folder.rglob(name)):
            for number, values in enumerate(_rows(path), 1):
                if "file_name" not in values or (column is not None and column not in values):
                    wanted = "file_name" if "file_name" not in values else column
                    raise DataError(f"{path}, row {number}: no `{wanted}`; it has {', '.join(map(str, values))}.")
                text = values[column] if column else values.get("text") or values.get("caption")
                captions[path.parent / str(values["file_name"])] = caption_text(text)
    return captions


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".csv":
        yield from csv.DictReader(text.splitlines())
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}).") from error
        if not isinstance(values, dict):
            raise DataError(f"{path}, line {number}: expected an object with `file_name`.")
        yield values


Source = EmojiSource | FolderSource | HubSource | ShardSource | TokenSource
OPTIONS = {
    "emoji": ("split", "styles"),
    "folder": ("caption_column", "require_captions"),
    "hub": ("split", "image_column", "caption_column", "require_captions", "shuffle", "seed"),
    "shards": ("require_captions", "shuffle", "seed"),
    "tokens": (),
}
KINDS = tuple(OPTIONS)


def open_source(kind: str, path: str, size: int, **options: Any) -> Source:
    """
    Opens a source by its kind.

    Args:
        kind: "emoji", "folder", "hub", "shards" or "tokens".
        path: of the folder, or the id of a data set on the Hub.
        size: side of the pictures.
        options: `split` and `styles` (emoji), `image_column`, `caption_column`, `require_captions`, and of streams
            `shuffle` and `seed`; a kind takes those it knows.

    Raises:
        DataError: where there is nothing to read.
    """
    if kind not in OPTIONS:
        raise DataError(f"Unknown kind of data {kind!r}; there are: {', '.join(KINDS)}.")
    known = {name: options[name] for name in OPTIONS[kind] if name in options}
    if kind == "hub":
        return HubSource(path, size, **known)
    source = {"emoji": EmojiSource, "folder": FolderSource, "shards": ShardSource, "tokens": TokenSource}[kind]
    return source(Path(path), size, **known)
