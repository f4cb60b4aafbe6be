"""LlamaGen's priors (arXiv 2406.06525): a class or a caption is a prefix, ids follow in raster order."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers import initialization as init

from ..ar_prior_utils import Condition, PreTrainedARPrior
from ..layers.generation import Window
from ..layers.llama import llama_layers
from ..layers.losses import next_token_loss
from ..layers.norm import RMSNorm
from ..layers.rotary import apply_rotary, grid_rotary_at
from ..outputs import ImagePriorOutput
from .configuration_llamagen_prior import LlamaGenPriorConfig


class CaptionEmbedding(nn.Module):
    """Text features through an MLP; `null_caption` are the features of no caption."""

    def __init__(self, config: LlamaGenPriorConfig) -> None:
        super().__init__()
        self.caption_dim = config.caption_dim
        self.fc1 = nn.Linear(config.caption_dim, config.hidden_size, bias=False)
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.act = nn.GELU(approximate="tanh")
        self.register_buffer("null_caption", torch.zeros(config.num_condition_tokens, config.caption_dim))

    def init_own_weights(self) -> None:
        """The null caption is random and never trained."""
        init.normal_(self.null_caption, std=self.caption_dim**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, T, caption_dim)` to `(B, T, D)`."""
        return self.fc2(self.act(self.fc1(features)))


