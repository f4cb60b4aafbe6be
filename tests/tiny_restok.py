"""Tiny ResTok models: as published, and without residuals, merges and per-level projections."""

import torch

from hf_vistok.modeling.restok.configuration_restok import ResTokConfig
from hf_vistok.modeling.restok.configuration_restok_prior import ResTokPriorConfig
from hf_vistok.modeling.restok.modeling_restok import ResTokModel
from hf_vistok.modeling.restok.modeling_restok_prior import ResTokPrior

from .tiny import Tiny

SIZES = {
    "image_size": 16,
    "pixel_hidden_channels": 32,
    "pixel_channel_mult": (1, 1, 1),
    "pixel_num_res_blocks": 1,
    "pixel_z_channels": 8,
    "encoder_hidden_size": 32,
    "encoder_num_layers": 3,
    "encoder_num_heads": 4,
    "decoder_hidden_size": 32,
    "decoder_num_layers": 2,
    "decoder_num_heads": 4,
    "num_latent_tokens": 8,
    "num_stages": 3,
    "codebook_size": 32,
    "token_size": 4,
    "min_tokens": 2,
}
PLAIN = {
    "num_stages": 1,
    "residual_latent_tokens": False,
    "per_level_projection": False,
    "scrambled_latents": False,
    "nested_dropout": False,
    "entropy_loss_ratio": 0.01,
}


PRIOR = {
    "codebook_size": 32,
    "num_image_tokens": 8,
    "num_classes": 5,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "multiple_of": 16,
    "num_causal_tokens": 2,
    "num_special_tokens": 7,
}


def build() -> dict[str, Tiny]:
    """The models by name."""

    def tokenizer(**options):
        return lambda: ResTokModel(ResTokConfig(**{**SIZES, **options})).eval()

    def supervised(batch: int) -> dict[str, torch.Tensor]:
        draws = torch.randn(8, 17, 6, generator=torch.Generator().manual_seed(0))[:batch]
        keep = torch.tensor([4, 8, 2, 1])[:batch]
        return {"teacher_pooled": draws[:, 0], "teacher_features": draws[:, 1:], "keep": keep}

    def prior() -> ResTokPrior:
        return ResTokPrior(ResTokPriorConfig(**PRIOR)).eval()

    return {
        "restok-prior": Tiny(prior),
        "restok": Tiny(tokenizer(alignment_dim=6, alignment_margin=2.0), forward_kwargs=supervised),
        "restok-plain": Tiny(
            tokenizer(**PLAIN), grad_free={r"latent_mask_token": "no token is left out without nested dropout"}
        ),
    }
