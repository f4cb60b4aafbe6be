import torch

from hf_vistok.modeling.uniflow.configuration_uniflow import UniFlowConfig
from hf_vistok.modeling.uniflow.modeling_uniflow import UniFlowModel

from .tiny import Tiny

SIZES = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 48,
    "latent_channels": 6,
    "num_global_layers": 1,
    "global_num_heads": 4,
    "num_flow_layers": 2,
}
LARGE = {"norm_type": "rms_norm", "qk_norm": True, "qkv_bias": False, "latent_channels": None, "num_global_layers": 0}


def uniflow(**options):
    return lambda: UniFlowModel(UniFlowConfig(**{**SIZES, **options})).eval()


def draws(*shape, batch, seed=0):
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)])


def training(batch):
    return {
        "teacher_hidden_states": draws(2, 17, 32, batch=batch, seed=4),
        "noise": draws(16, 48, batch=batch),
        "t": torch.linspace(0.2, 0.8, batch),
    }


def build():
    return {
        "uniflow": Tiny(uniflow(), forward_kwargs=training),
        "uniflow-large": Tiny(
            uniflow(**LARGE, num_inference_steps=2, schedule="pow_0.5", guidance_scale=1.5, dispersive_weight=0.5),
            forward_kwargs=training,
        ),
    }
