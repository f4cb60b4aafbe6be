"""Sampling of [`LatentFlowTransformer`]: settings, guidance in one forward, flows and diffusion."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers.flow import check_steps
from ..layers.flow_sampling import (
    METHODS,
    GuidanceRule,
    StepCallback,
    flow_times,
    integrate,
    integrate_adaptive,
    integrate_sde,
    sde_times,
)
from ..layers.gaussian_diffusion import GaussianDiffusion, linear_betas

DIFFUSION = ("ddpm", "ddim")
Generators = torch.Generator | Sequence[torch.Generator] | None


def draw_like(x: Tensor, generator: Generators) -> Tensor:
    """Standard normal draws like `x` `(B, ...)`, from one generator or one per row."""
    if isinstance(generator, (list, tuple)):
        return torch.cat([draw_like(row[None], one) for row, one in zip(x, generator, strict=True)])
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


class FlowSamplingMixin:
    """`sample_latents` and what it is made of."""

    def make_guidance(
        self,
        scale: float | None = None,
        kind: str | None = None,
        channels: int | None = None,
        intervals: Sequence[Sequence[float]] | None = None,
    ) -> GuidanceRule:
        """
        The published guidance with some settings replaced; None keeps them.

        Args:
            scale, kind, intervals: see [`GuidanceRule`].
            channels: number of guided channels; 0 means all.
        """
        config = self.config
        published = config.guidance_channels if channels is None else (channels or None)
        chosen = config.guidance_intervals if intervals is None else intervals
        return GuidanceRule(
            config.guidance_scale if scale is None else scale,
            config.guidance if kind is None else kind,
            published,
            tuple((float(low), float(high)) for low, high in chosen),
            config.guidance_active,
            config.interval_scale,
        )

    def sample_times(self, num_inference_steps: int | None = None, sampler: str | None = None) -> list[float]:
        """The times that a sampler visits, from noise to data."""
        config = self.config
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        sampler = config.sampler if sampler is None else sampler
        if sampler in DIFFUSION:
            return self.diffusion(steps).timesteps[::-1]
        if sampler not in METHODS:
            raise ValueError(f"sampler must be one of {METHODS + DIFFUSION}, got {sampler!r}.")
        if sampler.startswith("sde"):
            return sde_times(steps, config.noise_time)
        return flow_times(config.grid, steps, config.time_shift)

    @staticmethod
    def diffusion(num_inference_steps: int) -> GaussianDiffusion:
        """DiT's noise schedule, respaced."""
        check_steps(num_inference_steps)
        return GaussianDiffusion(linear_betas(), num_inference_steps)

    def check_labels(self, class_labels: int | Sequence[int] | Tensor) -> Tensor:
        """
        Labels as int64 `(B,)` on the model's device.

        Raises:
            ValueError: for labels that are no whole numbers in [0, num_classes), or the null class.
        """
        labels = torch.as_tensor([class_labels] if isinstance(class_labels, int) else class_labels)
        if labels.ndim != 1 or labels.numel() == 0 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"class_labels must be whole numbers of shape (B,), got {class_labels!r}.")
        known = (labels >= 0) & (labels < self.config.num_classes)
        if self.config.has_null_class:
            known = known | (labels == self.null_class)
        if not bool(known.all()):
            raise ValueError(f"class_labels must lie in [0, {self.config.num_classes - 1}], got {labels.tolist()}.")
        return labels.long().to(self.device)

    # ------------------------------------------------------------------ guidance

    def guided(
        self,
        x: Tensor,
        t: float,
        class_labels: Tensor,
        guidance: GuidanceRule,
        weak_model: Any = None,
        scale: float | None = None,
    ) -> Tensor:
        """
        What the network says at time `t`, guided; one forward of 2B rows where classes guide.

        Args:
            x: `(B, C, h, w)`.
            t: the time of all rows.
            class_labels: int64 `(B,)`.
            guidance: see [`GuidanceRule`].
            weak_model: the other model of autoguidance.
            scale: in place of the rule's weight at this time.

        Raises:
            ValueError: where the rule needs a weak model or a null class that is not there.
        """
        scale = guidance.scale_at(t) if scale is None else scale
        if scale == 1.0:
            return self._say(self, x, t, class_labels)
        if guidance.kind == "autoguidance":
            if weak_model is None:
                raise ValueError(
                    "This generator is guided by a weaker one (autoguidance): give weak_model, or guidance_scale=1, or "
                    'guidance="cfg".'
                )
            strong, weak = (self._say(model, x, t, class_labels) for model in (self, weak_model))
            return guidance.join(strong, weak, scale)
        if not self.config.has_null_class:
            raise ValueError("This generator has no null class to be guided by: use guidance_scale=1.")
        labels = torch.cat([class_labels, torch.full_like(class_labels, self.null_class)])
        cond, uncond = self._say(self, torch.cat([x, x]), t, labels).chunk(2)
        if self.config.prediction == "epsilon" and guidance.channels is None:  # the variance is not guided
            count = self.config.in_channels
            return torch.cat([guidance.join(cond[:, :count], uncond[:, :count], scale), cond[:, count:]], 1)
        return guidance.join(cond, uncond, scale)

    @staticmethod
    def _say(model: Any, x: Tensor, t: float, class_labels: Tensor) -> Tensor:
        times = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        return model(x.to(model.dtype), times, class_labels, return_dict=False)[0].to(x.dtype)

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample_latents(
        self,
        noise: Tensor,
        class_labels: int | Sequence[int] | Tensor,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance: str | GuidanceRule | None = None,
        guidance_channels: int | None = None,
        guidance_intervals: Sequence[Sequence[float]] | None = None,
        sampler: str | None = None,
        weak_model: Any = None,
        step_noise: Tensor | None = None,
        generator: Generators = None,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        """
        Follows the flow (DiT: the diffusion) from noise to latents. Settings that are None are as published.

        Args:
            noise: standard normal `(B, C, h, w)`.
            class_labels: one per latent.
            num_inference_steps: as the authors count: grid points of "points", "rae" and "rectok" grids and of
                stochastic samplers, else steps.
            guidance_scale: weight; 1 means none.
            guidance: "cfg" or "autoguidance", or a whole [`GuidanceRule`].
            guidance_channels: number of guided channels, 0 for all.
            guidance_intervals: `(low, high)` times; see `guidance_active` of the configuration.
            sampler: "euler", "heun", "dopri5" (adaptive), "sde", "sde_heun"; of a DiT "ddpm" or "ddim".
            weak_model: the weaker generator of autoguidance.
            step_noise: draws of stochastic samplers, one row per step `(S, B, C, h, w)`.
            generator: draws them otherwise: one, or one per latent.
            on_step: called with (step, t, latents) after each step; may return other latents.

        Returns:
            float32 latents `(B, C, h, w)` of the flow; `denormalize_latents` makes those that the tokenizer takes.

        Raises:
            ValueError: for bad labels, steps, scales, or a sampler that does not fit.
        """
        sampler = self.config.sampler if sampler is None else sampler
        if (sampler in DIFFUSION) != (self.config.prediction == "epsilon"):
            raise ValueError(f"A generator of {self.config.prediction} cannot use the sampler {sampler!r}.")
        rule = guidance
        if not isinstance(rule, GuidanceRule):
            rule = self.make_guidance(guidance_scale, guidance, guidance_channels, guidance_intervals)
        labels, times = self.check_labels(class_labels), self.sample_times(num_inference_steps, sampler)
        x = noise.to(self.device, torch.float64 if self.config.float64_state else torch.float32)
        if labels.shape != x.shape[:1]:
            raise ValueError(f"There are {len(x)} noises and {len(labels)} class_labels.")

        def draw(step: int) -> Tensor:
            return draw_like(x, generator) if step_noise is None else step_noise[step].to(x)

        def velocity(x: Tensor, t: float) -> Tensor:
            return self.guided(x, t, labels, rule, weak_model)

        if sampler in DIFFUSION:
            return self._denoise(x, labels, rule, len(times), draw, sampler, on_step)
        if sampler == "dopri5":
            return integrate_adaptive(velocity, x, times[0], times[-1], on_step=on_step).float()
        if sampler.startswith("sde"):
            heun, side = sampler == "sde_heun", self.config.noise_time
            return integrate_sde(velocity, x, times, draw, noise_time=side, heun=heun, on_step=on_step).float()
        return integrate(velocity, x, times, method=sampler, on_step=on_step).float()

    def _denoise(
        self,
        x: Tensor,
        labels: Tensor,
        rule: GuidanceRule,
        steps: int,
        draw: Callable[[int], Tensor],
        sampler: str,
        on_step: StepCallback | None,
    ) -> Tensor:
        def predict(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
            out = self.guided(x, t, labels, rule)
            count = self.config.in_channels
            fraction = out[:, count:] if self.config.learn_sigma else -torch.ones_like(x)
            return out[:, :count], fraction

        diffusion = self.diffusion(steps)
        if sampler == "ddim":
            return diffusion.sample_ddim(predict, x, on_step)
        return diffusion.sample(predict, x, draw, on_step=on_step)
