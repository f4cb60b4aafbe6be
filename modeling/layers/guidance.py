"""Classifier-free guidance: how strong at which step, and how two predictions are combined."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GUIDANCES = ("cfg", "autoguidance")
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


def _single(value: float) -> float:
    """Rounded as float32: limits of intervals are compared with times of that precision."""
    return torch.tensor(value, dtype=torch.float32).item()


@dataclass(frozen=True)
class GuidanceRule:
    """
    What guides a flow, how much, and when.

    The prediction is `b + g (c - b)`: c is the conditional one, b what `kind` says. Channels that are not guided keep
    c. A second condition n to stay away from adds `- h (n - b)` (composed conditions, arXiv 2206.01714).

    Args:
        scale: weight g; 1 means no guidance.
        kind: "cfg" (b is unconditional, or conditional on what to stay away from; arXiv 2207.12598) or
            "autoguidance" (b is a weaker model's, arXiv 2406.02507).
        channels: guide the first channels only (DiT's legacy: 3), all where None.
        intervals: (low, high) times (arXiv 2404.07724); no limits where empty.
        active: "inside" (guided where low <= t <= high) or "outside" (guided unless low <= t < high).
        other_scale: weight at the other times.
        negative_scale: weight h of what to stay away from, beside the unconditional prediction; 0 for none.

    Raises:
        ValueError: for an unknown kind, a number of channels below 1, or a scale that is no finite number.
    """

    scale: float = 1.0
    kind: str = "cfg"
    channels: int | None = None
    intervals: tuple[tuple[float, float], ...] = ()
    active: str = "inside"
    other_scale: float = 1.0
    negative_scale: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in GUIDANCES:
            raise ValueError(f"guidance must be one of {GUIDANCES}, got {self.kind!r}.")
        if self.active not in ("inside", "outside"):
            raise ValueError(f'guidance is active "inside" or "outside" of intervals, got {self.active!r}.')
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guidance_channels must be at least 1, or 0 for all, got {self.channels}.")
        if self.negative_scale and self.kind != "cfg":
            raise ValueError(f'negative_guidance_scale goes with guidance "cfg", not with {self.kind!r}.')
        check_scale("guidance_scale", self.scale)
        check_scale("negative_guidance_scale", self.negative_scale)

    def scale_at(self, t: float) -> float:
        """The weight g at time t."""
        return self.scale if self.active_at(t) else self.other_scale

    def active_at(self, t: float) -> bool:
        """Whether time t is one of those that are guided."""
        if not self.intervals:
            return True
        t, limits = _single(t), [(_single(low), _single(high)) for low, high in self.intervals]
        if self.active == "inside":
            return any(low <= t <= high for low, high in limits)
        return not any(low <= t < high for low, high in limits)

    def rows(self, t: float) -> int:
        """Rows per picture of the one forward at time t: 1 without guidance, 2, or 3 with two conditions."""
        if self.negative_scale and self.active_at(t):
            return 3
        return 1 if self.scale_at(t) == 1.0 else 2

    def join(self, cond: Tensor, base: Tensor, scale: float, negative: Tensor | None = None) -> Tensor:
        """`base + scale (cond - base)` `(B, C, ...)`; channels that are not guided are those of `cond`."""
        count = cond.shape[1] if self.channels is None else self.channels
        guided = combine(cond[:, :count], base[:, :count], scale)
        if negative is not None:
            guided = guided - self.negative_scale * (negative[:, :count] - base[:, :count])
        return guided if count >= cond.shape[1] else torch.cat([guided, cond[:, count:]], 1)
