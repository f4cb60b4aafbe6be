"""
Data sets that are read in order: those of the `datasets` library, and WebDataset shards.

A global batch is cut into lanes. Each lane reads its own shards, so that a process opens only the shards of its part of
the batch, and which picture stands where depends on the batch size, never on the number of processes.
"""

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from .draws import hashed
from .emoji import DataError
from .pictures import EXTENSIONS, UNREADABLE, load_square
from .samples import Row, Samples, caption_text

MAX_LANES = 64


@dataclass
class RawSample:
    """
    A sample as it is stored.

    Args:
        picture: a path, bytes, or a PIL image.
        caption: "" where there is none.
        name: unique in the data set.
    """

    picture: Any
    caption: str
    name: str


class StreamSource:
    """
    Base of sources that are read in order. A subclass has `num_shards` and `read(shard)`.

    A picture that cannot be read is counted, and the next readable one of its lane takes its place. A resumed run skips
    what was consumed without decoding it.

    Args:
        size: side of the pictures.
        shuffle: how many samples of a global batch's lanes are put in random order at a time; 0 for the stored order.
        seed: of that order.
        require_captions: leave out samples without a caption.
    """

    num_shards: int = 1

    def __init__(self, size: int, shuffle: int = 0, seed: int = 0, require_captions: bool = False) -> None:
        self.size, self.shuffle, self.seed, self.require_captions = size, shuffle, seed, require_captions
        self.bad: set[str] = set()
        self.uncaptioned: set[str] = set()
        self._lengths: dict[int, int] = {}

    @property
    def skipped(self) -> int:
        """Number of different pictures and shards that could not be read so far."""
        return len(self.bad)

    def read(self, shard: int) -> Iterator[RawSample]:
        """Samples of a shard, once through."""
        raise NotImplementedError

    def scan(self) -> Iterator[Row]:
        """Every sample once in the stored order."""
        for shard in range(self.num_shards):
            for sample in self._captioned(shard):
                yield Row(sample.name, sample.caption, lambda sample=sample: self._decode(sample))

    def batches(self, start: int, count: int, part: slice) -> Iterator[Samples]:
        """
        Batches of `count` samples for ever.

        Args:
            start: number of samples already consumed, a multiple of `count`.
            count: samples of a global batch.
            part: what to keep of each.

        Raises:
            DataError: where the data set has no readable pictures.
        """
        lanes = max(n for n in range(1, min(self.num_shards, MAX_LANES, count) + 1) if count % n == 0)
        width, wanted = count // lanes, set(range(*part.indices(count)))
        streams = {
            lane: self._readable(lane, lanes, start // lanes, lambda i, lane=lane: lane * width + i % width in wanted)
            for lane in sorted({position // width for position in wanted})
        }
        while True:
            rows = []
            for lane, stream in streams.items():
                here = list(islice(stream, width))
                rows += [row for i, row in enumerate(here) if lane * width + i in wanted]
            yield Samples(np.stack([image for image, _ in rows]), [caption for _, caption in rows])

    # ------------------------------------------------------------------ one lane

    def _readable(
        self, lane: int, lanes: int, start: int, keep: Callable[[int], bool]
    ) -> Iterator[tuple[np.ndarray, str] | None]:
        """Pictures of a lane for ever; None in place of those that are not kept, which need not be decoded."""
        missing = 0
        for position, sample in enumerate(self._shuffled(lane, lanes, start), start):
            if not missing and not keep(position):
                yield None
                continue
            image = self._decode(sample)
            missing += 1
            found = None if image is None else (image, sample.caption)
            if found is None and missing >= self._lengths.get(lane, missing + 1):
                found = self._any_readable(lane)
            if found is not None:
                yield from (found for _ in range(missing))
                missing = 0

    def _shuffled(self, lane: int, lanes: int, start: int) -> Iterator[RawSample]:
        """The lane's samples from `start` on, in random order within blocks."""
        stored, block = self._stored(lane, lanes), self.shuffle // lanes
        if block < 2:
            yield from islice(stored, start, None)
            return
        first, offset = divmod(start, block)
        next(islice(stored, first * block, first * block), None)
        for index in count(first):
            rows = list(islice(stored, block))
            for i in np.argsort(hashed(self.seed, f"block {lane}", index * block + np.arange(block)))[offset:]:
                yield rows[i]
            offset = 0

    def _stored(self, lane: int, lanes: int) -> Iterator[RawSample]:
        """The lane's samples for ever, pass after pass; a lane whose shards are empty reads the others."""
        own = np.arange(lane, self.num_shards, lanes)
        for turn in count():
            order = own
            if self.shuffle and len(own) > 1:
                order = own[np.argsort(hashed(self.seed, f"shards {turn}", own))]
            length = 0
            for shard in order:
                for sample in self._captioned(int(shard)):
                    length += 1
                    yield sample
            self._lengths[lane] = length
            if not length:
                if len(own) == self.num_shards:
                    raise self._nothing()
                own = (np.arange(self.num_shards) + lane) % self.num_shards

    def _captioned(self, shard: int) -> Iterator[RawSample]:
        for sample in self.read(shard):
            if self.require_captions and not sample.caption:
                self.uncaptioned.add(sample.name)
            else:
                yield sample

    def _decode(self, sample: RawSample) -> np.ndarray | None:
        if sample.name in self.bad:
            return None
        try:
            return load_square(sample.picture, self.size)
        except UNREADABLE:
            self.bad.add(sample.name)
            return None

    def _any_readable(self, lane: int) -> tuple[np.ndarray, str]:
        """The first readable picture from the lane's own shards on."""
        for offset in range(self.num_shards):
            for sample in self._captioned((lane + offset) % self.num_shards):
                image = self._decode(sample)
                if image is not None:
                    return image, sample.caption
        raise self._nothing()

    def _nothing(self) -> DataError:
        if self.uncaptioned:
            return DataError(f"None of the {len(self.uncaptioned)} samples has a caption, and captions are required.")
        return DataError(f"The data set has no readable pictures ({self.skipped} were skipped).")


class HubSource(StreamSource):
    """
    A data set of the `datasets` library, streamed.

    Args:
        name: id or path, as `datasets.load_dataset` takes it.
        size: side of the pictures.
        split: of the data set.
        image_column, caption_column: names of the columns; captions are optional.
        options: of [`StreamSource`].

    Raises:
        DataError: where the library or a column is missing.
    """

    def __init__(
        self,
        name: str,
        size: int,
        split: str = "train",
        image_column: str = "image",
        caption_column: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(size, **options)
        try:
            from datasets import Image, load_dataset
        except ImportError as error:
            raise DataError("This source needs the datasets library: pip install 'hf_vistok[train]'.") from error
        stream = load_dataset(name, split=split, streaming=True)
        for column in (image_column, caption_column):
            if column is not None and stream.features is not None and column not in stream.features:
                raise DataError(f"{name} has no column {column!r}; there are: {', '.join(stream.features)}.")
        # undecoded: a corrupt picture must reach us as bytes, not end the stream
        self.stream = stream.cast_column(image_column, Image(decode=False))
        self.image_column, self.caption_column = image_column, caption_column
        self.num_shards = max(1, self.stream.num_shards)

    def read(self, shard: int) -> Iterator[RawSample]:
        """Bytes or path of each row of a shard, and its caption."""
        for row, values in enumerate(self.stream.shard(num_shards=self.num_shards, index=shard)):
            picture = values[self.image_column] or {}
            caption = caption_text(values.get(self.caption_column)) if self.caption_column else ""
            yield RawSample(picture.get("bytes") or picture.get("path") or b"", caption, f"{shard:05d}/{row:08d}")


class ShardSource(StreamSource):
    """
    WebDataset shards: tar files in which files of one stem make a sample (`0001.jpg`, `0001.txt` or `0001.json`).

    Args:
        folder: holds the `.tar` files, in sorted order; or one such file.
        size: side of the pictures.
        options: of [`StreamSource`].

    Raises:
        DataError: where there are none.
    """

    def __init__(self, folder: Path, size: int, **options: Any) -> None:
        super().__init__(size, **options)
        self.shards = sorted(folder.glob("*.tar")) if folder.is_dir() else [folder] if folder.is_file() else []
        if not self.shards:
            raise DataError(f"{folder} holds no .tar shards.")
        self.num_shards = len(self.shards)

    def read(self, shard: int) -> Iterator[RawSample]:
        """Bytes and caption of each sample; a shard that breaks off is counted and left."""
        path = self.shards[shard]
        try:
            for stem, files in _grouped(path):
                picture = next((files[kind] for kind in EXTENSIONS if kind in files), b"")
                yield RawSample(picture, _caption(files), f"{path.name}/{stem}")
        except (tarfile.TarError, EOFError, OSError):
            self.bad.add(path.name)


def _grouped(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Files of one stem together, by their suffix."""
    with tarfile.open(path) as tar:
        stem, files = "", {}
        for member in tar:
            if not member.isfile():
                continue
            folder, _, name = member.name.rpartition("/")
            name, _, kind = name.partition(".")
            here = f"{folder}/{name}"
            if here != stem and files:
                yield stem, files
                files = {}
            stem, files[f".{kind.lower()}"] = here, tar.extractfile(member).read()
        if files:
            yield stem, files


def _caption(files: dict[str, bytes]) -> str:
    text = files.get(".txt", b"").decode(errors="replace").strip()
    if text or ".json" not in files:
        return text
    try:
        content = json.loads(files[".json"])
    except ValueError:
        return ""
    return caption_text(content.get("caption") or content.get("text")) if isinstance(content, dict) else ""
