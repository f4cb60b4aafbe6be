"""Configuration of FlexAR and GridAR."""

import math

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImagePriorConfig
from ..layers.mlp import swiglu_dim

CONDITIONS = ("class", "text")
POSITIONS = ("learned", "sincos_1d", "sincos_2d")
FEED_FORWARDS = ("gelu", "swiglu")
NORMS = ("layer_norm", "rms_norm", "gain_bias_layer_norm")


@strict
class FlexARConfig(ImagePriorConfig):
    r"""
    Configuration of [`FlexARPrior`].

    Args:
        condition (`str`): "class" (a vector added to the start token) or "text" (cross-attention).
        hidden_size, num_hidden_layers, num_attention_heads: of the transformer.
        num_cross_attention_heads (`int`, *optional*): of the cross-attention, `num_attention_heads` where None.
        text_dim (`int`), text_length (`int`): width of text features, and the number that prompts are padded to.
        text_projection_bias (`bool`): of the two-layer MLP on text features.
        positions (`str`): "learned", or a fixed table "sincos_1d", "sincos_2d" whose first row (the start token) is 0.
        token_grid (`tuple[int, int]`): rows and columns of the tokens, for "sincos_2d".
        feed_forward (`str`): "gelu" or "swiglu".
        ffn_ratio (`float`), ffn_multiple_of (`int`): of its width; "swiglu" takes two thirds, rounded up.
        norm, norm_eps, norm_gain, norm_bias: of the blocks' norms and the last one.
        qk_norm (`str`, *optional*), qk_norm_eps, qk_norm_gain, qk_norm_bias: of each head's q and k; None for none.
        cross_qk_norm (`str`, *optional*), cross_qk_norm_eps, cross_qk_norm_gain, cross_qk_norm_bias: the same of the
            cross-attention.
        qkv_bias, proj_bias, cross_qkv_bias, cross_proj_bias, ffn_bias (`bool`): of the linear layers in blocks.
        final_norm (`bool`): a norm after the last block.
        head_norm (`bool`): a LayerNorm (eps 1e-5) before the head.
        head_bias (`bool`): of the head.
        guidance_class (`int`): the label that guidance leads away from; -1 is the null class of training. The authors'
            sampler takes class 0, whatever the training: their checkpoints have 0 here.
        token_corruption (`float`): share of the ids before a position that training replaces by random ones, so that
            the prior leans on the text and not on its memory (ours).
        condition_dropout (`float`): share of conditions that training replaces by the null condition.
    """

    model_type = "vistok_flextok_ar"

    codebook_size: int = 64000
    condition: str = "text"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_cross_attention_heads: int | None = None
    text_dim: int = 2048
    text_length: int = 128
    text_projection_bias: bool = False
    positions: str = "learned"
    token_grid: tuple[int, ...] | list[int] = (256, 1)
    feed_forward: str = "gelu"
    ffn_ratio: float = 4.0
    ffn_multiple_of: int = 256
    norm: str = "layer_norm"
    norm_eps: float = 1e-6
    norm_gain: bool = True
    norm_bias: bool = True
    qk_norm: str | None = None
    qk_norm_eps: float = 1e-5
    qk_norm_gain: bool = True
    qk_norm_bias: bool = False
    cross_qk_norm: str | None = None
    cross_qk_norm_eps: float = 1e-5
    cross_qk_norm_gain: bool = True
    cross_qk_norm_bias: bool = False
    qkv_bias: bool = False
    proj_bias: bool = False
    cross_qkv_bias: bool = False
    cross_proj_bias: bool = False
    ffn_bias: bool = False
    final_norm: bool = True
    head_norm: bool = False
    head_bias: bool = False
    guidance_class: int = -1
    token_corruption: float = 0.0
    condition_dropout: float = 0.1

    def validate_kinds(self) -> None:
        """Raises a ValueError for an unknown kind of condition, positions, feed-forward layer or norm."""
        kinds = (("condition", CONDITIONS), ("positions", POSITIONS), ("feed_forward", FEED_FORWARDS), ("norm", NORMS))
        for name, known in kinds:
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")
        for name in ("qk_norm", "cross_qk_norm"):
            if getattr(self, name) is not None and getattr(self, name) not in NORMS:
                raise ValueError(f"{name} must be None or one of {NORMS}, got {getattr(self, name)!r}.")

    def validate_token_grid(self) -> None:
        """Raises a ValueError where the grid of "sincos_2d" has another number of points than there are tokens."""
        if self.positions == "sincos_2d" and math.prod(self.token_grid) != self.num_image_tokens:
            raise ValueError(
                f"token_grid {tuple(self.token_grid)} has {math.prod(self.token_grid)} points, there are "
                f"num_image_tokens={self.num_image_tokens}."
            )

    @property
    def ffn_size(self) -> int:
        """Hidden width of the feed-forward layers."""
        if self.feed_forward == "swiglu":
            return swiglu_dim(self.hidden_size, self.ffn_multiple_of, self.ffn_ratio)
        return int(self.hidden_size * self.ffn_ratio)
