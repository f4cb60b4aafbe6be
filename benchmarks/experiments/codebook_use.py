"""FSQ against VQ (arXiv 2309.15505): the share of a codebook that is in use, as it grows."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_vistok.data.sources import FolderSource
from hf_vistok.evaluation.reconstruction import reconstruction_scores, to_pixels
from hf_vistok.training.report import CodebookMeter

from .common import SIZE, experiment, tokenizer_recipe, train, vit

LEVELS = {64: [4, 4, 4], 1000: [8, 5, 5, 5], 15360: [8, 8, 8, 6, 5]}


def work(folder: Path, steps: int) -> list[dict[str, Any]]:
    """One row for each size and quantizer: use and perplexity on held-out pictures, and their error."""
    rows = []
    for size, levels in LEVELS.items():
        for name in ("vq", "fsq"):
            quantizer = {"quantizer": name, "codebook_size": size, "token_size": len(levels) if name == "fsq" else 8}
            quantizer |= {"fsq_levels": levels} if name == "fsq" else {}
            model = train(
                tokenizer_recipe(f"{name}_{size}", folder, {"type": "vistok_titok", "config": vit(**quantizer)}, steps),
                folder,
            )
            rows.append({"quantizer": name, "codebook": size, **measure(model, folder)})
    return rows


@torch.no_grad()
def measure(model: Any, folder: Path) -> dict[str, Any]:
    """The share of codes in use (of those that so many tokens could use), their perplexity, and the PSNR."""
    source = FolderSource(folder / "held_out", SIZE)
    images = source.take(np.arange(len(source))).images
    ids = torch.cat(
        [
            model.encode(model.normalize_pixels(to_pixels(images[i : i + 50], "cpu"))).token_ids
            for i in range(0, len(images), 50)
        ]
    )
    meter = CodebookMeter(model.codebook_size)
    meter.add(ids)
    values = meter.report(meter.counts)
    used = values["codebook_usage"] * model.codebook_size
    return {
        "codes in use": round(used),
        "of": min(model.codebook_size, ids.numel()),
        "perplexity": values["codebook_perplexity"],
        "PSNR": reconstruction_scores(model, images)[-1].psnr,
    }


if __name__ == "__main__":
    experiment(__doc__, work, 400)
