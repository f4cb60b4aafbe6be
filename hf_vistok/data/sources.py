"""
Sources of pictures behind one small interface.

A source that can be indexed has `len()` and `take(indices)`; a stream has `batches(start, count, part)`. Both give a
[`Samples`]. A picture that cannot be read is skipped, counted in `source.skipped`, and another takes its place.
"""

import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .emoji import DataError, Record, load_records
from .pictures import EXTENSIONS, UNREADABLE, find_pictures, load_square


@dataclass
class Samples:
    """
    A batch of a source.

    Args:
        images: pictures uint8 `(B, H, W, 3)`; cached latents `(B, ...)` where a stage reads those.
        captions: "" where there is none.
        records: of the emoji set: style and tags besides the name.
    """

    images: np.ndarray
    captions: list[str]
    records: list[Record] | None = None

    def __getitem__(self, part: slice) -> "Samples":
        """Some of the samples."""
        return Samples(self.images[part], self.captions[part], self.records and self.records[part])


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


class FolderSource:
    """
    Picture files below a folder. A caption is the text file of the same name beside it, where there is one.

    Args:
        folder: searched recursively.
        size: side of the pictures, after resizing the shorter side and a centre crop.
    """

    def __init__(self, folder: Path, size: int) -> None:
        if not folder.is_dir():
            raise DataError(f"No such folder: {folder}")
        self.files = find_pictures(folder)
        if not self.files:
            raise DataError(f"{folder} holds no pictures ({', '.join(EXTENSIONS)}).")
        self.size, self.bad, self.folder = size, set(), folder

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

    def _next_readable(self, index: int) -> tuple[Path, np.ndarray]:
        for offset in range(len(self.files)):
            path = self.files[(index + offset) % len(self.files)]
            if path in self.bad:
                continue
            try:
                return path, load_square(path, self.size)
            except UNREADABLE:
                self.bad.add(path)
        raise DataError(f"None of the {len(self.files)} picture files in {self.folder} can be read.")

    def _caption(self, path: Path) -> str:
        text = path.with_suffix(".txt")
        return text.read_text(encoding="utf-8", errors="replace").strip() if text.is_file() else ""


class StreamSource:
    """
    Base of sources that are read in order. `samples()` yields (picture, caption) pairs, once through.

    Every process reads the whole stream and keeps its part of each batch, so that any number of processes sees the
    same global batches; a resumed run skips what was consumed.
    """

    size: int
    skipped: int = 0

    def samples(self) -> Iterator[tuple[Any, str]]:
        """Pictures (path, bytes or PIL) with captions, once through the data."""
        raise NotImplementedError

    def _readable(self) -> Iterator[tuple[np.ndarray, str]]:
        while True:
            count = 0
            for picture, caption in self.samples():
                try:
                    yield load_square(picture, self.size), caption
                    count += 1
                except UNREADABLE:
                    self.skipped += 1
            if not count:
                raise DataError(f"The data set has no readable pictures ({self.skipped} were skipped).")

    def batches(self, start: int, count: int, part: slice) -> Iterator[Samples]:
        """
        Batches of `count` samples for ever.

        Args:
            start: number of samples already consumed.
            count: samples of a global batch.
            part: what to keep of each.
        """
        stream = islice(self._readable(), start, None)
        while True:
            batch = list(islice(stream, count))[part]
            yield Samples(np.stack([image for image, _ in batch]), [caption for _, caption in batch])


class HubSource(StreamSource):
    """
    A data set of the `datasets` library, streamed.

    Args:
        name: id or path, as `datasets.load_dataset` takes it.
        size: side of the pictures.
        split: of the data set.
        image_column, caption_column: names of the columns; captions are optional.
    """

    def __init__(
        self, name: str, size: int, split: str = "train", image_column: str = "image", caption_column: str | None = None
    ) -> None:
        try:
            from datasets import Image, load_dataset
        except ImportError as error:
            raise DataError("This source needs the datasets library: pip install 'hf_vistok[train]'.") from error
        stream = load_dataset(name, split=split, streaming=True)
        # undecoded: a corrupt picture must reach us as bytes, not end the stream
        self.stream = stream.cast_column(image_column, Image(decode=False))
        self.size, self.image_column, self.caption_column = size, image_column, caption_column

    def samples(self) -> Iterator[tuple[Any, str]]:
        """Bytes or path of each row, and its caption."""
        for row in self.stream:
            picture = row[self.image_column] or {}
            caption = str(row.get(self.caption_column) or "") if self.caption_column else ""
            yield picture.get("bytes") or picture.get("path") or b"", caption


class ShardSource(StreamSource):
    """
    WebDataset shards: tar files in which files of one stem make a sample (`0001.jpg`, `0001.txt` or `0001.json`).

    Args:
        folder: holds the `.tar` files, read in sorted order.
        size: side of the pictures.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size
        self.shards = sorted(folder.glob("*.tar")) if folder.is_dir() else [folder] if folder.is_file() else []
        if not self.shards:
            raise DataError(f"{folder} holds no .tar shards.")

    def samples(self) -> Iterator[tuple[Any, str]]:
        """Bytes and caption of each sample; a shard that breaks off is counted and left."""
        for shard in self.shards:
            try:
                yield from self._read(shard)
            except (tarfile.TarError, EOFError, OSError):
                self.skipped += 1

    def _read(self, shard: Path) -> Iterator[tuple[bytes, str]]:
        with tarfile.open(shard) as tar:
            stem, files = None, {}
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                name, _, kind = name.partition(".")
                if (folder, name) != stem and files:
                    yield self._sample(files)
                    files = {}
                stem, files[f".{kind.lower()}"] = (folder, name), tar.extractfile(member).read()
            if files:
                yield self._sample(files)

    def _sample(self, files: dict[str, bytes]) -> tuple[bytes, str]:
        picture = next((files[kind] for kind in EXTENSIONS if kind in files), b"")
        caption = files.get(".txt", b"").decode(errors="replace").strip()
        if ".json" in files and not caption:
            content = defaultdict(str, json.loads(files[".json"]))
            caption = str(content["caption"] or content["text"])
        return picture, caption


Source = EmojiSource | FolderSource | HubSource | ShardSource
KINDS = ("emoji", "folder", "hub", "shards")


def open_source(
    kind: str, path: str, size: int, *, split: str = "train", styles: list[str] | None = None, **columns: str | None
) -> Source:
    """
    Opens a source by its kind.

    Args:
        kind: "emoji", "folder", "hub" or "shards".
        path: of the folder, or the id of a data set on the Hub.
        size: side of the pictures.
        split: of emoji and Hub data sets.
        styles: of the emoji set.
        columns: `image_column`, `caption_column` of a Hub data set.

    Raises:
        DataError: where there is nothing to read.
    """
    if kind == "emoji":
        return EmojiSource(Path(path), size, split, styles)
    if kind == "hub":
        return HubSource(path, size, split, **columns)
    if kind in ("folder", "shards"):
        return (FolderSource if kind == "folder" else ShardSource)(Path(path), size)
    raise DataError(f"Unknown kind of data {kind!r}; there are: {', '.join(KINDS)}.")