class LlamaGenPrior(PreTrainedARPrior):
    """
    Writes the ids of a grid from a class or a caption.

    Positions turn with row and column; condition positions have zero queries and keys, so that they weigh equally.
    Captions lie before the tokens, padded on the left to `num_condition_tokens`; padded columns are seen by nobody but
    themselves, in the unconditional half too.
    """

    config: LlamaGenPriorConfig
    _no_split_modules = ["LlamaBlock"]
    default_settings = {**PreTrainedARPrior.default_settings, "cfg_scale": 4.0}
    text_padding_side = "left"

    def __init__(self, config: LlamaGenPriorConfig) -> None:
        super().__init__(config)
        if config.condition == "class":
            self.class_embedding = nn.Embedding(config.num_classes + 1, config.hidden_size)
        else:
            self.caption_embedding = CaptionEmbedding(config)
        self.token_embedding = self.make_token_embedding()
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = llama_layers(config, config.num_hidden_layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = self.make_lm_head()
        self.post_init()

    def make_token_embedding(self) -> nn.Module:
        """The layer that ids go through; families with several ids at a position have one of their own."""
        return nn.Embedding(self.config.codebook_size, self.config.hidden_size)

    def make_lm_head(self) -> nn.Module:
        """The layer from hidden states to logits; see [`make_token_embedding`]."""
        return nn.Linear(self.config.hidden_size, self.config.codebook_size, bias=False)

    @property
    def is_text_conditional(self) -> bool:
        """Whether the condition is a caption and not a class."""
        return self.config.condition == "text"

    @property
    def text_length(self) -> int | None:
        """Number of text features that captions are padded or cut to; None without text."""
        return self.config.num_condition_tokens if self.is_text_conditional else None

    # ------------------------------------------------------------------ conditions

    def condition(
        self,
        class_labels: int | list[int] | Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Condition:
        """
        The label, or the caption's features `(B, T, caption_dim)` and, where a mask is given, their mask.

        Padding may lie on either side: it is moved to the left.
        """
        if not self.is_text_conditional:
            if class_labels is None:
                raise ValueError(f"{type(self).__name__} is conditioned on classes: give class_labels.")
            if encoder_hidden_states is not None:
                raise ValueError(f"{type(self).__name__} is conditioned on classes, not on text.")
            return {"class_labels": self.check_class_labels(class_labels)}
        if encoder_hidden_states is None or class_labels is not None:
            raise ValueError(f"{type(self).__name__} is conditioned on text: give encoder_hidden_states.")
        features, mask = self._fit_caption(encoder_hidden_states.to(self.device, self.dtype), encoder_attention_mask)
        return {"encoder_hidden_states": features} | ({} if mask is None else {"encoder_attention_mask": mask})

    def _fit_caption(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        length, width = self.config.num_condition_tokens, self.config.caption_dim
        if features.shape[2] != width or features.shape[1] > length:
            raise ValueError(
                f"{type(self).__name__} takes up to {length} text features of width {width}, "
                f"got {tuple(features.shape[1:])}."
            )
        missing = length - features.shape[1]
        if mask is None and not missing:
            return features, None
        mask = torch.ones(features.shape[:2], dtype=torch.bool) if mask is None else mask > 0
        mask = nn.functional.pad(mask.to(features.device), (missing, 0))
        features = nn.functional.pad(features, (0, 0, missing, 0))
        order = mask.int().argsort(dim=1, stable=True)  # padding first
        mask = mask.gather(1, order)
        return features.gather(1, order[..., None].expand_as(features)) * mask[..., None], mask

    def null_condition(self, condition: Condition) -> Condition:
        """The last class row, or the stored caption under the conditional mask."""
        if not self.is_text_conditional:
            return {"class_labels": torch.full_like(condition["class_labels"], self.config.num_classes)}
        features = condition["encoder_hidden_states"]
        null = self.caption_embedding.null_caption.to(features).expand_as(features)
        return {**condition, "encoder_hidden_states": null}

    def join_conditions(self, condition: Condition, negative: Condition) -> Condition:
        """As the base class; a mask that one half lacks is all True there."""
        name = "encoder_attention_mask"
        for half, other in ((condition, negative), (negative, condition)):
            if name in other and name not in half:
                half[name] = torch.ones(half["encoder_hidden_states"].shape[:2], dtype=torch.bool, device=self.device)
        return super().join_conditions(condition, negative)

    def _embed_condition(self, condition: Condition) -> Tensor:
        if self.is_text_conditional:
            return self.caption_embedding(condition["encoder_hidden_states"])
        return self.class_embedding(condition["class_labels"])[:, None]

    # ------------------------------------------------------------------ the transformer

    def trunk(self, x: Tensor, condition: Condition, cache: Cache | None = None) -> Tensor:
        """Embeddings `(B, n, D)` of the next positions to hidden states of the same shape, after the last norm."""
        return self.norm(self.run_layers(x, condition, cache))

    def window(self, length: int, condition: Condition, cache: Cache | None = None) -> Window:
        """Where the next `length` positions lie and what they see."""
        return Window.causal(length, cache, self.device, key_mask=condition.get("encoder_attention_mask"))

    def rotary(self, positions: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The rotation of queries and keys at `positions`; None where positions are not rotary."""
        config, head_dim = self.config, self.config.hidden_size // self.config.num_attention_heads
        grid = (config.grid_size, config.grid_size)
        table = grid_rotary_at(positions, grid, head_dim, config.rope_theta, zero_rows=config.num_condition_tokens)
        return lambda heads: apply_rotary(heads, *table)

    def place(self, x: Tensor, positions: Tensor) -> Tensor:
        """Adds absolute positions to embeddings; there are none here."""
        return x

    def run_layers(self, x: Tensor, condition: Condition, cache: Cache | None = None) -> Tensor:
        """As [`trunk`], before the last norm."""
        window = self.window(x.shape[1], condition, cache)
        rotary = self.rotary(window.positions)
        x = self.token_dropout(self.place(x, window.positions))
        for layer in self.layers:
            x = layer(x, window.mask, rotary, cache)
        return x

    def prefill(self, condition: Condition, token_ids: Tensor | None, cache: Cache | None) -> Tensor:
        """See the base class."""
        x = self._embed_condition(condition)
        if token_ids is not None:
            x = torch.cat([x, self.token_embedding(token_ids)], 1)
        return self.lm_head(self.trunk(x, condition, cache)[:, -1:])

    def decode_step(self, token_ids: Tensor, condition: Condition, cache: Cache) -> Tensor:
        """See the base class."""
        return self.lm_head(self.trunk(self.token_embedding(token_ids), condition, cache))

    def cache_length(self, condition: Condition, num_tokens: int) -> int:
        """Condition and all tokens but the last."""
        return self.config.num_condition_tokens + num_tokens - 1

    # ------------------------------------------------------------------ training

    def forward(
        self,
        token_ids: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        null: bool = False,
        **kwargs: Any,
    ) -> ImagePriorOutput:
        """
        Logits of every position given the ids before it, and the next-token loss.

        Args:
            token_ids: int64 `(B, N)`.
            class_labels: int64 `(B,)`.
            encoder_hidden_states, encoder_attention_mask: the caption, see [`condition`].
            null: put the null condition in place of the given one. In training mode a share of
                `config.condition_dropout` rows gets it anyway.

        Returns:
            [`ImagePriorOutput`] with `logits` `(B, N, V)` and the loss `cross_entropy`.
        """
        condition = self.condition(class_labels, encoder_hidden_states, encoder_attention_mask)
        if null:
            condition = self.null_condition(condition)
        elif self.training and self.config.condition_dropout:
            condition = self.drop_conditions(condition, self.config.condition_dropout)
        x = torch.cat([self._embed_condition(condition), self.token_embedding(token_ids[:, :-1])], 1)
        hidden = self.trunk(x, condition)[:, self.config.num_condition_tokens - 1 :]
        logits = self.lm_head(hidden)
        loss = next_token_loss(logits, token_ids)
        return ImagePriorOutput(logits=logits, loss=loss, losses={"cross_entropy": loss})
