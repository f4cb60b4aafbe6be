import torch

from hf_vistok.modeling.comit.configuration_comit import ComitConfig
from hf_vistok.modeling.comit.modeling_comit import ComitModel

from .tiny import Tiny
from .tiny_flextok import VAE

SIZES = {
    "image_size": 32,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "latent_size": 16,
    "num_latent_tokens": 6,
    "fsq_levels": [4, 4, 3, 2],
    "representation_layer": 0,
    "crop_size": 16,
    "crop_stride": 8,
    "vae_config": VAE,
    "num_inference_steps": 2,
    "condition_dropout": 0.0,
}


def comit(**options):
    return lambda: ComitModel(ComitConfig(**{**SIZES, **options})).eval()


def draws(batch, *shape, seed=0):
    made = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)]
    return torch.stack(made)


def training(batch):
    return {
        "noise": draws(batch, 4, 16, 16),
        "timesteps": torch.linspace(0.2, 0.9, batch),
        "crop_order": [0, 8, 4],
        "teacher_features": draws(batch, 64, 6),
    }


def build():
    free = {r"^vae\.": "the VAE is frozen", r"location_head": "the paper's third head has no published loss"}
    adaptive = {"crop_order": "adaptive", "num_crops": 2, "global_crop": True}
    return {
        "comit": Tiny(comit(alignment_dim=6), forward_kwargs=training, grad_free=free, compiles_slowly=True),
        "comit-adaptive": Tiny(
            comit(solver="midpoint", guidance_scale=1.0),
            compiles_slowly=True,
            encode_kwargs=lambda batch: adaptive | {"noise": draws(batch, 4, 16, 16)},
            forward_kwargs=lambda batch: {"timesteps": torch.linspace(0.2, 0.9, batch)},
            grad_free=free,
        ),
    }
