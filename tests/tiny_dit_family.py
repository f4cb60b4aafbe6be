import torch

from hf_vistok.modeling.dit_family.modeling_dit_family import LatentFlowTransformer

from .tiny import Tiny

SIZES = {
    "sample_size": 4,
    "in_channels": 4,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_classes": 5,
    "num_inference_steps": 3,
}
LIGHTNING = {
    "norm": "rms",
    "mlp": "swiglu",
    "rotary": True,
    "noise_time": 0,
    "grid": "points",
    "guidance_channels": 3,
    "latent_norm": "channel",
    "latents_mean": [0.1] * 4,
    "latents_std": [2.0] * 4,
}
WIDE = {
    "time_embedding": "fourier",
    "grid": "rae",
    "qk_norm": "rms",
    "head_hidden_size": 48,
    "head_num_layers": 1,
    "head_num_heads": 4,
}
REPA = {
    "projector_dims": (12,),
    "projector_hidden_size": 16,
    "projector_layer": 1,
    "latent_norm": "batch",
    "sampler": "sde",
    "float64_state": True,
}
DIFFUSION = {
    "prediction": "epsilon",
    "learn_sigma": True,
    "sampler": "ddpm",
    "latent_norm": "scale",
    "latents_scale": 0.18215,
}


def draws(batch, *shape, seed=0):
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)])


def flow(batch):
    return {
        "hidden_states": draws(batch, 4, 4, 4),
        "timestep": torch.linspace(0.2, 0.9, batch),
        "class_labels": torch.arange(batch) + 1,
    }


def training(batch):
    return {**flow(batch), "noise": draws(batch, 4, 4, 4, seed=5)}


def texts(batch):
    lengths = torch.arange(batch) % 3 + 1
    return {
        "hidden_states": draws(batch, 4, 4, 4),
        "timestep": torch.linspace(0.2, 0.9, batch),
        "encoder_hidden_states": draws(batch, 3, 12, seed=3),
        "encoder_attention_mask": (torch.arange(3) < lengths[:, None]).long(),
        "noise": draws(batch, 4, 4, 4, seed=5),
    }


def with_teacher(batch):
    return {**training(batch), "teacher_features": [draws(batch, 16, 12, seed=9)]}


def diffusion(batch):
    return {**training(batch), "timestep": torch.arange(batch) * 400 + 3}


def transformer(**options):
    return lambda: LatentFlowTransformer(**{**SIZES, **options}).eval()


def build():
    one = {"batch_is_one_by_one": "losses and batch statistics are of the whole batch"}
    return {
        "dit_family": Tiny(transformer(**LIGHTNING), forward_kwargs=flow),
        "dit_family-wide": Tiny(transformer(**WIDE), forward_kwargs=flow),
        "dit_family-training": Tiny(
            transformer(**LIGHTNING, modulation_shift=False, class_dropout=0.5, loss_weights={"cosine_loss": 1.0}),
            forward_kwargs=training,
            skip=one,
        ),
        "dit_family-repa": Tiny(transformer(**REPA), forward_kwargs=with_teacher, skip=one),
        "dit_family-text": Tiny(
            transformer(rotary=True, num_classes=0, text_dim=12, text_length=5, guidance_scale=2.0),
            forward_kwargs=texts,
            skip=one,
        ),
        "dit_family-epsilon": Tiny(transformer(**DIFFUSION), forward_kwargs=diffusion, skip=one),
    }
