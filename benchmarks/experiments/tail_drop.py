"""Tail token drop (One-D-Piece, arXiv 2501.10064): the error falls with each token; without, prefixes are useless."""

from pathlib import Path
from typing import Any

import numpy as np

from hf_vistok.data.sources import FolderSource
from hf_vistok.evaluation.reconstruction import reconstruction_scores

from .common import SIZE, experiment, tokenizer_recipe, train, vit

FSQ = {"quantizer": "fsq", "token_size": 4, "codebook_size": 1000, "fsq_levels": [8, 5, 5, 5]}


def scores(model: Any, folder: Path) -> dict[str, float]:
    """Held-out PSNR by number of tokens."""
    source = FolderSource(folder / "held_out", SIZE)
    images = source.take(np.arange(len(source))).images
    return {f"PSNR@{s.num_tokens}": s.psnr for s in reconstruction_scores(model, images)}


def work(folder: Path, steps: int) -> list[dict[str, Any]]:
    """One row with tail drop, one without."""
    rows = []
    for name, dropped in (("tail drop", True), ("plain", False)):
        model = {"type": "vistok_one_d_piece", "config": vit(**FSQ, tail_token_drop=dropped)}
        recipe = tokenizer_recipe(name.replace(" ", "_"), folder, model, steps)
        rows.append({"training": name, **scores(train(recipe, folder), folder)})
    return rows


if __name__ == "__main__":
    experiment(__doc__, work, 600)
