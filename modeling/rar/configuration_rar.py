"""Configuration of RAR."""

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImagePriorConfig


@strict
class RARConfig(ImagePriorConfig):
    r"""
    Configuration of [`RARPrior`].

    Args:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the transformer.
        num_spare_positions, num_spare_timesteps (`int`): rows of the tables beyond the sequence; published files have
            them.
        layer_norm_eps (`float`): of all LayerNorms.
        hidden_dropout, attention_dropout (`float`): in training.
        condition_dropout (`float`): share of classes that training replaces by "no class".
    """

    model_type = "vistok_rar"

    num_classes: int = 1000
    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 3072
    num_spare_positions: int = 1024
    num_spare_timesteps: int = 100
    layer_norm_eps: float = 1e-6
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    condition_dropout: float = 0.1
