"""FAR, FQGAN's prior (arXiv 2411.16681, section 3.3): LlamaGen's trunk, and a small head over the ids of a position."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from ..ar_prior_utils import Condition
from ..layers.generation import TokenSampler, twice
from ..layers.llama import LlamaBlock
from ..layers.losses import next_token_loss
from ..layers.rotary import apply_rotary, grid_rotary_at
from ..llamagen.modeling_llamagen_prior import LlamaGenPrior
from ..outputs import ImagePriorOutput
from .configuration_far import FARPriorConfig


class FactorizedEmbedding(nn.Module):
    """The ids of a position, each in its own table, side by side through a linear layer."""

    def __init__(self, num_codebooks: int, codebook_size: int, dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(codebook_size, dim) for _ in range(num_codebooks))
        self.proj = nn.Linear(num_codebooks * dim, dim)

    def forward(self, token_ids: Tensor) -> Tensor:
        """`(B, n, C)` to `(B, n, D)`."""
        return self.proj(torch.cat([table(token_ids[..., i]) for i, table in enumerate(self.tables)], -1))


class FARPrior(LlamaGenPrior):
    """
    Writes the ids of a factorised tokenizer, `(B, N, C)`, from a class.

    At each position the head reads [trunk state, id 1, id 2, ...] and writes the ids one after the other, each with
    guidance and filters of its own.
    """

    config: FARPriorConfig
    default_settings = {**LlamaGenPrior.default_settings, "cfg_scale": 2.0}

    def make_token_embedding(self) -> nn.Module:
        """See the base class."""
        config = self.config
        return FactorizedEmbedding(config.num_codebooks, config.codebook_size, config.hidden_size)

    def make_lm_head(self) -> nn.Module:
        """The inner blocks and one projection per codebook."""
        config = self.config
        blocks = [
            LlamaBlock(
                config.hidden_size,
                config.num_attention_heads,
                config.ffn_size,
                index,
                num_key_value_heads=config.num_key_value_heads,
                eps=config.rms_norm_eps,
                config=config,
            )
            for index in range(config.num_head_layers)
        ]
        projections = [
            nn.Linear(config.hidden_size, config.codebook_size, bias=False) for _ in range(config.num_codebooks)
        ]
        return nn.ModuleDict({"layers": nn.ModuleList(blocks), "projections": nn.ModuleList(projections)})

    def head_states(self, states: Tensor, token_ids: Tensor | None) -> Tensor:
        """
        Normed states of a position's sequence.

        Args:
            states: `(R, D)`, of the trunk before its last norm.
            token_ids: the ids so far, `(R, c)`, or None.

        Returns:
            `(R, 1 + c, D)`; the state at place i predicts id i.
        """
        x = states[:, None]
        if token_ids is not None:
            tables = self.token_embedding.tables
            x = torch.cat([x, *(tables[i](token_ids[:, i : i + 1]) for i in range(token_ids.shape[1]))], 1)
        config, length = self.config, x.shape[1]
        places = torch.arange(length, device=x.device)
        # the head turns by the first rows of the trunk's own table: a zero row, then the grid's first positions
        table = grid_rotary_at(
            places, (config.grid_size,) * 2, config.hidden_size // config.num_attention_heads, config.rope_theta,
            zero_rows=config.num_condition_tokens,
        )  # fmt: skip
        mask = places <= places[:, None]
        for layer in self.lm_head["layers"]:
            x = layer(x, mask, lambda heads: apply_rotary(heads, *table))
        return self.norm(x)

    def prefill(self, condition: Condition, token_ids: Tensor | None, cache: Cache | None) -> Tensor:
        """Trunk states `(B, 1, D)` in place of logits; `draw` runs the head."""
        x = self._embed_condition(condition)
        if token_ids is not None:
            x = torch.cat([x, self.token_embedding(token_ids)], 1)
        return self.run_layers(x, condition, cache)[:, -1:]

    def decode_step(self, token_ids: Tensor, condition: Condition, cache: Cache) -> Tensor:
        """As [`prefill`], behind the ids `(B, 1, C)` of the last step."""
        return self.run_layers(self.token_embedding(token_ids), condition, cache)

    def draw(self, prediction: Tensor, step: int, sampler: TokenSampler) -> tuple[Tensor, Tensor]:
        """The ids of a position, `(B, 1, C)`, one after the other; log-probabilities add up."""
        states, ids, total = prediction[:, -1], None, None
        for projection in self.lm_head["projections"]:
            logits = projection(self.head_states(states, twice(ids, sampler.guided))[:, -1:])
            chosen, log_probs = sampler(logits, step)
            ids = chosen if ids is None else torch.cat([ids, chosen], 1)
            total = log_probs if total is None else total + log_probs
        return ids[:, None], total

    def forward(
        self, token_ids: Tensor, class_labels: Tensor | None = None, null: bool = False, **kwargs: Any
    ) -> ImagePriorOutput:
        """
        Logits of every id given all before it, and the mean of the codebooks' cross-entropies.

        Args:
            token_ids: int64 `(B, N, C)`.
            class_labels: int64 `(B,)`.
            null: put the null class in place of the labels.

        Returns:
            [`ImagePriorOutput`] with `logits` `(B, N, C, V)`, and a loss `cross_entropy_<i>` per codebook.
        """
        condition = self.condition(class_labels)
        if null:
            condition = self.null_condition(condition)
        elif self.training and self.config.condition_dropout:
            condition = self.drop_conditions(condition, self.config.condition_dropout)
        x = torch.cat([self._embed_condition(condition), self.token_embedding(token_ids[:, :-1])], 1)
        states = self.run_layers(x, condition)  # (B, N, D)
        hidden = self.head_states(states.flatten(0, 1), token_ids.flatten(0, 1)[:, :-1])  # (B * N, C, D)
        logits = torch.stack(
            [projection(hidden[:, i]) for i, projection in enumerate(self.lm_head["projections"])], 1
        ).unflatten(0, token_ids.shape[:2])
        losses = {
            f"cross_entropy_{i}": next_token_loss(logits[:, :, i], token_ids[..., i])
            for i in range(self.config.num_codebooks)
        }
        return ImagePriorOutput(logits=logits, loss=sum(losses.values()) / len(losses), losses=losses)
