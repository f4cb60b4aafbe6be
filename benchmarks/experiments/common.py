"""Data, recipes and tables of the experiments."""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from hf_vistok.training.core import Trainer
from hf_vistok.training.export import load_trained
from hf_vistok.training.recipe import parse_recipe

SIZE, TRAIN, HELD_OUT = 32, 1500, 200


def draw_shapes(folder: Path, count: int, seed: int) -> Path:
    """Pictures of two to four coloured ellipses and rectangles on a coloured ground."""
    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        image = Image.new("RGB", (2 * SIZE, 2 * SIZE), tuple(rng.integers(160, 256, 3).tolist()))
        pen = ImageDraw.Draw(image)
        for _ in range(rng.integers(2, 5)):
            x, y = rng.integers(0, 2 * SIZE, 2).tolist()
            w, h = rng.integers(8, SIZE, 2).tolist()
            shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
            shape((x - w // 2, y - h // 2, x + w // 2, y + h // 2), fill=tuple(rng.integers(0, 256, 3).tolist()))
        image.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(folder / f"{index:05d}.png")
    return folder


def vit(**config: Any) -> dict[str, Any]:
    """A small 1-D tokenizer of 32-pixel pictures."""
    sides = {"patch_size": 4, "hidden_size": 96, "num_layers": 3, "num_heads": 3}
    widths = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sides.items()}
    return {"image_size": SIZE, "num_latent_tokens": 16, "pixel_head": "patch", **widths, **config}


def tokenizer_recipe(name: str, folder: Path, model: dict[str, Any], steps: int, **changes: Any) -> dict[str, Any]:
    """A recipe of stage "tokenizer" on the shapes."""
    return {
        "stage": "tokenizer",
        "name": name,
        "model": model,
        "data": {"kind": "folder", "path": str(draw_shapes(folder / "train", TRAIN, 0)), "flip": 0.5},
        "validation": {"kind": "folder", "path": str(draw_shapes(folder / "held_out", HELD_OUT, 1))},
        "steps": steps,
        "batch_size": 32,
        "precision": "float32",
        "optimizer": {"lr": 1.0e-3, "muon_lr": 0.02, "warmup": 50, "ema": 0.98},
        "log": {"evaluate": steps, "sheets": steps, "checkpoints": steps, "evaluate_images": 0},
        **changes,
    }


def train(recipe: dict[str, Any], folder: Path) -> Any:
    """Trains a recipe in `folder/<name>`, or goes on there; returns the averaged weights."""
    run = folder / recipe["name"]
    trainer = Trainer(parse_recipe(recipe), run, quiet=True)
    if trainer.step < trainer.recipe.steps:
        trainer.run()
    return load_trained(run)[0]


def experiment(about: str, work: Callable[[Path, int], list[dict[str, Any]]], steps: int) -> None:
    """
    The command line of an experiment.

    Args:
        about: first line of its help.
        work: takes the folder and the number of steps, returns the rows of the table.
        steps: by default.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--steps", type=int, default=steps, help="of each training")
    parser.add_argument("--output", type=Path, help="folder for data, runs and table.json; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.output or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = work(folder, options.steps)
        (folder / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
