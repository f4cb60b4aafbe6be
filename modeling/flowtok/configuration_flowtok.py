"""Configuration of FlowTok's tokenizer, FlowTiTok."""

from huggingface_hub.dataclasses import strict

from ..ta_titok.configuration_ta_titok import TaTiTokConfig


@strict
class FlowTiTokConfig(TaTiTokConfig):
    r"""
    Configuration of [`FlowTiTokModel`]: that of TA-TiTok with continuous tokens, as many as the text has.

    Args:
        rope_theta (`float`): base of the frequencies of the grid's rotary positions.
    """

    model_type = "vistok_flowtitok"

    quantizer: str = "kl"
    token_size: int = 16
    num_latent_tokens: int = 77
    rope_theta: float = 10000.0
