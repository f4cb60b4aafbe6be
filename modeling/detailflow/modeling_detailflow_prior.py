"""DetailFlow's priors (arXiv 2505.21473, section 3.4): single tokens, then groups that are drawn in parallel."""

from collections.abc import Callable

from torch import Tensor

from ..layers.generation import CfgScale
from ..layers.rotary import apply_rotary, grid_rotary_at
from ..llamagen.modeling_block_prior import BlockPrior
from .configuration_detailflow_prior import DetailFlowPriorConfig

SCHEDULES = ("constant", "gradual")


class DetailFlowPrior(BlockPrior):
    """
    Writes `num_causal_tokens` ids one by one and the rest in groups: 128 ids in 23 steps.

    Positions turn with the group and the place in the group. Self-correction is learned from
    `DetailFlowModel.correction_streams`: `forward(ids_input, class_labels, label_ids=ids_label)`.
    """

    config: DetailFlowPriorConfig
    default_settings = {**BlockPrior.default_settings, "cfg_scale": 1.45, "cfg_schedule": "constant"}
    schedule_settings = ("cfg_schedule",)

    def __init__(self, config: DetailFlowPriorConfig) -> None:
        super().__init__(config, config.group_size - 1)

    def rotary(self, positions: Tensor) -> Callable[[Tensor], Tensor]:
        """Rows are groups, columns places in a group; the class position has zero queries and keys."""
        config = self.config
        grid = (config.num_image_tokens // config.group_size, config.group_size)
        head_dim = config.hidden_size // config.num_attention_heads
        cos, sin = grid_rotary_at(positions, grid, head_dim, config.rope_theta, zero_rows=1)
        return lambda heads: apply_rotary(heads, cos, sin)

    def scheduled(self, cfg_scale: float, cfg_schedule: str = "constant") -> CfgScale:
        """ "gradual" weakens guidance from group to group; single tokens have all of it."""
        if cfg_schedule not in SCHEDULES:
            raise ValueError(f"cfg_schedule must be one of {SCHEDULES}, got {cfg_schedule!r}.")
        if cfg_schedule == "constant":
            return cfg_scale
        first = self.config.num_causal_tokens
        groups = self.config.num_image_tokens // self.config.group_size

        def at(step: int, num_steps: int) -> float:
            group = step - first + first // self.config.group_size
            return cfg_scale if step < first else cfg_scale * (groups - group + 1) / (groups + 1)

        return at
