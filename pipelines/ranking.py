"""The best of several candidates."""

from typing import Any

import torch
from torch import Tensor


def best_rows(scores: Any, candidates: int, count: int) -> Tensor:
    """
    Rows of the best candidates of each prompt, best first.

    Args:
        scores: one per row, higher is better; the candidates of a prompt lie one after the other.
        candidates: per prompt.
        count: how many of them to keep.

    Returns:
        int64 `(prompts * count,)`.

    Raises:
        ValueError: for another number of scores, or scores that are not finite.
    """
    scores = torch.as_tensor(scores, dtype=torch.float32)
    if scores.ndim != 1 or scores.numel() % candidates or not bool(scores.isfinite().all()):
        raise ValueError(f"Ranking needs one finite score per picture, got {scores.tolist()!r}.")
    best = scores.view(-1, candidates).topk(count, 1).indices  # (prompts, count)
    first = torch.arange(len(best), device=scores.device)[:, None] * candidates
    return (best + first).flatten()


def check_counts(num_images_per_prompt: int, best_of: int | None) -> int:
    """
    Candidates per prompt.

    Raises:
        ValueError: for numbers that are no whole numbers from 1, or fewer candidates than pictures.
    """
    for name, value in (("num_images_per_prompt", num_images_per_prompt), ("best_of", best_of)):
        if name == "best_of" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1, got {value!r}.")
    if best_of is not None and best_of < num_images_per_prompt:
        raise ValueError(f"best_of={best_of} candidates cannot give num_images_per_prompt={num_images_per_prompt}.")
    return num_images_per_prompt if best_of is None else best_of
