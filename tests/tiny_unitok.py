"""Tiny UniTok tokenizers, with and without embeddings of texts, and priors with both embeddings of ids."""

import torch

from hf_vistok.modeling.unitok.configuration_unitok import UniTokConfig
from hf_vistok.modeling.unitok.configuration_unitok_prior import UniTokPriorConfig
from hf_vistok.modeling.unitok.modeling_unitok import UniTokModel
from hf_vistok.modeling.unitok.modeling_unitok_prior import UniTokPrior

from .tiny import Tiny

SHAPE = {
    "image_size": 32,
    "stem_width": 8,
    "conv_widths": (8, 16),
    "encoder_stage_depths": (1, 2),
    "decoder_stage_depths": (2, 1),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_codebooks": 4,
    "codebook_size": 16,
    "latent_width": 16,
}
PRIOR = {
    "codebook_size": 16,
    "num_codebooks": 4,
    "num_image_tokens": 4,
    "num_classes": 5,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "multiple_of": 16,
}


def unitok(**options) -> UniTokModel:
    text = {"text_hidden_size": 16, "text_num_layers": 1, "text_num_heads": 2, "text_vocab_size": 32}
    return UniTokModel(UniTokConfig(**{**SHAPE, "embed_dim": 24, "text_context_length": 8, **text, **options})).eval()


def prior(**options) -> UniTokPrior:
    return UniTokPrior(UniTokPriorConfig(**{**PRIOR, **options})).eval()


def captions(batch: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 30, (8, 6), generator=torch.Generator().manual_seed(0))
    ids[:, 4], ids[:, 5] = 31, 0  # the end token, padding
    return {"input_ids": ids[:batch]}


def build() -> dict[str, Tiny]:
    """The models by name."""
    codes = {"id_embedding": "codes", "code_width": 8, "code_hidden_size": 32, "num_head_layers": 2}
    unread = {"position_embedding": "the original fixes it at zero", r"k_proj\.bias": "changes no attention weight"}
    return {
        "unitok": Tiny(unitok, forward_kwargs=captions, grad_free=unread),
        "unitok-linear": Tiny(lambda: unitok(projection="linear", embed_dim=0, text_num_layers=0)),
        "unitok-prior": Tiny(prior),
        "unitok-prior-codes": Tiny(lambda: prior(**codes)),
    }
