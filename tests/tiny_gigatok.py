"""Tiny GigaTok models: 1-D with its training head, 2-D, and the plain 2-D blocks."""

import torch

from hf_vistok.modeling.gigatok.configuration_gigatok import GigaTokConfig
from hf_vistok.modeling.gigatok.configuration_gigatok_prior import GigaTokPriorConfig
from hf_vistok.modeling.gigatok.modeling_gigatok import GigaTokModel
from hf_vistok.modeling.gigatok.modeling_gigatok_prior import GigaTokPrior

from .tiny import Tiny

SIZES = {
    "image_size": 16,
    "num_latent_tokens": 8,
    "hidden_channels": 8,
    "encoder_channel_mult": (1, 2, 2),
    "decoder_channel_mult": (1, 2, 2),
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "z_channels": 8,
    "encoder_hidden_size": 32,
    "encoder_num_layers": 2,
    "encoder_num_heads": 4,
    "decoder_hidden_size": 32,
    "decoder_num_layers": 2,
    "decoder_num_heads": 4,
    "codebook_size": 32,
    "codebook_dim": 4,
    "alignment_depth": 1,
    "alignment_dim": 6,
}


PRIOR = {
    "codebook_size": 32,
    "num_image_tokens": 8,
    "num_classes": 5,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "multiple_of": 16,
}


def teacher(batch: int) -> dict[str, torch.Tensor]:
    """Features of a vision model at the 16 grid positions."""
    return {"teacher_features": torch.randn(8, 16, 6, generator=torch.Generator().manual_seed(0))[:batch]}


def tokenizer(**options):
    return lambda: GigaTokModel(GigaTokConfig(**{**SIZES, **options})).eval()


def prior(**options):
    return lambda: GigaTokPrior(GigaTokPriorConfig(**{**PRIOR, **options})).eval()


def build() -> dict[str, Tiny]:
    """The models by name."""
    return {
        "gigatok-prior": Tiny(prior(positions="learned")),
        "gigatok-prior-rotary": Tiny(prior(positions="rotary")),
        "gigatok": Tiny(tokenizer(entropy_loss_ratio=0.01), forward_kwargs=teacher),
        "gigatok-2d": Tiny(tokenizer(layout="2d"), forward_kwargs=teacher),
        "gigatok-2d-plain": Tiny(
            tokenizer(layout="2d", grid_cross_attention=False, alignment_depth=None, rotation_trick=False)
        ),
        "gigatok-learned": Tiny(
            tokenizer(
                query_init="learned",
                alignment_depth=None,
                adaptive_norm=False,
                depth_to_space=False,
                conv_attention=True,
            ),
            forward_kwargs={"auxiliary": True},
        ),
    }
