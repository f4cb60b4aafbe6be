import torch

from hf_vistok.modeling.maskgen.configuration_maskgen import MaskGenConfig
from hf_vistok.modeling.maskgen.configuration_maskgen_kl import MaskGenKLConfig
from hf_vistok.modeling.maskgen.modeling_maskgen import MaskGenPrior
from hf_vistok.modeling.maskgen.modeling_maskgen_kl import MaskGenKLPrior

from .tiny import Tiny

TRUNK = {
    "num_image_tokens": 6,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "text_embed_dim": 12,
    "micro_condition_dim": 8,
}


def maskgen(**options):
    sizes = {"codebook_size": 24, "num_spare_rows": 3, **TRUNK}
    return lambda: MaskGenPrior(MaskGenConfig(**{**sizes, **options})).eval()


def maskgen_kl(**options):
    sizes = {"token_size": 4, "head_size": 32, "head_num_blocks": 2, **TRUNK}
    return lambda: MaskGenKLPrior(MaskGenKLConfig(**{**sizes, **options})).eval()


def draws(batch, *shape, seed=0):
    made = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)]
    return torch.stack(made)


def text(batch):
    return {
        "encoder_hidden_states": draws(batch, 5, 12),
        "pooled_projections": draws(batch, 12, seed=9),
        "micro_conditions": 4.0 + torch.arange(batch),
    }


def texts(batch):
    null = {"negative_encoder_hidden_states": draws(batch, 5, 12, seed=5)}
    return text(batch) | null | {"negative_pooled_projections": draws(batch, 12, seed=6)}


def build():
    ids = {
        "forward_kwargs": text,
        "generate_kwargs": lambda batch: texts(batch) | {"num_inference_steps": 3, "choice_temperature": 1.0},
        "unguided": 0.0,
    }
    few = {"num_inference_steps": 3, "num_head_steps": 4}
    return {
        "maskgen": Tiny(maskgen(), **ids),
        "maskgen-untied": Tiny(maskgen(tie_lm_head=False, micro_condition=False), **ids),
        "maskgen-kl": Tiny(
            maskgen_kl(),
            forward_kwargs=lambda batch: text(batch) | {"latents": draws(batch, 6, 4, seed=3)},
            generate_kwargs=lambda batch: texts(batch) | few,
        ),
    }
