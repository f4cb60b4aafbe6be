"""Configuration of FQGAN's prior."""

from huggingface_hub.dataclasses import strict

from ..llamagen.configuration_llamagen_prior import LlamaGenPriorConfig


@strict
class FARPriorConfig(LlamaGenPriorConfig):
    r"""
    Configuration of [`FARPrior`]: LlamaGen's (see [`LlamaGenPriorConfig`]), and its inner head.

    Args:
        num_codebooks (`int`): ids at one position.
        num_head_layers (`int`): blocks of the head that writes them one after the other.
    """

    model_type = "vistok_far"

    num_codebooks: int = 2
    num_head_layers: int = 3
