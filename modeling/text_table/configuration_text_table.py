"""Configuration of the static text encoder."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class TextTableConfig(PreTrainedConfig):
    r"""
    Configuration of [`TextTableModel`].

    Args:
        vocab_size (`int`): word pieces.
        hidden_size (`int`): width of a text token.
        static_dim (`int`): width of a frozen table (for example, vectors of a large encoder, reduced); 0 for none. A
            linear layer brings it to `hidden_size` and the trained table is added.
        max_length (`int`): longest text in tokens.
        pad_token_id (`int`): id of padding.
        initializer_range (`float`): standard deviation of fresh weights.
    """

    model_type = "vistok_text_table"

    vocab_size: int = 4096
    hidden_size: int = 128
    static_dim: int = 0
    max_length: int = 16
    pad_token_id: int | None = 0
    initializer_range: float = 0.02
