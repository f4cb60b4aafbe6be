"""ResTok's hierarchical prior (arXiv 2601.03955, section 3.4): single tokens, then whole levels at once."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..layers.cfg_schedules import schedule_over
from ..layers.generation import CfgScale
from ..layers.rotary import axial_rotation
from ..llamagen.modeling_block_prior import BlockPrior
from .configuration_restok_prior import ResTokPriorConfig


class ResTokPrior(BlockPrior):
    """Writes `num_causal_tokens` ids one by one, then levels that double the sequence: 128 ids in 9 steps."""

    config: ResTokPriorConfig
    default_settings = {
        **BlockPrior.default_settings,
        "cfg_scale": 3.75,
        "cfg_schedule": "step",
        "cfg_window_start": 0.25,
        "cfg_window_end": 1.0,
        "cfg_num_steps": 0,
        "top_p": 0.95,
    }
    schedule_settings = ("cfg_schedule", "cfg_window_start", "cfg_window_end", "cfg_num_steps", "cfg_min_scale")

    def __init__(self, config: ResTokPriorConfig) -> None:
        super().__init__(config, config.num_special_tokens)

    def rotary(self, positions: Tensor) -> Callable[[Tensor], Tensor]:
        """Plain positions in the input sequence; the class is at 0."""
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        return axial_rotation(positions[:, None], head_dim, self.config.rope_theta)

    def schedule_ratio(self, step: int, cfg_num_steps: int = 0) -> float:
        """
        Where the authors' schedules see a step, in [0, 1].

        Args:
            step: number of the step, from 0.
            cfg_num_steps: count steps against so many; 0 means tokens, in the authors' way: the class is at 0, the
                first single token behind it counts tokens, the other single ones their own number, levels tokens.
        """
        if step == 0:
            return 0.0
        if cfg_num_steps:
            return step / max(cfg_num_steps - 1, 1)
        tokens, single = self.config.num_image_tokens, self.config.num_causal_tokens
        if 1 < step < single:
            return step / (single - 1)
        return sum(self.config.step_lengths[:step]) / max(tokens - 1, 1)

    def scheduled(
        self, cfg_scale: float, cfg_schedule: str = "constant", cfg_num_steps: int = 0, **window: Any
    ) -> CfgScale:
        """`cfg_scale` over the steps, see `schedule_ratio` and `schedule_over`."""

        def ratio(step: int, num_steps: int) -> float:
            return self.schedule_ratio(step, cfg_num_steps)

        return schedule_over(cfg_scale, cfg_schedule, ratio, **window)
