"""Configuration of MaskGen over continuous tokens."""

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImagePriorConfig


@strict
class MaskGenKLConfig(ImagePriorConfig):
    r"""
    Configuration of [`MaskGenKLPrior`].

    Args:
        token_size (`int`): width of a token.
        latents_scale (`float`): factor between the tokenizer's latents and those that the model sees.
        hidden_size, num_hidden_layers, num_attention_heads: of the MM-DiT trunk.
        text_embed_dim, micro_condition, micro_condition_dim, text_dropout: see [`MaskGenConfig`].
        head_size, head_num_blocks (`int`): width and depth of the diffusion head.
        num_diffusion_steps (`int`): training steps of its cosine schedule.
        diffusion_batch_mul (`int`): times that training draws for each token.
    """

    model_type = "vistok_maskgen_kl"

    codebook_size: int = 0
    num_image_tokens: int = 32
    token_size: int = 16
    latents_scale: float = 0.7525
    hidden_size: int = 1024
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    text_embed_dim: int = 768
    micro_condition: bool = True
    micro_condition_dim: int = 256
    text_dropout: float = 0.1
    head_size: int = 1024
    head_num_blocks: int = 8
    num_diffusion_steps: int = 1000
    diffusion_batch_mul: int = 4
