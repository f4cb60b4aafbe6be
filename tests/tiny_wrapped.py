"""Tiny tokenizers of the libraries behind the wrapper."""

from hf_vistok.modeling.wrapped.configuration_wrapped import WrappedTokenizerConfig
from hf_vistok.modeling.wrapped.modeling_wrapped import WrappedTokenizerModel

from .tiny import Tiny

BLOCKS = {
    "block_out_channels": [32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
}


def wrapped(name: str, **fields) -> WrappedTokenizerModel:
    config = WrappedTokenizerConfig(image_size=16, inner_class=name, inner_config={**BLOCKS, **fields})
    return WrappedTokenizerModel(config).eval()


def build() -> dict[str, Tiny]:
    skip = {"gradient_checkpointing": "the inner modules have checkpointing of their own"}
    return {
        "wrapped-kl": Tiny(lambda: wrapped("AutoencoderKL"), skip=skip),
        "wrapped-vq": Tiny(
            lambda: wrapped("VQModel", num_vq_embeddings=16),
            grad_free={r"quantize|quant_conv|encoder": "the wrapper looks codes up; its losses do not reach them"},
            skip=skip,
        ),
    }
