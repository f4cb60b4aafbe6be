"""What both MaskGen priors share: text, pooled text and aesthetic score as conditions of an MM-DiT trunk."""

from typing import Any

import torch
from torch import Tensor, nn

from ..layers.mmdit import JointTrunk
from ..layers.time_embedding import sinusoid
from ..prior_utils import PreTrainedImagePrior


class MaskGenBase(PreTrainedImagePrior):
    """
    Conditions of MaskGen.

    `encoder_hidden_states` are CLIP's states before its last layer, without norm, `(B, T, D)`; `pooled_projections`
    the projected text `(B, P)`; `micro_conditions` the aesthetic score, about 4 to 7. The null condition of guidance
    is the same of an empty text: it is no weight of the model, give it as `negative_*`.
    """

    _no_split_modules = ["JointBlock"]
    # (period, order) of the aesthetic score's sinusoid
    score_waves: tuple[float, str] = (10000.0, "cos_sin")

    def _build_conditions(self, config: Any) -> None:
        width = config.hidden_size
        pooled = config.text_embed_dim + (config.micro_condition_dim if config.micro_condition else 0)
        self.text_proj = nn.Linear(config.text_embed_dim, width)
        self.pooled_proj = nn.Linear(pooled, width)
        self.trunk = JointTrunk(width, config.num_attention_heads, config.num_hidden_layers)

    def pooled_condition(self, pooled_projections: Tensor, micro_conditions: Tensor | None) -> Tensor:
        """Pooled text `(B, P)` and aesthetic scores `(B,)` to the condition of all norms, `(B, D)`."""
        if self.config.micro_condition:
            if micro_conditions is None:
                raise ValueError(f"{type(self).__name__} needs micro_conditions: an aesthetic score for each image.")
            period, order = self.score_waves
            waves = sinusoid(100.0 * micro_conditions, self.config.micro_condition_dim, period, order)
            pooled_projections = torch.cat([pooled_projections, waves.to(pooled_projections)], 1)
        return self.pooled_proj(pooled_projections)

    def check_text(self, encoder_hidden_states: Tensor, pooled_projections: Tensor, prefix: str = "") -> None:
        """Raises a ValueError for conditions of a wrong rank or width, or batches that differ."""
        name, width = type(self).__name__, self.config.text_embed_dim
        states, pooled = encoder_hidden_states, pooled_projections
        if states.ndim != 3 or not states.is_floating_point() or states.shape[2] != width or 0 in states.shape:
            raise ValueError(
                f"{name}: {prefix}encoder_hidden_states must be float (B, T, {width}), got {tuple(states.shape)}."
            )
        if pooled.shape != (len(states), width):
            raise ValueError(
                f"{name}: {prefix}pooled_projections must be {(len(states), width)}, got {tuple(pooled.shape)}."
            )

    def join_conditions(
        self,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        micro_conditions: float | Tensor | None,
        negative_encoder_hidden_states: Tensor | None,
        negative_pooled_projections: Tensor | None,
        guided: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """
        Conditions of one pass, and, where `guided`, those of the empty text behind them.

        Raises:
            ValueError: for wrong shapes, or where guidance lacks the empty text's condition.
        """
        self.check_text(encoder_hidden_states, pooled_projections)
        batch, name = len(encoder_hidden_states), type(self).__name__
        scores = self._scores(micro_conditions, batch)
        states, pooled = encoder_hidden_states.to(self.dtype), pooled_projections.to(self.dtype)
        if not guided:
            return states, pooled, scores
        if negative_encoder_hidden_states is None or negative_pooled_projections is None:
            raise ValueError(
                f"{name}: guidance needs negative_encoder_hidden_states and negative_pooled_projections, those of an "
                "empty text; MaskGenPipeline encodes it."
            )
        self.check_text(negative_encoder_hidden_states, negative_pooled_projections, "negative_")
        if len(negative_encoder_hidden_states) not in (1, batch):
            raise ValueError(f"{name}: give one negative condition, or one for each of the {batch} images.")
        null = negative_encoder_hidden_states.to(states).expand(batch, -1, -1)
        null_pooled = negative_pooled_projections.to(pooled).expand(batch, -1)
        both = None if scores is None else torch.cat([scores, scores])
        return torch.cat([states, null]), torch.cat([pooled, null_pooled]), both

    def _scores(self, value: float | Tensor | None, batch: int) -> Tensor | None:
        if not self.config.micro_condition:
            return None
        value = self.setting("micro_conditions", value)
        scores = torch.as_tensor(value, dtype=torch.float32, device=self.device)
        if scores.ndim > 1 or scores.numel() not in (1, batch):
            raise ValueError(
                f"micro_conditions must be a number or {batch} aesthetic scores, got {tuple(scores.shape)}."
            )
        return scores.expand(batch)

    def drop_text(
        self,
        states: Tensor,
        pooled: Tensor,
        negative_states: Tensor | None,
        negative_pooled: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """For training: each text is replaced by the empty one with probability `text_dropout`, where it is given."""
        if negative_states is None or negative_pooled is None or not self.config.text_dropout:
            return states, pooled
        drop = torch.rand(len(states), 1, device=states.device) < self.config.text_dropout
        states = torch.where(drop[..., None], negative_states.to(states), states)
        return states, torch.where(drop, negative_pooled.to(pooled), pooled)
