"""
Flows between noise and data as the class-conditional transformers use them: time grids, integrators.

Here time may run either way (`noise_time` 1: noise at t = 1; 0: noise at t = 0). `layers/flow.py` holds what flow
decoders on diffusers' scheduler use.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .flow import check_steps

GRIDS = ("points", "steps", "rae", "rectok")
METHODS = ("euler", "heun", "dopri5", "sde", "sde_heun")
LAST_SDE_STEP = 0.04  # stochastic samplers go this last part of the way by the drift alone

Velocity = Callable[[Tensor, float], Tensor]
StepCallback = Callable[[int, float, Tensor], Tensor | None]


# ------------------------------------------------------------------ times


def shift_times(times: Tensor, shift: float) -> Tensor:
    """`s t / (1 + (s - 1) t)`: more steps near t = 1 for s < 1, near t = 0 for s > 1 seen from equal steps."""
    return shift * times / (1 + (shift - 1) * times)


def resolution_shift(size: int, base: int = 4096) -> float:
    """The shift of latents with `size` numbers: `sqrt(size / base)` (Stable Diffusion 3, RAE section 4.2)."""
    return math.sqrt(size / base)


def flow_times(grid: str, num_steps: int, shift: float = 1.0) -> list[float]:
    """
    The times of a sampler, from noise to data.

    Args:
        grid: "points" (S points from 0 to 1: S - 1 steps; SiT, LightningDiT), "steps" (S steps from 1 to 0; REPA),
            "rae" (S points from 1 to 0.001 before the shift: it stops short of the data), "rectok" (S points from 0
            to 1, shifted from the data's side).
        num_steps: S, as the authors count it.
        shift: see [`shift_times`].

    Raises:
        ValueError: for an unknown grid, or S that gives no step.
    """
    check_steps(num_steps)
    if grid not in GRIDS:
        raise ValueError(f"grid must be one of {GRIDS}, got {grid!r}.")
    if grid == "steps":
        return shift_times(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift).tolist()
    if num_steps < 2:
        raise ValueError(f"num_inference_steps counts points here and must be at least 2, got {num_steps}.")
    if grid == "rae":
        return shift_times(1 - torch.linspace(0, 0.999, num_steps), shift).tolist()
    times = shift_times(torch.linspace(0, 1, num_steps), shift)
    if grid == "rectok" and shift > 1:
        times = (times[-1] - times).flip(0)
    return times.tolist()


def sde_times(num_steps: int, noise_time: int) -> list[float]:
    """S points up to the last step of size 0.04, and the data's end."""
    check_steps(num_steps)
    if num_steps < 2:
        raise ValueError(f"num_inference_steps counts points here and must be at least 2, got {num_steps}.")
    noise = torch.linspace(1, LAST_SDE_STEP, num_steps, dtype=torch.float64).tolist() + [0.0]
    return noise if noise_time == 1 else [1 - t for t in noise]


# ------------------------------------------------------------------ integrators


def integrate(
    velocity: Velocity,
    x: Tensor,
    times: Sequence[float],
    *,
    method: str = "euler",
    on_step: StepCallback | None = None,
) -> Tensor:
    """
    Follows `dx / dt = velocity(x, t)` through `times`.

    Args:
        velocity: `(x, t)` to something like x.
        x: the start.
        times: rising or falling.
        method: "euler" or "heun" (whose last step is an Euler step: the velocity at the data's end is not asked).
        on_step: called with (step, t, x) after each step; may return another x.
    """
    last = len(times) - 2
    for step, (now, then) in enumerate(zip(times[:-1], times[1:], strict=True)):
        v = velocity(x, now)
        moved = x + (then - now) * v
        if method == "heun" and step < last:
            moved = x + (then - now) * 0.5 * (v + velocity(moved, then))
        x = _report(on_step, step, now, moved)
    return x


def score_of(v: Tensor, x: Tensor, t: float, noise_time: int) -> Tensor:
    """The score `grad log p_t(x)` of the linear path, from its velocity."""
    sigma, to_data = (t, -v) if noise_time == 1 else (1 - t, v)
    return ((1 - sigma) * to_data - x) / sigma


def integrate_sde(
    velocity: Velocity,
    x: Tensor,
    times: Sequence[float],
    noise: Callable[[int], Tensor],
    *,
    noise_time: int,
    heun: bool = False,
    on_step: StepCallback | None = None,
) -> Tensor:
    """
    The reverse-time SDE of the same marginals with diffusion `w = sigma` (SiT, section 3.4), by Euler-Maruyama.

    Args:
        velocity: see [`integrate`].
        x: noise.
        times: see [`sde_times`]; the last step follows the drift without noise.
        noise: number of the step to standard normal draws like x.
        noise_time: the time at which the flow is noise.
        heun: Heun's method on the drift.
        on_step: see [`integrate`].
    """
    towards_data = -1.0 if noise_time == 1 else 1.0

    def drift(x: Tensor, t: float) -> Tensor:  # of a clock that runs towards the data
        v, sigma = velocity(x, t), t if noise_time == 1 else 1 - t
        return towards_data * v + sigma * score_of(v, x, t, noise_time)

    last = len(times) - 2
    for step, (now, then) in enumerate(zip(times[:-1], times[1:], strict=True)):
        length, sigma = abs(then - now), now if noise_time == 1 else 1 - now
        draw = math.sqrt(2 * sigma * length) * noise(step) if step < last else None
        x = _sde_step(drift, x, now, then, draw, heun and step < last)
        x = _report(on_step, step, now, x)
    return x


def _sde_step(drift: Velocity, x: Tensor, now: float, then: float, draw: Tensor | None, heun: bool) -> Tensor:
    length = abs(then - now)
    if not heun:
        moved = x + length * drift(x, now)
        return moved if draw is None else moved + draw
    x = x + draw
    first = drift(x, now)
    return x + length * 0.5 * (first + drift(x + length * first, then))


def _report(on_step: StepCallback | None, step: int, t: float, x: Tensor) -> Tensor:
    changed = None if on_step is None else on_step(step, t, x)
    return x if changed is None else changed


# The tableau of Dormand and Prince; the last row is also the step itself.
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def integrate_adaptive(
    velocity: Velocity,
    x: Tensor,
    start: float,
    end: float,
    *,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    on_step: StepCallback | None = None,
) -> Tensor:
    """
    Dormand and Prince's method of order 5 with steps that follow the error ("dopri5"). Each step asks the device.

    Args:
        velocity, x, on_step: see [`integrate`].
        start, end: times.
        rtol, atol: allowed error of a step.
    """
    sign, length = math.copysign(1.0, end - start), abs(end - start)

    def slope(x: Tensor, s: float) -> Tensor:  # on a clock from 0 to `length`
        return sign * velocity(x, start + sign * s)

    now, first, count = 0.0, slope(x, 0.0), 0
    step = min(_first_step(slope, x, first, rtol, atol), length)
    while now < length - 1e-9:
        step = min(step, length - now)
        moved, last, error = _dopri_step(slope, x, first, now, step)
        scale = atol + rtol * torch.maximum(x.abs(), moved.abs())
        ratio = float((error / scale).square().mean().sqrt())
        if ratio <= 1:
            x, first, now = _report(on_step, count, start + sign * now, moved), last, now + step
            count += 1
        step *= min(10.0, max(0.2 if ratio > 1 else 1.0, 0.9 * max(ratio, 1e-10) ** -0.2))
    return x


def _dopri_step(slope: Velocity, x: Tensor, first: Tensor, now: float, step: float) -> tuple[Tensor, Tensor, Tensor]:
    slopes = [first]
    for node, row in zip(_NODES, _STAGES, strict=True):
        moved = x + step * sum(weight * k for weight, k in zip(row, slopes, strict=True) if weight)
        slopes.append(slope(moved, now + node * step))
    error = step * sum(weight * k for weight, k in zip(_ERROR, slopes, strict=True) if weight)
    return moved, slopes[-1], error


def _first_step(slope: Velocity, x: Tensor, first: Tensor, rtol: float, atol: float) -> float:
    """Hairer's choice of the first step."""

    def norm(value: Tensor) -> float:
        return float((value / (atol + rtol * x.abs())).square().mean().sqrt())

    size, speed = norm(x), norm(first)
    guess = 1e-6 if min(size, speed) < 1e-5 else 0.01 * size / speed
    bend = norm(slope(x + guess * first, guess) - first) / guess
    largest = max(speed, bend)
    other = max(1e-6, guess * 1e-3) if largest <= 1e-15 else (0.01 / largest) ** 0.2
    return min(100 * guess, other)
