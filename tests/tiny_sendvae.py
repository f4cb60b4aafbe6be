import torch

from hf_vistok.modeling.sendvae.configuration_sendvae import SendVaeConfig
from hf_vistok.modeling.sendvae.modeling_sendvae import SendVaeModel

from .tiny import Tiny

SIZES = {
    "image_size": 16,
    "nominal_resolution": 16,
    "hidden_channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (8,),
    "latent_channels": 4,
    "norm_num_groups": 4,
}
MAPPER = {
    "mapper_target_size": 12,
    "mapper_hidden_size": 32,
    "mapper_num_layers": 2,
    "mapper_num_heads": 2,
    "mapper_patch_size": 2,
    "mapper_noise": 0.0,
}


def sendvae(**options):
    return lambda: SendVaeModel(SendVaeConfig(**{**SIZES, **options})).eval()


def teacher(batch):
    return {
        "teacher_features": torch.stack(
            [torch.randn(16, 12, generator=torch.Generator().manual_seed(i)) for i in range(batch)]
        ),
        "noise": torch.zeros(batch, 4, 8, 8),
    }


def build():
    return {
        "sendvae": sendvae(attention_resolutions=(16,), variational=False),
        "sendvae-mapper": Tiny(sendvae(**MAPPER), forward_kwargs=teacher),
    }
