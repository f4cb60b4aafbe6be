"""Writing sets of tokens: one file a shard, each complete or absent, so that a killed run goes on where it was."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..evaluation.reconstruction import to_pixels
from .emoji import DataError
from .samples import Row
from .sources import Source
from .token_source import FORMAT, INDEX, PLAN, id_type, open_shard, safetensors_bytes, shard_name

FLOATS = {"float16": np.float16, "float32": np.float32}


def weights_digest(model: nn.Module) -> str:
    """A hash of all tensors of a model: whether two sets come from the same weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under another name, forces it to the disk, and renames it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(scratch, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


class TokenSetWriter:
    """
    Tokenises a data set shard by shard; a shard that is there already is left as it is.

    Args:
        model: tokenizer, in eval mode on its device.
        source: the pictures.
        folder: of the set.
        origin: what the set is made of, plain values: a set is gone on with only where they are the same.
        shard_size: pictures of a shard.
        batch_size: pictures at once.
        mirror: also tokenise the mirror images.
        num_tokens: keep the first so many tokens.
        store: type of latents on disk, "float16" or "float32".
        rank, world: this process and their number: it writes every `world`-th shard.

    Raises:
        DataError: where the folder holds another set.
    """

    def __init__(
        self,
        model: Any,
        source: Source,
        folder: Path,
        origin: dict[str, Any],
        *,
        shard_size: int = 4096,
        batch_size: int = 32,
        mirror: bool = False,
        num_tokens: int | None = None,
        store: str = "float16",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if min(shard_size, batch_size) < 1:
            raise DataError(f"shard_size and batch_size must be at least 1, got {shard_size} and {batch_size}.")
        if store not in FLOATS:
            raise DataError(f"Latents are stored as {' or '.join(FLOATS)}, got {store!r}.")
        self.model, self.source, self.folder = model, source, folder
        self.shard_size, self.batch_size, self.mirror = shard_size, batch_size, mirror
        self.num_tokens, self.store, self.rank, self.world = num_tokens, store, rank, world
        self.plan = {
            "format": FORMAT,
            **origin,
            "weights": weights_digest(model),
            "image_size": model.config.image_size,
            "codebook_size": model.codebook_size,
            "num_tokens": num_tokens or model.num_tokens,
            "shard_size": shard_size,
            "mirror": mirror,
            "stored_as": id_type(model.codebook_size).name if model.is_discrete else store,
        }
        self._claim()

    def _claim(self) -> None:
        path = self.folder / PLAN
        self.folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            old = json.loads(path.read_text(encoding="utf-8"))
            changed = [key for key in sorted({*old, *self.plan}) if old.get(key) != self.plan.get(key)]
            if changed:
                raise DataError(
                    f"{self.folder} holds another set of tokens: {', '.join(changed)} differ. Choose another folder."
                )
        else:
            write_atomically(path, _json(self.plan))

    # ------------------------------------------------------------------ shards

    def run(self, tell: Callable[[int, bool], None] = lambda index, written: None) -> dict[str, int]:
        """
        Writes what is missing, and the index once all shards are there.

        Args:
            tell: called with the number of each shard of this process, and whether it was written now.

        Returns:
            `shards`, `written` (by this call), `pictures` and `skipped` of the set so far.

        Raises:
            DataError: where the data set is empty, nothing in it can be read, or the disk refuses.
        """
        rows, written, index = self.source.scan(), 0, -1
        for index, chunk in enumerate(self._chunks(rows)):
            if index % self.world != self.rank:
                continue
            fresh = not self._is_there(index)
            if fresh:
                self._write(index, chunk)
                written += 1
            tell(index, fresh)
        found = [open_shard(path) for i in range(index + 1) if (path := self.folder / shard_name(i)).is_file()]
        figures = {
            "shards": index + 1,
            "written": written,
            "pictures": sum(map(len, found)),
            "skipped": sum(shard.skipped for shard in found),
        }
        if len(found) == index + 1:
            if not figures["pictures"]:
                raise DataError(f"The data set has no readable pictures ({figures['skipped']} were skipped).")
            write_atomically(self.folder / INDEX, _json({**self.plan, "shards": [len(shard) for shard in found]}))
        return figures

    def _chunks(self, rows: Iterator[Row]) -> Iterator[list[Row]]:
        while chunk := list(islice(rows, self.shard_size)):
            yield chunk

    def _is_there(self, index: int) -> bool:
        path = self.folder / shard_name(index)
        if not path.is_file():
            return False
        try:
            open_shard(path)
        except DataError:  # cut off by other means than ours: write it again
            return False
        return True

    def _write(self, index: int, chunk: list[Row]) -> None:
        kept, parts = [], []
        for start in range(0, len(chunk), self.batch_size):
            loaded = [(row, row.load()) for row in chunk[start : start + self.batch_size]]
            good = [(row, image) for row, image in loaded if image is not None]
            if good:
                kept += [row for row, _ in good]
                parts.append(self._encode(np.stack([image for _, image in good])))
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
        records = [asdict(row.record) for row in kept if row.record is not None]
        metadata = {
            "format": FORMAT,
            "images": json.dumps([row.name for row in kept]),
            "captions": json.dumps([row.caption for row in kept]),
            "records": json.dumps(records),
            "skipped": str(len(chunk) - len(kept)),
            "model": json.dumps(self.plan.get("model", {})),
        }
        try:
            write_atomically(self.folder / shard_name(index), safetensors_bytes(arrays, metadata))
        except OSError as error:
            raise DataError(f"Could not write shard {index} of {self.folder}: {error}") from error

    @torch.no_grad()
    def _encode(self, images: np.ndarray) -> dict[str, np.ndarray]:
        pixels = self.model.normalize_pixels(to_pixels(images, self.model.device)).to(self.model.dtype)
        output = self.model.encode(pixels, self.num_tokens)
        name = "token_ids" if self.model.is_discrete else "latents"
        arrays = {name: self._stored(getattr(output, name))}
        if output.token_mask is not None:
            arrays["token_mask"] = output.token_mask.cpu().numpy()
        if self.mirror:
            mirrored = self.model.encode(pixels.flip(3), self.num_tokens)
            arrays["mirrored"] = self._stored(getattr(mirrored, name))
        for key, value in (output.decode_kwargs or {}).items():
            arrays[f"decode.{key}"] = np.asarray(torch.as_tensor(value).cpu())
        return arrays

    def _stored(self, values: Tensor) -> np.ndarray:
        if self.model.is_discrete:
            return values.cpu().numpy().astype(id_type(self.model.codebook_size))
        stored = values.float().cpu().numpy().astype(FLOATS[self.store])
        if not np.isfinite(stored).all():
            raise DataError(f"Latents do not fit into {self.store}; store them as float32.")
        return stored


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
