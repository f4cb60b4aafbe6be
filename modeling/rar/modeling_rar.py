"""
RAR (arXiv 2411.00776): next-token prediction in any order, where each position knows which place it predicts.

Shape suffixes in comments: B images, N tokens, n new positions, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..ar_prior_utils import Condition, PreTrainedARPrior
from ..layers.adaln import Modulation, modulate
from ..layers.attention import Mlp
from ..layers.causal import CausalAttention
from ..layers.generation import CfgScale, Window
from ..layers.guidance import masked_cfg_scale
from ..layers.losses import next_token_loss
from ..outputs import ImagePriorOutput
from .configuration_rar import RARConfig

PREFIX = 2  # positions before the tokens: a learned one and the class


class RARBlock(GradientCheckpointingLayer):
    """Pre-norm block whose norms are modulated, and branches gated, by a condition of each position."""

    def __init__(self, config: RARConfig, layer_idx: int) -> None:
        super().__init__()
        dim, heads, eps = config.hidden_size, config.num_attention_heads, config.layer_norm_eps
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attn = CausalAttention(
            dim,
            heads,
            layer_idx,
            qkv_bias=True,
            proj_bias=True,
            q_norm=nn.LayerNorm(dim // heads, eps=eps),
            k_norm=nn.LayerNorm(dim // heads, eps=eps),
            dropout=config.attention_dropout,
            config=config,
        )
        self.mlp = Mlp(dim, config.intermediate_size)
        self.modulation = Modulation(dim, 6)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """`x` and `condition` `(B, n, D)` to `(B, n, D)`; `mask` and `cache` as for [`CausalAttention`]."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)
        attended = self.attn(modulate(self.norm1(x), shift, scale), mask, cache=cache)
        x = x + gate * self.dropout(attended)
        return x + mlp_gate * self.dropout(self.mlp(modulate(self.norm2(x), mlp_shift, mlp_scale)))


