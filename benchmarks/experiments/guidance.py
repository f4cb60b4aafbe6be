"""
Condition dropout and guidance (arXiv 2207.12598): without the first, the second leaves the data.

The latents are draws from a mixture of Gaussians that overlap, so that the class of a sample is known in closed form:
guidance raises the share of samples that are of their class. Their spread tells whether they are still like the data.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_vistok.data.token_source import FORMAT, INDEX, safetensors_bytes, shard_name

from .common import experiment, train

CLASSES, SHAPE, SPREAD, DISTANCE = 4, (2, 4, 4), 1.0, 0.35


def means() -> np.ndarray:
    """Centres of the classes `(classes, C, h, w)`."""
    return np.random.default_rng(0).normal(size=(CLASSES, *SHAPE)) * DISTANCE


def write_latents(folder: Path, count: int) -> Path:
    """A set of latents as `hf-vistok tokenize --dataset` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(count) % CLASSES
    values = means()[labels] + SPREAD * np.random.default_rng(1).normal(size=(count, *SHAPE))
    metadata = {
        "images": json.dumps([f"class{label}/{i}.png" for i, label in enumerate(labels)]),
        "captions": json.dumps([""] * count),
        "records": "[]",
        "skipped": "0",
    }
    (folder / shard_name(0)).write_bytes(safetensors_bytes({"latents": values.astype(np.float32)}, metadata))
    index = {"format": FORMAT, "image_size": 32, "codebook_size": None, "shards": [count]}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def recipe(data: Path, dropout: float, steps: int) -> dict[str, Any]:
    """A small flow transformer with classes."""
    config = {
        "sample_size": SHAPE[1], "patch_size": 1, "in_channels": SHAPE[0], "hidden_size": 64, "num_layers": 3,
        "num_heads": 4, "num_classes": CLASSES, "class_dropout": dropout, "rotary": True,
    }  # fmt: skip
    return {
        "stage": "latent_flow",
        "name": f"dropout_{dropout}",
        "labels": "folder",
        "model": {"type": "LatentFlowTransformer", "config": config},
        "data": {"kind": "tokens", "path": str(data)},
        "steps": steps,
        "batch_size": 128,
        "precision": "float32",
        "optimizer": {"lr": 1.0e-3, "muon_lr": 0.02, "warmup": 50, "ema": 0.98},
        "log": {"evaluate": steps, "sheets": steps, "checkpoints": steps},
    }


def measure(model: Any, scale: float, count: int = 400) -> dict[str, float]:
    """Share of samples that are nearest to their class's centre, and their spread around it."""
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    samples = model.sample_latents(noise, labels, num_inference_steps=20, guidance_scale=scale).double()
    centres = torch.from_numpy(means())
    distances = (samples[:, None] - centres[None]).square().flatten(2).sum(2)
    return {
        "of their class": float((distances.argmin(1) == labels).double().mean()),
        "spread": float((samples - centres[labels]).square().mean().sqrt()),
    }


def work(folder: Path, steps: int) -> list[dict[str, Any]]:
    """One row for each share of dropped classes and each weight of guidance."""
    data, rows = write_latents(folder / "latents", 4000), []
    real = torch.from_numpy(means())
    draws = real.repeat(100, 1, 1, 1) + SPREAD * torch.randn(
        100 * CLASSES, *SHAPE, generator=torch.Generator().manual_seed(2)
    )
    nearest = (draws[:, None] - real[None]).square().flatten(2).sum(2).argmin(1)
    true = float((nearest == torch.arange(100 * CLASSES) % CLASSES).double().mean())
    rows.append({"class dropout": "real", "guidance": "-", "of their class": true, "spread": SPREAD})
    for dropout in (0.1, 0.0):
        model = train(recipe(data, dropout, steps), folder)
        shared = {"class dropout": str(dropout)}
        rows += [{**shared, "guidance": str(scale), **measure(model, scale)} for scale in (1.0, 2.0, 4.0)]
    return rows


if __name__ == "__main__":
    experiment(__doc__.strip().splitlines()[0], work, 500)
