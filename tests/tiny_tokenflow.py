"""Tiny TokenFlow tokenizers: CLIP's tower at another size than its own, and SigLIP's with an odd picture."""

import torch

from hf_vistok.modeling.tokenflow.configuration_tokenflow import TokenFlowConfig
from hf_vistok.modeling.tokenflow.modeling_tokenflow import TokenFlowModel

from .tiny import Tiny

SIZES = {
    "image_size": 8,
    "scales": (1, 2, 4),
    "hidden_channels": 32,
    "num_res_blocks": 1,
    "encoder_channel_mult": (1, 1),
    "decoder_channel_mult": (1, 1),
    "decoder_hidden_channels": 32,
    "decoder_num_res_blocks": 1,
    "z_channels": 16,
    "codebook_size": 48,
    "codebook_dim": 4,
    "semantic_dim": 8,
    "vision_hidden_size": 32,
    "vision_num_layers": 2,
    "vision_num_heads": 4,
    "vision_intermediate_size": 64,
    "vision_patch_size": 2,
    "vision_image_size": 6,
    "semantic_num_layers": 1,
    "semantic_num_heads": 4,
    "semantic_intermediate_size": 64,
    "semantic_grid": 3,
    "feature_size": 12,
}
SIGLIP = {
    "teacher": "siglip",
    "image_size": 9,
    "vision_image_size": 9,
    "semantic_grid": 4,
    "decoder_hidden_channels": 64,
    "decoder_num_res_blocks": 2,
    "entropy_loss_ratio": 0.01,
}
FEWER = "latents are a grid, the sum of all scales: tests/test_tokenflow.py asks what this test asks of sequences"
SKIP = dict.fromkeys(("first_tokens_of_a_prefix", "a_length_per_image", "token_mask"), FEWER)


def tokenflow(**options):
    return lambda: TokenFlowModel(TokenFlowConfig(**{**SIZES, **options})).eval()


def teacher(batch: int) -> dict[str, torch.Tensor]:
    draws = [torch.randn(16, 12, generator=torch.Generator().manual_seed(i)) for i in range(batch)]
    return {"teacher_features": torch.stack(draws)}


def build() -> dict[str, Tiny]:
    return {
        "tokenflow": Tiny(tokenflow(), forward_kwargs=teacher, skip=SKIP),
        "tokenflow-siglip": Tiny(tokenflow(**SIGLIP), forward_kwargs=teacher, skip=SKIP),
    }
