"""A text encoder without attention: a table of word vectors and a table of positions."""

from dataclasses import dataclass

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..modeling_utils import InitWeightsMixin
from .configuration_text_table import TextTableConfig


@dataclass
class TextTableOutput(ModelOutput):
    """
    What [`TextTableModel`] returns.

    Args:
        last_hidden_state: `(B, T, D)`, zero where the mask is 0.
        attention_mask: int64 `(B, T)`, 1 where a token counts.
        pooler_output: mean over the tokens that count, `(B, D)`.
    """

    last_hidden_state: Tensor | None = None
    attention_mask: Tensor | None = None
    pooler_output: Tensor | None = None


class TextTableModel(InitWeightsMixin, PreTrainedModel):
    """
    Word vectors plus positions. It stands where a pipeline takes a T5 or CLIP text encoder.

    Its tokenizer is a fast one of transformers, see [`build_text_tokenizer`]; the table `static` stays as it is loaded.
    """

    config: TextTableConfig
    base_model_prefix = "text_encoder"
    main_input_name = "input_ids"
    input_modalities = ("text",)

    def __init__(self, config: TextTableConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_length, config.hidden_size)
        self.static = nn.Embedding(config.vocab_size, config.static_dim) if config.static_dim else None
        self.static_proj = nn.Linear(config.static_dim, config.hidden_size, bias=False) if config.static_dim else None
        self.post_init()
        self.train(self.training)

    def train(self, mode: bool = True) -> "TextTableModel":
        """As usual; the static table stays frozen (loading forgets that)."""
        super().train(mode)
        if self.static is not None:
            self.static.requires_grad_(False)
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """The trained table."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the trained table."""
        self.embedding = value

    @apply_forward_hook
    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> TextTableOutput:
        """
        Vectors of a batch of texts.

        Args:
            input_ids: int64 `(B, T)`, T up to `max_length`.
            attention_mask: `(B, T)`, 1 where a token counts; all but padding where None.

        Raises:
            ValueError: for ids of another rank, or texts that are too long.
        """
        if input_ids.ndim != 2 or not 0 < input_ids.shape[1] <= self.config.max_length:
            raise ValueError(
                f"TextTableModel takes ids (B, T) with T from 1 to {self.config.max_length}, got "
                f"{tuple(input_ids.shape)}."
            )
        if attention_mask is None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embedding(input_ids) + self.position_embedding(positions)
        if self.static is not None:
            x = x + self.static_proj(self.static(input_ids))
        seen = attention_mask[..., None].to(x.dtype)
        x = x * seen
        return TextTableOutput(x, attention_mask, x.sum(1) / seen.sum(1).clamp_min(1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: object) -> TextTableOutput:
        """As `encode`; further arguments of text encoders are ignored."""
        return self.encode(input_ids, attention_mask)
