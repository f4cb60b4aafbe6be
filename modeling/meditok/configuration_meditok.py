"""Configuration of MedITok."""

from huggingface_hub.dataclasses import strict

from ..unitok.configuration_unitok import UniTokConfig


@strict
class MedITokConfig(UniTokConfig):
    r"""
    Configuration of [`MedITokModel`]: UniTok's (see [`UniTokConfig`]) with causal projections and without a text tower.

    `contrastive_weight` is 0.1 in the first stage of the paper's training and 1.0 in the second; `embed_dim=0` is a
    checkpoint without the alignment head.
    """

    model_type = "vistok_meditok"

    causal_projection: bool = True
    text_num_layers: int = 0
