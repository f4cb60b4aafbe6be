"""Classifier-free guidance: how strong at which step, and how two predictions are combined."""

import math

from torch import Tensor

CFG_SCHEDULES = ("constant", "linear", "power-cosine")


def masked_cfg_scale(schedule: str, scale: float, step: int, num_steps: int, power: float = 3.0) -> float:
    """
    Weight of guidance at a step of masked generation.

    Args:
        schedule: "constant", "linear" (0 at the first step) or "power-cosine" (1 at the first step).
        scale: the full weight.
        step: from 0.
        num_steps: number of steps.
        power: exponent of "power-cosine".
    """
    if schedule == "constant":
        return scale
    if schedule == "linear":
        return scale * step / num_steps
    if schedule == "power-cosine":
        return (scale - 1) * (1 - math.cos(math.pi * (step / num_steps) ** power)) / 2 + 1
    raise ValueError(f"cfg_schedule must be one of {CFG_SCHEDULES}, got {schedule!r}.")


def combine(cond: Tensor, uncond: Tensor, scale: float | Tensor, base: str = "uncond") -> Tensor:
    """`base + scale * (cond - uncond)`, with the conditional or the unconditional prediction as the base."""
    if base not in ("cond", "uncond"):
        raise ValueError(f'base must be "cond" or "uncond", got {base!r}.')
    return (cond if base == "cond" else uncond) + scale * (cond - uncond)


def check_scale(name: str, value: float | None) -> None:
    """Raises a ValueError for a guidance scale that is no finite number."""
    if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
        raise ValueError(f"{name} must be a finite number, got {value!r}.")
