import torch

from hf_vistok.modeling.rectok.configuration_rectok import RecTokConfig
from hf_vistok.modeling.rectok.modeling_rectok import RecTokModel

from .tiny import Tiny

SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "latent_dim": 6,
    "semantic_dim": 12,
    **{
        f"{part}_{name}": size
        for part in ("encoder", "decoder", "semantic")
        for name, size in (("hidden_size", 32), ("num_layers", 2), ("num_heads", 2))
    },
}


def teacher(batch):
    return torch.stack([torch.randn(16, 12, generator=torch.Generator().manual_seed(i)) for i in range(batch)])


def training(batch):
    orders = [torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(batch)]
    return {
        "teacher_features": teacher(batch),
        "ids_restore": torch.stack(orders),
        "num_visible": 11,
        "posterior_noise": torch.zeros(batch, 11, 6),
        "timestep": torch.linspace(0.2, 0.7, batch),
        "noise": torch.stack([torch.randn(11, 6, generator=torch.Generator().manual_seed(i)) for i in range(batch)]),
    }


def rectok(**options):
    return lambda: RecTokModel(RecTokConfig(**{**SIZES, **options})).eval()


def build():
    return {
        "rectok": Tiny(rectok(), forward_kwargs=training),
        "rectok-class": Tiny(
            rectok(class_token="learnable", qk_norm=True),
            forward_kwargs=lambda batch: {"teacher_features": teacher(batch)},
            grad_free={
                r"decoder\.mask_token": "nothing is hidden in this pass",
            },
        ),
        "rectok-decoder": Tiny(
            rectok(semantic_dim=None, train_encoder=False, kl=False, flow_noise=0.0, mask_ratio_max=0.0),
            grad_free={r"^encoder\.": "frozen", r"decoder\.mask_token": "nothing is hidden in this stage"},
        ),
    }
