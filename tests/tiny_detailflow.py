"""Tiny DetailFlow models: 4 single tokens, then groups of 4."""

import torch

from hf_vistok.modeling.detailflow.configuration_detailflow import DetailFlowConfig
from hf_vistok.modeling.detailflow.configuration_detailflow_prior import DetailFlowPriorConfig
from hf_vistok.modeling.detailflow.modeling_detailflow import DetailFlowModel
from hf_vistok.modeling.detailflow.modeling_detailflow_prior import DetailFlowPrior

from .tiny import Tiny

SIZES = {
    "image_size": 32,
    "encoder_patch_size": 8,
    "decoder_patch_size": 8,
    "encoder_positions": 16,
    "decoder_positions": 9,
    "encoder_hidden_size": 32,
    "encoder_intermediate_size": 48,
    "encoder_num_layers": 2,
    "encoder_num_heads": 4,
    "decoder_hidden_size": 32,
    "decoder_intermediate_size": 48,
    "decoder_num_layers": 2,
    "decoder_num_heads": 4,
    "num_latent_tokens": 16,
    "group_size": 4,
    "num_causal_tokens": 4,
    "codebook_size": 32,
    "codebook_dim": 4,
    "refine_candidates": 8,
    "global_hidden_size": 16,
    "global_dim": 6,
    "coarse_share": 0.0,
}


PRIOR = {
    "codebook_size": 32,
    "num_image_tokens": 16,
    "num_classes": 5,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "multiple_of": 16,
    "group_size": 4,
    "num_causal_tokens": 4,
}


def build() -> dict[str, Tiny]:
    """The models by name."""

    def tokenizer(**options):
        return lambda: DetailFlowModel(DetailFlowConfig(**{**SIZES, **options})).eval()

    def teacher(batch: int) -> dict[str, torch.Tensor]:
        pooled = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))[:batch]
        return {"teacher_pooled": pooled, "correct_from": 4}

    no_correction = {r"refined_tokens|refine_proj": "they belong to self-correction", r"global_head": "no teacher"}

    def prior() -> DetailFlowPrior:
        return DetailFlowPrior(DetailFlowPriorConfig(**PRIOR)).eval()

    return {
        "detailflow-prior": Tiny(prior, prefix=4),
        "detailflow": Tiny(tokenizer(), forward_kwargs=teacher),
        "detailflow-coarse": Tiny(
            tokenizer(causal_encoder=False), forward_kwargs={"num_tokens": 4}, grad_free=no_correction
        ),
    }
