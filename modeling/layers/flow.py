"""Rectified flows from noise (t = 1) to data (t = 0): Euler steps, guidance of velocities, times for training."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from torch import Tensor

from .guidance import check_scale, combine

GuidanceScale = float | Callable[[float], float]
GUIDANCE_KINDS = ("cfg", "apg")


@dataclass
class FlowGuidance:
    """
    How conditional and unconditional velocities are joined.

    Args:
        scale: weight s of guidance, or a function of the time t in (0, 1]; 1 means none.
        kind: "cfg" (`vu + s (vc - vu)`) or "apg" (adaptive projected guidance, arXiv 2410.02416).
        momentum, eta, norm_threshold: of "apg": weight of the running average of differences, share of the part
            parallel to `vc` that is kept, longest difference (0 for no bound).

    Raises:
        ValueError: for a scale that is not finite, or an unknown kind.
    """

    scale: GuidanceScale = 1.0
    kind: str = "apg"
    momentum: float = -0.5
    eta: float = 0.0
    norm_threshold: float = 2.5

    def __post_init__(self) -> None:
        if self.kind not in GUIDANCE_KINDS:
            raise ValueError(f"guidance must be one of {GUIDANCE_KINDS}, got {self.kind!r}.")
        if not callable(self.scale):
            check_scale("guidance_scale", self.scale)

    def scales(self, times: Sequence[float]) -> list[float]:
        """The weight at each of `times`."""
        if not callable(self.scale):
            return [float(self.scale)] * len(times)
        values = [self.scale(t) for t in times]
        for t, value in zip(times, values, strict=True):
            check_scale(f"guidance_scale({t:.3g})", value)
        return [float(value) for value in values]

    def start(self) -> MomentumBuffer | None:
        """A fresh momentum buffer for one batch."""
        return MomentumBuffer(self.momentum) if self.kind == "apg" else None

    def __call__(self, cond: Tensor, uncond: Tensor, scale: float, buffer: MomentumBuffer | None) -> Tensor:
        """The guided velocity of `cond` and `uncond`, `(B, C, h, w)`."""
        if self.kind == "cfg":
            return combine(cond, uncond, scale)
        return normalized_guidance(
            cond,
            uncond,
            scale - 1.0,
            buffer,
            eta=self.eta,
            norm_threshold=self.norm_threshold,
            use_original_formulation=True,
        )


def euler_sigmas(num_inference_steps: int) -> list[float]:
    """Times `1, (T - 1) / T, ..., 1 / T` of T equal Euler steps; the schedulers' own default grid is another one."""
    return [i / num_inference_steps for i in range(num_inference_steps, 0, -1)]


def check_steps(num_inference_steps: int) -> None:
    """Raises a ValueError unless it is a whole number from 1."""
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be a whole number from 1, got {num_inference_steps!r}.")


def check_flow_scheduler(scheduler: Any) -> None:
    """Raises a ValueError unless it is a flow-matching Euler scheduler with static shifting."""
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ValueError(
            f"scheduler must be a FlowMatchEulerDiscreteScheduler (rectified flow), got {type(scheduler).__name__}."
        )
    if scheduler.config.use_dynamic_shifting:
        raise ValueError("The scheduler must have use_dynamic_shifting=False: times here do not depend on the size.")


def euler_scheduler(num_inference_steps: int, scheduler: FlowMatchEulerDiscreteScheduler | None = None) -> Any:
    """
    A scheduler of its own for one run, ready to step.

    Its times stay on the host: a step then never waits for the device.
    """
    check_steps(num_inference_steps)
    scheduler = FlowMatchEulerDiscreteScheduler() if scheduler is None else copy.deepcopy(scheduler)
    check_flow_scheduler(scheduler)
    scheduler.set_timesteps(sigmas=euler_sigmas(num_inference_steps), device="cpu")
    scheduler.set_begin_index(0)
    return scheduler


def sample_flow(
    velocity: Callable[[Tensor, Tensor, bool], Tensor],
    noise: Tensor,
    num_inference_steps: int,
    guidance: FlowGuidance,
    scheduler: FlowMatchEulerDiscreteScheduler | None = None,
    on_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """
    Follows a flow from noise to data.

    Args:
        velocity: `(x (B, ...), t (B,), guided)` to the velocity `(B, ...)`, or, where `guided`, to conditional and
            unconditional ones in one batch `(2B, ...)`.
        noise: `(B, ...)`, standard normal.
        num_inference_steps: number T of Euler steps.
        guidance: see [`FlowGuidance`].
        scheduler: its `shift` bends the times; equal steps where None.
        on_step: called with (step, t, x) after each step; may return another x.
    """
    scheduler = euler_scheduler(num_inference_steps, scheduler)
    times = scheduler.sigmas[:-1].tolist()
    scales, buffer = guidance.scales(times), guidance.start()
    guided = any(scale != 1.0 for scale in scales)
    x = noise.float()
    for step, (t, scale) in enumerate(zip(times, scales, strict=True)):
        v = velocity(x, x.new_full((len(x),), t), guided).float()
        if guided:
            cond, uncond = v.chunk(2)
            v = guidance(cond, uncond, scale, buffer)
        x = scheduler.step(v, scheduler.timesteps[step], x, return_dict=False)[0]
        if on_step is not None:
            changed = on_step(step, scheduler.timesteps[step], x)
            x = x if changed is None else changed
    return x


def training_times(
    uniform: Tensor, kind: str = "mode", mode_scale: float = 0.25, *, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """
    Times of a training batch from uniform draws in [0, 1).

    Args:
        uniform: `(B,)`.
        kind: "uniform", "mode" (Stable Diffusion 3, arXiv 2403.03206, eq. 20) or "logit_normal" (the sigmoid of a
            standard normal).
        mode_scale: of "mode"; 0 means uniform.
        mean, std: of the normal behind "logit_normal".
    """
    if kind == "uniform":
        return uniform
    if kind == "mode":
        return 1 - uniform - mode_scale * (torch.cos(math.pi * uniform / 2).square() - 1 + uniform)
    if kind == "logit_normal":
        return (mean + std * torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))).sigmoid()
    raise ValueError(f'timestep sampling must be "uniform", "mode" or "logit_normal", got {kind!r}.')


def flow_pair(data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """`x_t = t noise + (1 - t) data` and its velocity `noise - data`, for t of shape `(B,)`."""
    t = t.view(-1, *[1] * (data.ndim - 1)).to(data)
    return t * noise + (1 - t) * data, noise - data
