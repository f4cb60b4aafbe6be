import torch

from hf_vistok.modeling.mingtok.configuration_mingtok import MingTokConfig
from hf_vistok.modeling.mingtok.modeling_mingtok import MingTokModel

from .tiny import Tiny

SIZES = {
    "image_size": 16,
    "token_size": 8,
    "latents_mean": 0.2,
    "latents_scale": 1.5,
    "encoder_patch_size": 4,
    "encoder_hidden_size": 64,
    "encoder_num_layers": 1,
    "semantic_hidden_size": 64,
    "semantic_num_layers": 2,
    "pixel_patch_size": 2,
    "pixel_hidden_size": 64,
    "pixel_num_layers": 1,
}


def mingtok(**options):
    return lambda: MingTokModel(MingTokConfig(**{**SIZES, **options})).eval()


def wide(batch):
    draws = [torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(i)) for i in range(batch)]
    return torch.stack(draws) * 2 - 1


def teacher(batch):
    draws = [torch.randn(16, 64, generator=torch.Generator().manual_seed(i)) for i in range(batch)]
    return {"teacher_features": torch.stack(draws)}


def build():
    return {
        "mingtok": Tiny(mingtok(), forward_kwargs=teacher),
        "mingtok-wide": Tiny(mingtok(pixel_mlp="swiglu", encoder_mlp="gelu"), inputs=wide),
    }
