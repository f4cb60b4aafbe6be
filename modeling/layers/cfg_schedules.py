"""Schedules of guidance over an autoregressive sequence (GigaTok, ResTok): a share of the way to a scale."""

import math
from collections.abc import Callable
from typing import Any

SPARE = 1e-4  # the authors keep scales above 1, so that the unconditional half is never left out


def _window(ratio: float, start: float, end: float) -> float:
    return float(start <= ratio <= end)


# how much of the guidance acts at `ratio` in [0, 1], with the ends of a window; authors describe the first three
STRENGTHS: dict[str, Callable[[float, float, float], float]] = {
    "constant": lambda ratio, start, end: 1.0,
    "step": lambda ratio, start, end: float(ratio >= start),
    "linear": lambda ratio, start, end: ratio,
    "linear_re": lambda ratio, start, end: 1.0 - ratio,
    "linear_constant": lambda ratio, start, end: min(ratio / start, 1.0) if start else 1.0,
    "triangular": lambda ratio, start, end: 1.0 - abs(2.0 * ratio - 1.0),
    "rectangular": _window,
    "cosine": lambda ratio, start, end: (1.0 - math.cos(math.pi * ratio)) / 2.0,
    "cosine_re": lambda ratio, start, end: (1.0 + math.cos(math.pi * ratio)) / 2.0,
}


def scheduled_scale(
    schedule: str,
    scale: float,
    ratio: float,
    *,
    window_start: float = 0.0,
    window_end: float = 1.0,
    min_scale: float | None = None,
) -> float:
    """
    Weight of guidance at a point of the sequence.

    Args:
        schedule: a key of `STRENGTHS`.
        scale: the full weight.
        ratio: where the sequence is, in [0, 1].
        window_start, window_end: of "step", "rectangular" and "linear_constant" (which rises until the start).
        min_scale: the weight where guidance is off, a little above 1 where None.

    Raises:
        ValueError: for an unknown schedule.
    """
    if schedule not in STRENGTHS:
        raise ValueError(f"cfg_schedule must be one of {', '.join(STRENGTHS)}, got {schedule!r}.")
    min_scale = 1.0 + SPARE if min_scale is None else min_scale
    strength = STRENGTHS[schedule](ratio, window_start, window_end)
    return min_scale + (scale - min_scale) * strength


def schedule_over(
    cfg_scale: float, cfg_schedule: str, ratio_at: Callable[[int, int], float | None], **window: Any
) -> float | Callable[[int, int], float]:
    """
    A scale as a function of (step, number of steps).

    Args:
        cfg_scale, cfg_schedule: the full weight, and a key of `STRENGTHS`; a constant one stays a number.
        ratio_at: where the sequence is at a step, in [0, 1]; None for steps that always have the full weight.
        window: options of [`scheduled_scale`] with "cfg_" in front of their names.

    Raises:
        ValueError: for an unknown schedule.
    """
    window = {name.removeprefix("cfg_"): value for name, value in window.items()}
    scheduled_scale(cfg_schedule, cfg_scale, 0.0, **window)  # names are checked before the first step
    if cfg_schedule == "constant":
        return cfg_scale

    def at(step: int, num_steps: int) -> float:
        ratio = ratio_at(step, num_steps)
        return cfg_scale if ratio is None else scheduled_scale(cfg_schedule, cfg_scale, ratio, **window)

    return at
