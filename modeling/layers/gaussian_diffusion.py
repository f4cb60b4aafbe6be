"""
Denoising diffusion with a learned variance (arXiv 2102.09672): noise schedules, respaced ancestral sampling, losses.

diffusers' `DDPMScheduler` has the same steps, but takes neither given draws nor a temperature.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

OnStep = Callable[[int, int, Tensor], Tensor | None] | None


def _report(on_step: OnStep, count: int, step: int, x: Tensor) -> Tensor:
    changed = None if on_step is None else on_step(count, step, x)
    return x if changed is None else changed


def cosine_betas(num_steps: int = 1000, max_beta: float = 0.999) -> Tensor:
    """Nichol and Dhariwal's cosine schedule, float64 `(num_steps,)`."""

    def kept(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [kept((i + 1) / num_steps) / kept(i / num_steps) for i in range(num_steps)]
    return torch.tensor([min(1 - ratio, max_beta) for ratio in ratios], dtype=torch.float64)


def linear_betas(num_steps: int = 1000) -> Tensor:
    """From 1e-4 to 0.02 for 1000 steps, float64 `(num_steps,)`."""
    scale = 1000 / num_steps
    return torch.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=torch.float64)


def spaced_steps(num_train_steps: int, num_inference_steps: int) -> list[int]:
    """Which training steps are kept: equally spaced, the first and the last among them."""
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
        raise ValueError(f"The number of diffusion steps must be a whole number, got {num_inference_steps!r}.")
    if not 1 <= num_inference_steps <= num_train_steps:
        raise ValueError(f"The number of diffusion steps must be 1 to {num_train_steps}, got {num_inference_steps}.")
    stride = (num_train_steps - 1) / max(num_inference_steps - 1, 1)
    return [round(i * stride) for i in range(num_inference_steps)]


class GaussianDiffusion:
    """
    Tables of a schedule at the kept steps, computed in float64, and what is done with them.

    Args:
        betas: of all training steps.
        num_inference_steps: steps to keep; all where None.
    """

    def __init__(self, betas: Tensor, num_inference_steps: int | None = None) -> None:
        kept = spaced_steps(len(betas), len(betas) if num_inference_steps is None else num_inference_steps)
        alpha_bar = (1 - betas).cumprod(0)[torch.tensor(kept)]
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        beta = 1 - alpha_bar / before
        variance = beta * (1 - before) / (1 - alpha_bar)
        self.timesteps = kept
        self.alpha_bar, self.log_beta = alpha_bar, beta.log()
        # the first variance is 0: its logarithm is replaced by the second's
        self.log_variance = torch.cat([variance[1:2], variance[1:]]).log() if len(kept) > 1 else self.log_beta
        self.start_coefficient = beta * before.sqrt() / (1 - alpha_bar)
        self.sample_coefficient = (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar)

    def add_noise(self, data: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """`x_t` of `data` `(B, ..., C)` at steps `(B, ...)`."""
        alpha = self._at(self.alpha_bar, step, data)
        return alpha.sqrt() * data + (1 - alpha).sqrt() * noise

    @staticmethod
    def _at(table: Tensor, step: Tensor, like: Tensor) -> Tensor:
        values = table.to(device=like.device, dtype=like.dtype)[step]
        return values.view(*step.shape, *[1] * (like.ndim - step.ndim))

    def _log_variance(self, fraction: Tensor, step: Tensor) -> Tensor:
        f = (fraction + 1) / 2
        return f * self._at(self.log_beta, step, f) + (1 - f) * self._at(self.log_variance, step, f)

    def _mean(self, x: Tensor, start: Tensor, step: Tensor) -> Tensor:
        return self._at(self.start_coefficient, step, x) * start + self._at(self.sample_coefficient, step, x) * x

    def predict_start(self, x: Tensor, epsilon: Tensor, step: Tensor) -> Tensor:
        """The data that `x` `(B, ..., C)` holds if its noise is `epsilon`."""
        alpha = self._at(self.alpha_bar, step, x)
        return (1 / alpha).sqrt() * x - (1 / alpha - 1).sqrt() * epsilon

    def sample(
        self,
        predict: Callable[[Tensor, int], tuple[Tensor, Tensor]],
        start: Tensor,
        noise: Callable[[int], Tensor],
        temperature: float = 1.0,
        on_step: OnStep = None,
    ) -> Tensor:
        """
        Ancestral sampling.

        Args:
            predict: `(x, t)` to the noise in `x` and the variance's place in [-1, 1], each like `x`; `t` counts
                training steps.
            start: standard normal `(B, ..., C)`.
            noise: number of the step (from 0) to standard normal draws like `start`; not asked at the last step.
            temperature: factor of the noise.
            on_step: called with (number of the step, training step, x) after each; may return another x.
        """
        x, total = start, len(self.timesteps)
        for count, index in enumerate(reversed(range(total))):
            step = torch.full((), index, dtype=torch.long, device=x.device)
            epsilon, fraction = predict(x, self.timesteps[index])
            mean = self._mean(x, self.predict_start(x, epsilon, step), step)
            x = mean
            if index:
                x = mean + torch.exp(0.5 * self._log_variance(fraction, step)) * noise(count) * temperature
            x = _report(on_step, count, self.timesteps[index], x)
        return x

    def sample_ddim(
        self, predict: Callable[[Tensor, int], tuple[Tensor, Tensor]], start: Tensor, on_step: OnStep = None
    ) -> Tensor:
        """
        Deterministic sampling (DDIM, arXiv 2010.02502, eta 0).

        Args:
            predict, start, on_step: as for `sample`; the variance is not read.
        """
        x = start
        for count, index in enumerate(reversed(range(len(self.timesteps)))):
            step = torch.full((), index, dtype=torch.long, device=x.device)
            epsilon, _ = predict(x, self.timesteps[index])
            x = self.predict_start(x, epsilon, step)
            if index:
                alpha = self._at(self.alpha_bar, step - 1, x)
                x = alpha.sqrt() * x + (1 - alpha).sqrt() * epsilon
            x = _report(on_step, count, self.timesteps[index], x)
        return x

    def losses(self, data: Tensor, noise: Tensor, step: Tensor, prediction: Tensor) -> dict[str, Tensor]:
        """
        Terms of the hybrid objective for each latent.

        Args:
            data, noise: `(B, ..., C)`.
            step: int64 `(B, ...)`.
            prediction: `(B, ..., 2C)` of the noisy data: noise, then the variance's place in [-1, 1].

        Returns:
            `mse_loss` and `vlb_loss` (bits; it teaches the variance alone), each `(B, ...)`.
        """
        epsilon, fraction = prediction.float().chunk(2, -1)
        x = self.add_noise(data, noise, step)
        true_mean, true_log = self._mean(x, data, step), self._at(self.log_variance, step, data)
        mean = self._mean(x, self.predict_start(x, epsilon.detach(), step), step)
        log = self._log_variance(fraction, step)
        square = (true_mean - mean).square() * torch.exp(-log)
        divergence = 0.5 * (log - true_log - 1 + torch.exp(true_log - log) + square)
        likelihood = 0.5 * (math.log(2 * math.pi) + log + (data - mean).square() * torch.exp(-log))
        first = (step == 0).view(*step.shape, *[1] * (data.ndim - step.ndim))
        vlb = torch.where(first, likelihood, divergence).mean(-1) / math.log(2)
        return {"mse_loss": (epsilon - noise).square().mean(-1), "vlb_loss": vlb}
