"""
Priors that write several tokens a step (DetailFlow's groups, ResTok's levels), on LlamaGen's transformer.

One rule covers both: the input of a step is what the last step wrote, filled up with learned special tokens to as many
positions as the step writes. Its positions see each other and everything before.
"""

import torch
from torch import Tensor, nn
from transformers import Cache

from ..ar_prior_utils import Condition
from ..layers.block_causal import block_window
from ..layers.generation import Window, split_prefix
from ..layers.losses import next_token_loss
from ..outputs import ImagePriorOutput
from .configuration_llamagen_prior import LlamaGenPriorConfig
from .modeling_llamagen_prior import LlamaGenPrior


class BlockPrior(LlamaGenPrior):
    """
    A family's configuration says how many tokens each step writes (`step_lengths`), the family where
    positions lie (`rotary`).

    Args:
        config: of the family.
        num_special_tokens: learned tokens that fill up inputs.
    """

    def __init__(self, config: LlamaGenPriorConfig, num_special_tokens: int) -> None:
        super().__init__(config)
        self.special_embedding = nn.Embedding(num_special_tokens, config.hidden_size)
        self.post_init()

    def step_lengths(self, num_tokens: int) -> list[int]:
        """Those steps of `config.step_lengths` that write the first `num_tokens` tokens."""
        lengths = self.config.step_lengths
        return lengths[: split_prefix(lengths, num_tokens)]

    def _specials(self, step: int) -> tuple[int, int]:
        """First and last (exclusive) special token of a step; they are used up in order."""
        lengths = self.step_lengths(self.num_tokens)
        used = [max(after - before, 0) for before, after in zip([1, *lengths], lengths, strict=False)]
        return sum(used[:step]), sum(used[: step + 1])

    def _fill(self, x: Tensor, step: int) -> Tensor:
        """Embeddings of what the last step wrote `(B, m, D)`, filled up for `step`."""
        first, last = self._specials(step)
        if first == last:
            return x
        special = self.special_embedding(torch.arange(first, last, device=x.device))
        return torch.cat([x, special.expand(x.shape[0], -1, -1)], 1)

    def _inputs(self, condition: Condition, token_ids: Tensor | None, steps: int) -> Tensor:
        """Inputs of the first `steps` steps, `(B, sum of their lengths, D)`."""
        lengths = self.step_lengths(self.num_tokens)[:steps]
        parts = [self._fill(self._embed_condition(condition), 0)]
        if token_ids is not None and steps > 1:
            embedded = self.token_embedding(token_ids[:, : sum(lengths[:-1])]).split(lengths[:-1], 1)
            parts += [self._fill(part, step + 1) for step, part in enumerate(embedded)]
        return torch.cat(parts, 1)

    def window(self, length: int, condition: Condition, cache: Cache | None = None) -> Window:
        """As the base class, with blocks; `condition["step"]` is the first step that is not in the cache."""
        lengths, total = self.step_lengths(self.num_tokens)[condition["step"] :], 0
        blocks = []
        while total < length:
            blocks.append(lengths[len(blocks)])
            total += blocks[-1]
        return block_window(blocks, cache, self.device)

    def prefill(self, condition: Condition, token_ids: Tensor | None, cache: Cache | None) -> Tensor:
        """See the base class."""
        lengths = self.step_lengths(self.num_tokens)
        step = split_prefix(lengths, 0 if token_ids is None else token_ids.shape[1])
        condition["step"] = 0
        hidden = self.trunk(self._inputs(condition, token_ids, step + 1), condition, cache)
        condition["step"] = step + 1
        return self.lm_head(hidden[:, -lengths[step] :])

    def decode_step(self, token_ids: Tensor, condition: Condition, cache: Cache) -> Tensor:
        """See the base class; counts its calls in `condition["step"]`."""
        step = condition["step"]
        logits = self.lm_head(self.trunk(self._fill(self.token_embedding(token_ids), step), condition, cache))
        condition["step"] = step + 1
        return logits

    def forward(
        self,
        token_ids: Tensor,
        class_labels: Tensor | None = None,
        label_ids: Tensor | None = None,
        null: bool = False,
    ) -> ImagePriorOutput:
        """
        Logits of every position given all earlier steps, and the loss.

        Args:
            token_ids: int64 `(B, N)`.
            class_labels: int64 `(B,)`.
            label_ids: what to predict where it is not `token_ids` (self-correction), int64 `(B, N)`.
            null: put the null class in place of the labels. In training mode a share of `config.condition_dropout` rows
                gets it anyway.

        Returns:
            [`ImagePriorOutput`] with `logits` `(B, N, V)` and the loss `cross_entropy`.
        """
        condition = self.condition(class_labels)
        if null:
            condition = self.null_condition(condition)
        elif self.training and self.config.condition_dropout:
            condition = self.drop_conditions(condition, self.config.condition_dropout)
        condition["step"] = 0
        steps = split_prefix(self.step_lengths(self.num_tokens), token_ids.shape[1])
        logits = self.lm_head(self.trunk(self._inputs(condition, token_ids, steps), condition))
        loss = next_token_loss(logits, token_ids if label_ids is None else label_ids)
        return ImagePriorOutput(logits=logits, loss=loss, losses={"cross_entropy": loss})
