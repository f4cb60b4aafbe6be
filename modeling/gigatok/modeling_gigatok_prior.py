"""GigaTok's priors (arXiv 2504.08736, section 4): LlamaGen's transformer on a sequence instead of a grid."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..layers.cfg_schedules import schedule_over
from ..layers.generation import CfgScale
from ..layers.rotary import axial_rotation
from ..llamagen.modeling_llamagen_prior import LlamaGenPrior
from .configuration_gigatok_prior import GigaTokPriorConfig


class GigaTokPrior(LlamaGenPrior):
    """
    Writes 1-D ids from a class, one by one.

    Guidance follows `cfg_schedule` over the sequence (see `schedule_over`); the first token always has all of it.
    """

    config: GigaTokPriorConfig
    default_settings = {
        **LlamaGenPrior.default_settings,
        "cfg_scale": 1.75,
        "cfg_schedule": "step",
        "cfg_window_start": 0.18,
        "cfg_window_end": 1.0,
    }
    schedule_settings = ("cfg_schedule", "cfg_window_start", "cfg_window_end", "cfg_min_scale")

    def __init__(self, config: GigaTokPriorConfig) -> None:
        super().__init__(config)
        self.position_embedding = None
        if config.positions == "learned":
            positions = config.num_condition_tokens + config.num_image_tokens
            self.position_embedding = nn.Embedding(positions, config.hidden_size)
        self.post_init()

    def place(self, x: Tensor, positions: Tensor) -> Tensor:
        """Adds the learned positions."""
        return x if self.position_embedding is None else x + self.position_embedding(positions)

    def rotary(self, positions: Tensor) -> Callable[[Tensor], Tensor] | None:
        """None with learned positions."""
        if self.position_embedding is not None:
            return None
        config, index = self.config, positions - self.config.num_condition_tokens
        head_dim = config.hidden_size // config.num_attention_heads
        return axial_rotation(index[:, None], head_dim, config.rope_theta, inside=index >= 0)

    def scheduled(self, cfg_scale: float, cfg_schedule: str = "constant", **window: Any) -> CfgScale:
        """`cfg_scale` over the sequence; a token's ratio is its number over that of the last."""

        def ratio(step: int, num_steps: int) -> float | None:
            return step / max(num_steps - 1, 1) if step else None

        return schedule_over(cfg_scale, cfg_schedule, ratio, **window)
