"""MaskGen over ids (arXiv 2501.07730, section 3.3): a text and N ids in, N rows of logits out, filled in few steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from transformers import initialization as init

from ..layers.guidance import combine
from ..layers.losses import masked_token_loss
from ..layers.masked_generation import MaskGitSampler, cosine_masking_ratio, open_ids
from ..layers.sampling import Generators
from ..outputs import ImagePriorOutput
from .configuration_maskgen import MaskGenConfig
from .modeling_maskgen_utils import MaskGenBase

SCHEDULES = ("cosine", "linear", "flippedcosine", "none")
SETTINGS = (
    "num_inference_steps",
    "cfg_scale",
    "cfg_schedule",
    "cfg_power",
    "choice_temperature",
    "anneal_logits",
    "noisy_confidence",
)


@dataclass
class MaskGenSampler(MaskGitSampler):
    """
    MaskGIT's sampler with MaskGen's guidance: `cond + w (cond - uncond)`, w at step s from the ratio (s + 1) / S.

    Args:
        cfg_schedule: "cosine" and "linear" rise from 1 to `cfg_scale`, "flippedcosine" falls from `(cfg_scale + 1) / 2`
            (the authors' formula), "none" keeps it. A `cfg_scale` of 0 means no guidance at all.
        cfg_power: exponent of the ratio in the two cosines.
        noisy_confidence: whether confidences get Gumbel noise too.
    """

    num_inference_steps: int = 16
    cfg_scale: float = 12.0
    cfg_schedule: str = "cosine"
    cfg_power: float = 1.0
    choice_temperature: float = 2.0
    anneal_logits: bool = True
    noisy_confidence: bool = True

    def cfg_at(self, step: int) -> float:
        """Weight of guidance at `step`."""
        if self.cfg_schedule not in SCHEDULES:
            raise ValueError(f"cfg_schedule must be one of {SCHEDULES}, got {self.cfg_schedule!r}.")
        scale, ratio = self.cfg_scale, (step + 1) / self.num_inference_steps
        if self.cfg_schedule == "none" or scale == 0:
            return scale
        if self.cfg_schedule == "linear":
            return ratio * (scale - 1) + 1
        wave = math.cos(math.pi * ratio**self.cfg_power)
        return (scale - 1) * (wave if self.cfg_schedule == "flippedcosine" else 1 - wave) / 2 + 1

    def guided_logits(self, predict: Callable[[bool], Tensor], step: int) -> Tensor:
        """See [`MaskGitSampler`]; here the base is always the conditional prediction."""
        if self.cfg_scale == 0:
            return predict(False)
        cond, uncond = predict(True).chunk(2)
        return combine(cond, uncond, self.cfg_at(step), "cond")

    def confidence(self, scores: Tensor, temperature: float, uniform: Tensor) -> Tensor:
        """Scores, with noise where `noisy_confidence`."""
        return super().confidence(scores, temperature if self.noisy_confidence else 0.0, uniform)


class MaskGenPrior(MaskGenBase):
    """
    Writes TA-TiTok's ids from a text, a few positions at each step.

    Ids below `codebook_size` are codes, `codebook_size` stands for an open position. Conditions: [`MaskGenBase`].
    """

    config: MaskGenConfig
    main_input_name = "token_ids"
    score_waves = (1000.0, "sin_cos")
    default_settings = {
        "num_inference_steps": 16,
        "cfg_scale": 12.0,
        "cfg_schedule": "cosine",
        "cfg_power": 1.0,
        "choice_temperature": 2.0,
        "anneal_logits": True,
        "noisy_confidence": True,
        "micro_conditions": 6.5,
    }

    def __init__(self, config: MaskGenConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embeddings = nn.Embedding(config.codebook_size + 1 + config.num_spare_rows, width)
        self.position_embedding = nn.Parameter(torch.empty(config.num_image_tokens, width))
        self._build_conditions(config)
        if not config.tie_lm_head:
            self.lm_head = nn.Linear(width, config.codebook_size)
        self.post_init()

    def init_own_weights(self) -> None:
        """Fresh positions."""
        init.normal_(self.position_embedding, std=self.config.initializer_range)

    @property
    def mask_token_id(self) -> int:
        """The id of an open position."""
        return self.config.mask_id

    def predict(
        self,
        token_ids: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        micro_conditions: Tensor | None = None,
    ) -> Tensor:
        """
        Logits of all positions.

        Args:
            token_ids: int64 `(B, N)`, `mask_token_id` where open.
            encoder_hidden_states, pooled_projections, micro_conditions: `(B, T, D)`, `(B, P)`, `(B,)`.

        Returns:
            `(B, N, codebook_size)`.
        """
        text = self.text_proj(encoder_hidden_states)
        condition = self.pooled_condition(pooled_projections, micro_conditions)
        x = self.embeddings(token_ids) + self.position_embedding[: token_ids.shape[1]]
        x = self.trunk(x, text, condition)
        if not self.config.tie_lm_head:
            return self.lm_head(x)
        # through the module, not its weight: under sequential offload the weight is elsewhere until a call
        return x @ self.embeddings(torch.arange(self.config.codebook_size, device=x.device)).T

    def forward(
        self,
        token_ids: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        micro_conditions: Tensor | None = None,
        negative_encoder_hidden_states: Tensor | None = None,
        negative_pooled_projections: Tensor | None = None,
        mask: Tensor | None = None,
        **kwargs: Any,
    ) -> ImagePriorOutput:
        """
        Logits in eval mode; in training mode also the masked-token loss on randomly masked ids.

        Args:
            token_ids: int64 `(B, N)`. In training mode: complete ids.
            encoder_hidden_states, pooled_projections, micro_conditions: see [`MaskGenBase`].
            negative_encoder_hidden_states, negative_pooled_projections: of the empty text, for training with
                guidance.
            mask: bool `(B, N)`, what training hides; drawn where `None`.
        """
        self.check_text(encoder_hidden_states, pooled_projections)
        states, pooled = encoder_hidden_states.to(self.dtype), pooled_projections.to(self.dtype)
        if not self.training:
            return ImagePriorOutput(logits=self.predict(token_ids, states, pooled, micro_conditions))
        if mask is None:
            uniform = torch.rand(token_ids.shape[0], 1, device=token_ids.device)
            count = (cosine_masking_ratio(uniform) * token_ids.shape[1]).round().clamp_min(1)
            mask = torch.rand(token_ids.shape, device=token_ids.device).argsort(-1) < count
        texts = self.drop_text(states, pooled, negative_encoder_hidden_states, negative_pooled_projections)
        logits = self.predict(token_ids.masked_fill(mask, self.mask_token_id), *texts, micro_conditions)
        loss, accuracy = masked_token_loss(
            logits,
            token_ids,
            mask,
            label_smoothing=self.config.label_smoothing,
            unmasked_weight=self.config.unmasked_loss_weight,
        )
        losses = {"masked_token_loss": loss, "accuracy": accuracy.detach()}
        return ImagePriorOutput(loss=loss, losses=losses, logits=logits)

    def sampler(self, **settings: Any) -> MaskGenSampler:
        """The sampler of this checkpoint: published settings, replaced by those of `settings` that are not None."""
        unknown = set(settings) - set(SETTINGS)
        if unknown:
            raise ValueError(f"Unknown settings {sorted(unknown)}; known: {', '.join(SETTINGS)}.")
        return MaskGenSampler(**{name: self.setting(name, settings.get(name)) for name in SETTINGS})

    @apply_forward_hook
    @torch.no_grad()
    def generate(
        self,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        *,
        micro_conditions: float | Tensor | None = None,
        negative_encoder_hidden_states: Tensor | None = None,
        negative_pooled_projections: Tensor | None = None,
        num_inference_steps: int | None = None,
        cfg_scale: float | None = None,
        cfg_schedule: str | None = None,
        cfg_power: float | None = None,
        choice_temperature: float | None = None,
        anneal_logits: bool | None = None,
        noisy_confidence: bool | None = None,
        prior_token_ids: Tensor | None = None,
        generator: Generators = None,
        draws: tuple[Tensor, Tensor] | None = None,
        callback: Callable[[int, Tensor], Tensor | None] | None = None,
    ) -> ImagePriorOutput:
        """
        Writes ids for each text.

        Args:
            encoder_hidden_states, pooled_projections, negative_encoder_hidden_states, negative_pooled_projections:
                see [`MaskGenBase`]; the negative ones may have one row for all.
            micro_conditions: aesthetic score, or one per image. The authors' code uses the published one whatever is
                given.
            num_inference_steps, cfg_scale, cfg_schedule, cfg_power, choice_temperature, anneal_logits,
                noisy_confidence: see [`MaskGenSampler`]; `None` means as published.
            prior_token_ids: ids `(B, N)` to complete; open positions hold `mask_token_id`.
            generator: random generator, or one per image.
            draws: uniform draws to use instead: `(S, B, N, V)` for candidates and `(S, B, N)` for confidences.
            callback: called with (step, ids) after each step; may return other ids.

        Returns:
            [`ImagePriorOutput`] with `token_ids` `(B, N)`.
        """
        sampler = self.sampler(
            num_inference_steps=num_inference_steps,
            cfg_scale=cfg_scale,
            cfg_schedule=cfg_schedule,
            cfg_power=cfg_power,
            choice_temperature=choice_temperature,
            anneal_logits=anneal_logits,
            noisy_confidence=noisy_confidence,
        )
        conditions = self.join_conditions(
            encoder_hidden_states,
            pooled_projections,
            micro_conditions,
            negative_encoder_hidden_states,
            negative_pooled_projections,
            guided=sampler.cfg_scale != 0,
        )
        mask_id, shape = self.mask_token_id, (len(encoder_hidden_states), self.num_tokens)
        ids = open_ids(shape, mask_id, prior_token_ids, self.device)
        for step in range(sampler.num_inference_steps):

            def predict(guided: bool, ids: Tensor = ids) -> Tensor:
                return self.predict(torch.cat([ids, ids]) if guided else ids, *conditions)

            logits = sampler.guided_logits(predict, step)
            given = None if draws is None else (draws[0][step], draws[1][step])
            ids = sampler.step(logits, step, ids, mask_id, generator, given)
            if callback is not None:
                changed = callback(step, ids)
                ids = ids if changed is None else changed
        return ImagePriorOutput(token_ids=ids)