class RARPrior(PreTrainedARPrior):
    """
    Writes the ids of a grid from a class, in raster order; trained in random ones.

    A position's input is its token, its own place, and the place that it predicts; the class and the position's number
    in the sequence modulate every layer.
    """

    config: RARConfig
    _no_split_modules = ["RARBlock"]
    default_settings = {**PreTrainedARPrior.default_settings, "cfg_scale": 16.0, "cfg_power": 2.75}
    schedule_settings = ("cfg_power",)

    def __init__(self, config: RARConfig) -> None:
        super().__init__(config)
        dim, count = config.hidden_size, config.num_image_tokens
        # codes, one mask that is not used, classes, "no class"
        self.embedding = nn.Embedding(config.codebook_size + config.num_classes + 2, dim)
        self.start_token = nn.Parameter(torch.empty(dim))
        self.position_embedding = nn.Parameter(torch.empty(count + config.num_spare_positions, dim))
        self.target_embedding = nn.Parameter(torch.empty(count + config.num_spare_positions, dim))
        self.timestep_embedding = nn.Parameter(torch.empty(count + config.num_spare_timesteps, dim))
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(RARBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps, elementwise_affine=False)
        self.head_modulation = Modulation(dim, 2)
        self.lm_head = nn.Linear(dim, config.codebook_size)
        self.post_init()

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.config.initializer_range)

    # ------------------------------------------------------------------ conditions

    def condition(self, class_labels: int | list[int] | Tensor | None = None, **others: Any) -> Condition:
        """The label."""
        if class_labels is None or others:
            raise ValueError(f"{type(self).__name__} is conditioned on classes: give class_labels and nothing else.")
        return {"class_labels": self.check_class_labels(class_labels)}

    def null_condition(self, condition: Condition) -> Condition:
        """The row behind the classes."""
        return {"class_labels": torch.full_like(condition["class_labels"], self.config.num_classes)}

    def _class_row(self, condition: Condition) -> Tensor:
        return self.embedding(condition["class_labels"] + self.config.codebook_size + 1)[:, None]  # (B, 1, D)

    # ------------------------------------------------------------------ the transformer

    def trunk(self, x: Tensor, class_row: Tensor, cache: Cache | None = None) -> Tensor:
        """Placed embeddings `(B, n, D)` of the next positions to logits `(B, n, V)`."""
        window = Window.causal(x.shape[1], cache, x.device)
        condition = class_row + self.timestep_embedding[window.positions]
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x, condition, window.mask, cache)
        scale, shift = self.head_modulation(condition)
        return self.lm_head(modulate(self.norm(x), shift, scale))

    def _raster(self, x: Tensor, start: int | Tensor) -> Tensor:
        """Adds the places of the positions from `start` on, and those that they predict, in raster order."""
        positions = start + torch.arange(x.shape[1], device=x.device)
        # the first position predicts the class, which has no place
        targets = self.target_embedding[positions + 1] * (positions > 0)[:, None]
        return x + self.position_embedding[positions] + targets

    def prefill(self, condition: Condition, token_ids: Tensor | None, cache: Cache | None) -> Tensor:
        """See the base class."""
        row = self._class_row(condition)
        x = torch.cat([self.start_token.expand_as(row), row], 1)
        if token_ids is not None:
            x = torch.cat([x, self.embedding(token_ids)], 1)
        return self.trunk(self._raster(x, 0), row, cache)[:, -1:]

    def decode_step(self, token_ids: Tensor, condition: Condition, cache: Cache) -> Tensor:
        """See the base class."""
        x = self._raster(self.embedding(token_ids), cache.get_seq_length())
        return self.trunk(x, self._class_row(condition), cache)

    def cache_length(self, condition: Condition, num_tokens: int) -> int:
        """Both positions before the tokens, and all tokens but the last."""
        return PREFIX + num_tokens - 1

    def scheduled(self, cfg_scale: float, cfg_power: float = 0.0) -> CfgScale:
        """A cosine from 1 to `cfg_scale` (section 4.1); power 0 is constant."""

        def at(step: int, num_steps: int) -> float:
            return masked_cfg_scale("power-cosine", cfg_scale, step, num_steps, cfg_power)

        return at

    # ------------------------------------------------------------------ training

    def random_orders(self, batch: int, share: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Orders `(B, N)`, a random permutation with probability `share` and raster else (section 3.2)."""
        count = self.config.num_image_tokens
        orders = torch.rand(batch, count, generator=generator).argsort(1)
        permuted = torch.rand(batch, generator=generator) < share
        return torch.where(permuted[:, None], orders, torch.arange(count)).to(self.device)

    def forward(
        self,
        token_ids: Tensor,
        class_labels: Tensor,
        orders: Tensor | None = None,
        null: bool = False,
        **kwargs: Any,
    ) -> ImagePriorOutput:
        """
        Logits of every token given those before it in its order, and the next-token loss.

        Args:
            token_ids: int64 `(B, N)` in raster order.
            class_labels: int64 `(B,)`.
            orders: int64 `(B, N)`, permutations; row i predicts token `orders[i]`. Raster order where None.
            null: put "no class" in place of the labels. In training mode a share of `config.condition_dropout` rows
                gets it anyway.

        Returns:
            [`ImagePriorOutput`] with `logits` `(B, N + 1, V)` (the last row predicts nothing) and `cross_entropy`.
        """
        condition = self.condition(class_labels)
        if null:
            condition = self.null_condition(condition)
        elif self.training and self.config.condition_dropout:
            condition = self.drop_conditions(condition, self.config.condition_dropout)
        row, batch = self._class_row(condition), token_ids.shape[0]
        if orders is None:
            orders = torch.arange(token_ids.shape[1], device=token_ids.device).expand(batch, -1)
        targets = token_ids.gather(1, orders)
        logits = self.trunk(self._ordered(row, targets, orders), row)[:, 1:]
        loss = next_token_loss(logits, targets)
        return ImagePriorOutput(logits=logits, loss=loss, losses={"cross_entropy": loss})

    def _ordered(self, row: Tensor, token_ids: Tensor, orders: Tensor) -> Tensor:
        """Placed embeddings `(B, 2 + N, D)` of ids that stand in the order `orders`."""
        x = torch.cat([self.start_token.expand_as(row), row, self.embedding(token_ids)], 1)
        first = self.position_embedding[:PREFIX].expand(x.shape[0], -1, -1)
        places = torch.cat([first, self.position_embedding[PREFIX + orders]], 1)
        nothing = torch.zeros_like(row)  # for the first position and the last
        targets = torch.cat([nothing, self.target_embedding[PREFIX + orders], nothing], 1)
        return x + places + targets
