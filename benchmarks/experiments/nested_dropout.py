"""Nested dropout (arXiv 1402.0915; FlexTok 2502.13967): which lengths training draws decides which lengths are good."""

from pathlib import Path
from typing import Any

from .common import experiment, tokenizer_recipe, train, vit
from .tail_drop import FSQ, scores

DRAWS = {
    "always all": {"full": 1.0, "powers": 0.0},
    "uniform": {"full": 0.0, "powers": 0.0},
    "powers of two": {"full": 0.0, "powers": 1.0},
    "half all, quarter powers": {"full": 0.5, "powers": 0.25},
}


def work(folder: Path, steps: int) -> list[dict[str, Any]]:
    """One row for each way to draw lengths."""
    rows = []
    for name, prefix in DRAWS.items():
        model = {"type": "vistok_one_d_piece", "config": vit(**FSQ)}
        recipe = tokenizer_recipe(name.replace(" ", "_").replace(",", ""), folder, model, steps, prefix=prefix)
        rows.append({"lengths": name, **scores(train(recipe, folder), folder)})
    return rows


if __name__ == "__main__":
    experiment(__doc__, work, 600)
