"""Masked generation (MaskGIT, arXiv 2202.04200) as TiTok samples: guess all, keep the surest, mask the rest again."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .guidance import check_scale, combine, masked_cfg_scale
from .sampling import Generators, draw_uniform, gumbel


@dataclass
class MaskGitSampler:
    """
    One sampling run's settings, and its steps.

    Args:
        num_inference_steps: number of forward passes.
        cfg_scale: full weight of guidance.
        cfg_schedule: see [`masked_cfg_scale`].
        cfg_power: exponent of the "power-cosine" schedule.
        choice_temperature: of the Gumbel noise on candidates and on confidences, falling linearly to 0.
        anneal_logits: divide logits by `0.5 + 0.8 * (1 - r)`, r the share of steps done.
    """

    num_inference_steps: int = 8
    cfg_scale: float = 4.5
    cfg_schedule: str = "constant"
    cfg_power: float = 3.0
    choice_temperature: float = 1.0
    anneal_logits: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.num_inference_steps, bool) or not isinstance(self.num_inference_steps, int):
            raise ValueError(f"num_inference_steps must be a whole number, got {self.num_inference_steps!r}.")
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}.")
        for name in ("cfg_scale", "cfg_power", "choice_temperature"):
            check_scale(name, getattr(self, name))
        self.cfg_at(0)

    def cfg_at(self, step: int) -> float:
        """Weight of guidance at `step`; 0 means that the conditional pass alone is needed."""
        return masked_cfg_scale(self.cfg_schedule, self.cfg_scale, step, self.num_inference_steps, self.cfg_power)

    def guided_logits(self, predict: Callable[[bool], Tensor], step: int) -> Tensor:
        """
        Logits of a step.

        Args:
            predict: takes whether the unconditional half is wanted, returns `(B, N, V)` or, with it, `(2B, N, V)`.
            step: from 0.
        """
        scale = self.cfg_at(step)
        if scale == 0:
            return predict(False)
        cond, uncond = predict(True).chunk(2)
        return combine(cond, uncond, scale, "uncond" if self.cfg_schedule == "power-cosine" else "cond")

    def step(
        self,
        logits: Tensor,
        step: int,
        token_ids: Tensor,
        mask_token_id: int,
        generator: Generators = None,
        draws: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """
        Fills the masked positions and masks the least sure of them again.

        Args:
            logits: `(B, N, V)`, guided.
            step: from 0.
            token_ids: `(B, N)`, `mask_token_id` where open.
            mask_token_id: the id that stands for "open".
            generator: source of the draws.
            draws: uniform draws to use instead, `(B, N, V)` and `(B, N)`.
        """
        ratio = (step + 1) / self.num_inference_steps
        temperature = self.choice_temperature * (1.0 - ratio)
        logits = logits.float()
        if self.anneal_logits:
            logits = logits / (0.5 + 0.8 * (1.0 - ratio))
        if draws is None:
            draws = (
                draw_uniform(tuple(logits.shape), generator, logits.device),
                draw_uniform(tuple(token_ids.shape), generator, logits.device),
            )
        candidates = (logits + temperature * gumbel(draws[0])).argmax(-1)
        scores = logits.gather(-1, candidates[..., None])[..., 0]
        is_open = token_ids == mask_token_id
        candidates = torch.where(is_open, candidates, token_ids)
        if step == self.num_inference_steps - 1:
            return candidates
        scores = scores.masked_fill(~is_open, float("inf"))
        confidence = self.confidence(scores, temperature, draws[1])
        count = math.floor(token_ids.shape[1] * math.acos(ratio) / (math.pi / 2))
        return candidates.masked_fill(self._least_sure(confidence, is_open, count), mask_token_id)

    def confidence(self, scores: Tensor, temperature: float, uniform: Tensor) -> Tensor:
        """How sure each position is: the logit of its candidate, with Gumbel noise of `uniform` draws."""
        return scores + temperature * gumbel(uniform)

    @staticmethod
    def _least_sure(confidence: Tensor, is_open: Tensor, count: int) -> Tensor:
        # all rows have as many open positions as the first; kept on the device, so that nothing waits for the host
        open_count = is_open[0].sum()
        count = torch.clamp(open_count - 1, max=count).clamp_min(1)
        order = confidence.sort(-1).values
        threshold = order.gather(-1, (count - 1).expand(len(confidence), 1))
        return confidence <= threshold


def cosine_masking_ratio(uniform: Tensor) -> Tensor:
    """Share of tokens to mask in training, `acos(u) / (pi / 2)`."""
    return torch.acos(uniform) / (math.pi / 2)


def open_ids(
    shape: tuple[int, int], mask_token_id: int, prior_token_ids: Tensor | None, device: torch.device
) -> Tensor:
    """
    Ids to start from: all open, or those that are given.

    Raises:
        ValueError: for given ids of a wrong shape or range.
    """
    if prior_token_ids is None:
        return torch.full(shape, mask_token_id, device=device)
    low, high = int(prior_token_ids.min()), int(prior_token_ids.max())
    if tuple(prior_token_ids.shape) != shape or low < 0 or high > mask_token_id:
        raise ValueError(
            f"prior_token_ids must have shape {shape} and values in [0, {mask_token_id}] "
            f"({mask_token_id} = open), got {tuple(prior_token_ids.shape)}, values from {low} to {high}."
        )
    return prior_token_ids.to(device)
