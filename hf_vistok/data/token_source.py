"""
Sets of tokens or latents on disk: what `hf-vistok tokenize --dataset` writes, and training reads.

    index.json                     what the set is, and its shards; there once the set is complete
    plan.json                      the same without the shards; there from the start
    tokens-00000.safetensors, ...  `token_ids` or `latents` (B, ...), `mirrored` (the same of the mirror images),
                                   `token_mask`; names, captions and records in the metadata
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .emoji import DataError, Record
from .samples import Samples

FORMAT = "hf_vistok token set 1"
INDEX, PLAN = "index.json", "plan.json"
ARRAYS = ("token_ids", "latents")
TYPES = {
    "U8": np.uint8,
    "U16": np.uint16,
    "I32": np.int32,
    "I64": np.int64,
    "I16": np.int16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "BOOL": np.bool_,
}


def id_type(codebook_size: int) -> np.dtype:
    """The smallest integer type that holds the ids of a codebook."""
    for kind in (np.uint8, np.uint16, np.int32):
        if codebook_size - 1 <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.int64)


def shard_name(index: int) -> str:
    """File of a shard."""
    return f"tokens-{index:05d}.safetensors"


def safetensors_bytes(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """
    A safetensors file whose bytes depend on its content only (the library's own order of metadata is random).

    Args:
        arrays: of a type in `TYPES`.
        metadata: texts.
    """
    kinds = {np.dtype(kind): name for name, kind in TYPES.items()}
    header: dict[str, Any] = {"__metadata__": metadata}
    parts, offset = [], 0
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": kinds[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        parts.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


@dataclass
class TokenShard:
    """
    One file of a set, read where it lies on the disk.

    Args:
        arrays: by name, memory maps.
        names, captions: of the pictures.
        records: of the emoji set, empty otherwise.
        skipped: pictures that could not be read.
    """

    arrays: dict[str, np.ndarray]
    names: list[str]
    captions: list[str]
    records: list[Record] = field(default_factory=list)
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.names)


def open_shard(path: Path) -> TokenShard:
    """
    Opens one file of a set.

    Raises:
        DataError: where it is damaged.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__")
        arrays = {name: _map(path, spec, 8 + length) for name, spec in header.items()}
        names, captions = json.loads(metadata["images"]), json.loads(metadata["captions"])
        records = [Record(**values) for values in json.loads(metadata["records"])]
        return TokenShard(arrays, names, captions, records, int(metadata["skipped"]))
    except (OSError, ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no complete shard of a set of tokens: {error}") from error


def _map(path: Path, spec: dict[str, Any], base: int) -> np.ndarray:
    begin, end = spec["data_offsets"]
    if begin == end:
        return np.empty(spec["shape"], TYPES[spec["dtype"]])
    return np.memmap(path, TYPES[spec["dtype"]], "r", base + begin, tuple(spec["shape"]))


class TokenSource:
    """
    A set of tokens or latents, see [`hf_vistok.data.tokenize_set`].

    `take` gives int64 ids `(B, V, ...)` or float32 latents `(B, V, ...)` as `images`: V is 2 where the mirror images
    were tokenised too, else 1.

    Args:
        folder: of the set.
        size: of the pictures that it was made of; None for any.

    Raises:
        DataError: for a set that is missing, not complete, empty, or of another size.
    """

    skipped: int

    def __init__(self, folder: Path, size: int | None = None) -> None:
        self.folder = folder
        if not (folder / INDEX).is_file():
            begun = (folder / PLAN).is_file()
            raise DataError(
                f"{folder} holds a set of tokens that is not complete; the command that began it goes on."
                if begun
                else f"{folder} holds no set of tokens ({INDEX}); `hf-vistok tokenize --dataset` makes one."
            )
        self.index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if self.index.get("format") != FORMAT:
            raise DataError(f"{folder / INDEX} has the format {self.index.get('format')!r}, expected {FORMAT!r}.")
        if size is not None and self.index["image_size"] != size:
            raise DataError(
                f"{folder} was made of pictures of {self.index['image_size']} pixels, the recipe asks for {size}."
            )
        self.shards = [open_shard(folder / shard_name(i)) for i in range(len(self.index["shards"]))]
        self.ends = np.cumsum([len(shard) for shard in self.shards])
        self.skipped = sum(shard.skipped for shard in self.shards)
        if not len(self):
            raise DataError(f"The set of tokens {folder} is empty.")
        first = self.shards[0]
        self.array = next(name for name in ARRAYS if name in first.arrays)
        self.records = [record for shard in self.shards for record in shard.records] or None

    @property
    def codebook_size(self) -> int | None:
        """Of the tokenizer; None for latents."""
        return self.index["codebook_size"]

    @property
    def is_discrete(self) -> bool:
        """Whether the set holds ids."""
        return self.array == "token_ids"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tokens of one picture."""
        return self.shards[0].arrays[self.array].shape[1:]

    @property
    def names(self) -> list[str]:
        """Names of the pictures."""
        return [name for shard in self.shards for name in shard.names]

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def take(self, indices: np.ndarray) -> Samples:
        """The samples at `indices`."""
        indices = np.asarray(indices)
        places = np.searchsorted(self.ends, indices, side="right")
        rows = indices - np.where(places > 0, self.ends[places - 1], 0)
        found = [(self.shards[shard], int(row)) for shard, row in zip(places, rows, strict=True)]
        variants = [self.array] + (["mirrored"] if "mirrored" in self.shards[0].arrays else [])
        values = np.stack([np.stack([shard.arrays[name][row] for name in variants]) for shard, row in found])
        mask = None
        if "token_mask" in self.shards[0].arrays:
            mask = np.stack([np.stack([shard.arrays["token_mask"][row]] * len(variants)) for shard, row in found])
        return Samples(
            values.astype(np.int64 if self.is_discrete else np.float32),
            [shard.captions[row] for shard, row in found],
            [shard.records[row] for shard, row in found] if self.records else None,
            mask,
        )
