"""Sampling of [`LatentFlowTransformer`]: settings, guidance in one forward, flows and diffusion."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from ..layers.flow import check_steps
from ..layers.flow_sampling import (
    METHODS,
    StepCallback,
    flow_times,
    integrate,
    integrate_adaptive,
    integrate_sde,
    sde_times,
)
from ..layers.gaussian_diffusion import GaussianDiffusion, linear_betas
from ..layers.guidance import GuidanceRule

DIFFUSION = ("ddpm", "ddim")
Condition = Tensor | dict[str, Tensor]  # class labels, or arguments of the network by name
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
        negative_scale: float | None = None,
    ) -> GuidanceRule:
        """
        The published guidance with some settings replaced; None keeps them.

        Args:
            scale, kind, intervals, negative_scale: see [`GuidanceRule`].
            channels: number of guided channels; 0 means all.
        """
        config = self.config
        published = config.guidance_channels if channels is None else (channels or None)
        chosen = config.guidance_intervals if intervals is None else intervals
        kind = config.guidance if kind is None else kind
        return GuidanceRule(
            config.guidance_scale if scale is None else scale,
            kind,
            published,
            tuple((float(low), float(high)) for low, high in chosen),
            config.guidance_active,
            config.interval_scale if kind == config.guidance else 1.0,  # a weight is that of one kind
            negative_scale or 0.0,
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

    def check_conditions(
        self,
        class_labels: int | Sequence[int] | Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """
        Classes or texts as arguments of the network.

        Raises:
            ValueError: for bad labels, and for texts where the network takes none (or none where it needs them).
        """
        if self.config.text_dim is None:
            if class_labels is None or encoder_hidden_states is not None:
                raise ValueError("This generator draws classes: give class_labels, and no text.")
            return {"class_labels": self.check_labels(class_labels)}
        if encoder_hidden_states is None:
            raise ValueError("This generator draws texts: give encoder_hidden_states.")
        states, mask = self.pad_text(encoder_hidden_states, encoder_attention_mask)
        labels = torch.full((len(states),), self.null_class, device=states.device)
        if class_labels is not None:
            labels = self.check_labels(class_labels)
        return {"class_labels": labels, "encoder_hidden_states": states, "encoder_attention_mask": mask}

    def null_condition(self, condition: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        "No class" and "no text" in the place of each row.

        Raises:
            ValueError: where classes are all there is, and there is no null class.
        """
        if self.config.text_dim is None and not self.config.has_null_class:
            raise ValueError("This generator has no null class to be guided by: use guidance_scale=1.")
        null = {"class_labels": torch.full_like(condition["class_labels"], self.null_class)}
        for name in condition.keys() - null.keys():
            null[name] = torch.zeros_like(condition[name])
        return null

    # ------------------------------------------------------------------ guidance

    def guided(
        self,
        x: Tensor,
        t: float,
        condition: Condition,
        guidance: GuidanceRule,
        weak_model: Any = None,
        scale: float | None = None,
        negative: Condition | None = None,
    ) -> Tensor:
        """
        What the network says at time `t`, guided: one forward of `guidance.rows(t)` rows per picture (autoguidance: one
        of each model).

        Args:
            x: `(B, C, h, w)`.
            t: the time of all rows.
            condition: class labels int64 `(B,)`, or what `check_conditions` returns.
            guidance: see [`GuidanceRule`].
            weak_model: the other model of autoguidance.
            scale: in place of the rule's weight at this time.
            negative: what to stay away from: takes the place of "no class", or stands beside it where the rule has
                a `negative_scale`.

        Raises:
            ValueError: where the rule needs a weak model, a null class or `negative`, which is not there.
        """
        if isinstance(condition, Tensor):
            condition = {"class_labels": condition}
        if isinstance(negative, Tensor):
            negative = {"class_labels": negative}
        beside = bool(guidance.negative_scale) and guidance.active_at(t)
        scale = guidance.scale_at(t) if scale is None else scale
        if scale == 1.0 and not beside:
            return self._say(self, x, t, condition)
        if guidance.kind == "autoguidance":
            if weak_model is None:
                raise ValueError(
                    "This generator is guided by a weaker one (autoguidance): give weak_model, or guidance_scale=1, or "
                    'guidance="cfg".'
                )
            strong, weak = (self._say(model, x, t, condition) for model in (self, weak_model))
            return guidance.join(strong, weak, scale)
        if beside and negative is None:
            raise ValueError("negative_guidance_scale needs a condition to stay away from.")
        rows = [condition, negative if negative is not None and not beside else self.null_condition(condition)]
        rows += [negative] if beside else []
        stacked = {name: torch.cat([row[name] for row in rows]) for name in condition}
        said = self._say(self, torch.cat([x] * len(rows)), t, stacked).chunk(len(rows))
        if self.config.prediction == "epsilon" and guidance.channels is None:  # the variance is not guided
            guidance = replace(guidance, channels=self.config.in_channels)
        return guidance.join(said[0], said[1], scale, said[2] if beside else None)

    @staticmethod
    def _say(model: Any, x: Tensor, t: float, condition: dict[str, Tensor]) -> Tensor:
        times = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        return model(x.to(model.dtype), times, **condition, return_dict=False)[0].to(x.dtype)

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    @apply_forward_hook
    def sample_latents(
        self,
        noise: Tensor,
        class_labels: int | Sequence[int] | Tensor | None = None,
        *,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        negative: dict[str, Any] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance: str | GuidanceRule | None = None,
        guidance_channels: int | None = None,
        guidance_intervals: Sequence[Sequence[float]] | None = None,
        negative_guidance_scale: float | None = None,
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
            encoder_hidden_states, encoder_attention_mask: texts `(B, L, F)` and `(B, L)` of a generator of texts.
            negative: what to stay away from: the same three by name.
            num_inference_steps: as the authors count: grid points of "points", "rae" and "rectok" grids and of
                stochastic samplers, else steps.
            guidance_scale: weight; 1 means none.
            guidance: "cfg" or "autoguidance", or a whole [`GuidanceRule`].
            guidance_channels: number of guided channels, 0 for all.
            guidance_intervals: `(low, high)` times; see `guidance_active` of the configuration.
            negative_guidance_scale: weight of `negative` beside the null condition, in a forward of 3B rows; without,
                `negative` takes the place of that one.
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
            rule = self.make_guidance(
                guidance_scale, guidance, guidance_channels, guidance_intervals, negative_guidance_scale
            )
        condition = self.check_conditions(class_labels, encoder_hidden_states, encoder_attention_mask)
        avoided, times = negative and self.check_conditions(**negative), self.sample_times(num_inference_steps, sampler)
        device = noise.device if self.device.type == "meta" else self.device  # meta: weights are fetched layer by layer
        x = noise.to(device, torch.float64 if self.config.float64_state else torch.float32)
        if any(len(row["class_labels"]) != len(x) for row in (condition, avoided or condition)):
            count = len(condition["class_labels"])
            raise ValueError(f"There are {len(x)} noises and {count} conditions: give one of each kind per noise.")

        def draw(step: int) -> Tensor:
            return draw_like(x, generator) if step_noise is None else step_noise[step].to(x)

        def velocity(x: Tensor, t: float) -> Tensor:
            return self.guided(x, t, condition, rule, weak_model, negative=avoided)

        if sampler in DIFFUSION:
            return self._denoise(velocity, x, len(times), draw, sampler, on_step)
        if sampler == "dopri5":
            return integrate_adaptive(velocity, x, times[0], times[-1], on_step=on_step).float()
        if sampler.startswith("sde"):
            heun, side = sampler == "sde_heun", self.config.noise_time
            return integrate_sde(velocity, x, times, draw, noise_time=side, heun=heun, on_step=on_step).float()
        return integrate(velocity, x, times, method=sampler, on_step=on_step).float()

    def _denoise(
        self,
        say: Callable[[Tensor, float], Tensor],
        x: Tensor,
        steps: int,
        draw: Callable[[int], Tensor],
        sampler: str,
        on_step: StepCallback | None,
    ) -> Tensor:
        def predict(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
            out, count = say(x, t), self.config.in_channels
            fraction = out[:, count:] if self.config.learn_sigma else -torch.ones_like(x)
            return out[:, :count], fraction

        diffusion = self.diffusion(steps)
        if sampler == "ddim":
            return diffusion.sample_ddim(predict, x, on_step)
        return diffusion.sample(predict, x, draw, on_step=on_step)
