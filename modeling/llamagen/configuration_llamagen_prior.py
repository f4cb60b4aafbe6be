"""Configuration of LlamaGen's priors."""

import math

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImagePriorConfig
from ..layers.mlp import swiglu_dim

CONDITIONS = ("class", "text")


@strict
class LlamaGenPriorConfig(ImagePriorConfig):
    r"""
    Configuration of [`LlamaGenPrior`].

    Args:
        condition (`str`): "class" or "text".
        num_condition_tokens (`int`): positions before the tokens: 1 of a class, 120 of a caption.
        caption_dim (`int`): width of text features.
        hidden_size, num_hidden_layers, num_attention_heads: of the transformer.
        num_key_value_heads (`int`, *optional*): heads of keys and values where they are fewer.
        intermediate_size (`int`, *optional*): of the SwiGLU; `swiglu_dim(hidden_size, multiple_of)` where None.
        multiple_of (`int`): that width is rounded up to a multiple of this.
        ffn_ratio (`float`): its ratio to the width, before the usual two thirds.
        rope_theta (`float`), rms_norm_eps (`float`).
        token_dropout, attention_dropout, residual_dropout, ffn_dropout (`float`): in training.
        condition_dropout (`float`): share of conditions that training replaces by the null condition.
    """

    model_type = "vistok_llamagen"

    codebook_size: int = 16384
    num_classes: int = 1000
    condition: str = "class"
    num_condition_tokens: int = 1
    caption_dim: int = 2048
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None
    multiple_of: int = 256
    ffn_ratio: float = 4.0
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    token_dropout: float = 0.1
    attention_dropout: float = 0.0
    residual_dropout: float = 0.1
    ffn_dropout: float = 0.1
    condition_dropout: float = 0.1

    def validate_condition(self) -> None:
        """Raises a ValueError for an unknown kind of condition, or ids that are no square grid."""
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition must be one of {CONDITIONS}, got {self.condition!r}.")
        if self.grid_size**2 != self.num_image_tokens:
            raise ValueError(f"num_image_tokens must be a square, got {self.num_image_tokens}.")

    @property
    def grid_size(self) -> int:
        """Rows, and columns, of the ids."""
        return math.isqrt(self.num_image_tokens)

    @property
    def ffn_size(self) -> int:
        """Hidden width of the SwiGLU."""
        return self.intermediate_size or swiglu_dim(self.hidden_size, self.multiple_of, self.ffn_ratio)
