"""The scheduler of masked generation: published settings as a configuration, one `step` per forward pass."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from ...modeling.layers.masked_generation import MaskGitSampler
from ...modeling.layers.sampling import Generators


@dataclass
class MaskGitSchedulerOutput(BaseOutput):
    """
    Result of a step.

    Args:
        prev_sample: int64 `(B, N)`, ids with fewer open positions.
    """

    prev_sample: Tensor


class MaskGitScheduler(SchedulerMixin, ConfigMixin):
    """
    TiTok's sampler of masked priors. diffusers' `AmusedScheduler` differs in confidence, annealing and guidance.

    Args:
        num_inference_steps, cfg_scale, cfg_schedule, cfg_power, choice_temperature, anneal_logits: see
            [`MaskGitSampler`].
        mask_token_id: the id of an open position; set by the pipeline from its prior where None.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_inference_steps: int = 8,
        cfg_scale: float = 4.5,
        cfg_schedule: str = "constant",
        cfg_power: float = 3.0,
        choice_temperature: float = 1.0,
        anneal_logits: bool = False,
        mask_token_id: int | None = None,
    ) -> None:
        self.set_timesteps()

    def sampler(self, **settings: Any) -> MaskGitSampler:
        """The sampler of the configuration, with `settings` that are not None in its place."""
        names = MaskGitSampler.__dataclass_fields__
        merged = {name: self.config[name] if settings.get(name) is None else settings[name] for name in names}
        return MaskGitSampler(**merged)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None, **settings: Any
    ) -> None:
        """Prepares a run: `timesteps` count from 0. `settings` replace those of the configuration."""
        self._sampler = self.sampler(num_inference_steps=num_inference_steps, **settings)
        self.num_inference_steps = self._sampler.num_inference_steps
        self.timesteps = torch.arange(self.num_inference_steps, device=device)

    def cfg_at(self, timestep: int) -> float:
        """Weight of guidance at a step."""
        return self._sampler.cfg_at(int(timestep))

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        generator: Generators = None,
        mask_token_id: int | None = None,
        draws: tuple[Tensor, Tensor] | None = None,
        return_dict: bool = True,
    ) -> MaskGitSchedulerOutput | tuple[Tensor]:
        """
        Fills and masks again.

        Args:
            model_output: guided logits `(B, N, V)`.
            timestep: from 0.
            sample: ids `(B, N)`.
            generator: source of the draws.
            mask_token_id: where the configuration has none.
            draws: uniform draws `(B, N, V)` and `(B, N)` to use instead.
            return_dict: whether to return a [`MaskGitSchedulerOutput`].
        """
        mask = self.config.mask_token_id if mask_token_id is None else mask_token_id
        if mask is None:
            raise ValueError("Give mask_token_id: the scheduler's configuration has none.")
        ids = self._sampler.step(model_output, int(timestep), sample, mask, generator, draws)
        return MaskGitSchedulerOutput(ids) if return_dict else (ids,)
