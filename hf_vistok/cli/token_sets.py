"""`hf-vistok tokenize --dataset`: a whole data set to a folder of shards that training reads."""

import os
from pathlib import Path
from typing import Any

from .console import note


def tokenize_dataset(
    tokenizer: Any,
    output: Path,
    dataset: str,
    names: dict[str, str],
    *,
    kind: str,
    columns: dict[str, Any],
    **settings: Any,
) -> None:
    """
    Writes a set of tokens; what is there already stays. Under torchrun, each process writes its share of the shards.

    Args:
        tokenizer: on its device.
        output: folder of the set.
        dataset: folder, or id on the Hub.
        names: what the tokenizer was loaded from.
        kind: see `open_source`.
        columns: `split`, `image_column`, `caption_column`, `require_captions`.
        settings: of [`TokenSetWriter`].

    Raises:
        DataError: see [`TokenSetWriter`].
    """
    from hf_vistok.data.emoji import DataError
    from hf_vistok.data.sources import KINDS, open_source
    from hf_vistok.data.tokenize_set import TokenSetWriter

    if kind == "tokens":
        raise DataError(f"--kind tokens is a set of tokens already; pictures are {', '.join(KINDS[:-1])}.")
    if output.is_file() or output.suffix in (".safetensors", ".jsonl"):
        raise DataError(f"{output}: with --dataset, --output is a folder.")
    columns = {name: value for name, value in columns.items() if value is not None}
    source = open_source(kind, dataset, tokenizer.config.image_size, **columns)
    origin = {"model": names, "data": {"kind": kind, "path": dataset, **columns}}
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    writer = TokenSetWriter(tokenizer, source, output, origin, rank=rank, world=world, **settings)

    def tell(index: int, fresh: bool) -> None:
        if fresh:
            note(f"shard {index}")

    figures = writer.run(tell)
    pictures, shards, written, skipped = (figures[name] for name in ("pictures", "shards", "written", "skipped"))
    note(f"{output}: {pictures} picture(s) in {shards} shard(s), {written} written now, {skipped} picture(s) skipped")
