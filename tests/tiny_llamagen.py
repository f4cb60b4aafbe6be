"""Tiny LlamaGen models: the tokenizer, a class prior with grouped queries, a caption prior."""

import torch

from hf_vistok.modeling.llamagen.configuration_llamagen import LlamaGenVQConfig
from hf_vistok.modeling.llamagen.configuration_llamagen_prior import LlamaGenPriorConfig
from hf_vistok.modeling.llamagen.modeling_llamagen import LlamaGenVQModel
from hf_vistok.modeling.llamagen.modeling_llamagen_prior import LlamaGenPrior

from .tiny import Tiny

VQ = {
    "image_size": 16,
    "hidden_channels": 8,
    "encoder_channel_mult": (1, 2, 2),
    "decoder_channel_mult": (1, 2, 2),
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "z_channels": 8,
    "codebook_size": 32,
    "codebook_dim": 4,
}
PRIOR = {
    "codebook_size": 32,
    "num_image_tokens": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "multiple_of": 16,
}


def build() -> dict[str, Tiny]:
    """The models by name."""

    def tokenizer() -> LlamaGenVQModel:
        return LlamaGenVQModel(LlamaGenVQConfig(**VQ)).eval()

    def of_class() -> LlamaGenPrior:
        return LlamaGenPrior(LlamaGenPriorConfig(**PRIOR, num_classes=5, num_key_value_heads=2)).eval()

    def of_text() -> LlamaGenPrior:
        text = {"condition": "text", "num_condition_tokens": 6, "caption_dim": 12, "num_classes": 0}
        return LlamaGenPrior(LlamaGenPriorConfig(**PRIOR, **text)).eval()

    def caption(batch: int) -> dict[str, torch.Tensor]:
        states = torch.randn(8, 6, 12, generator=torch.Generator().manual_seed(0))[:batch]
        return {"encoder_hidden_states": states}

    return {
        "llamagen": Tiny(tokenizer),
        "llamagen-prior": Tiny(of_class),
        "llamagen-prior-text": Tiny(of_text, forward_kwargs=caption, generate_kwargs=caption),
    }
