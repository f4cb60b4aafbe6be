import torch

from hf_vistok.modeling.rpiae.configuration_rpiae import RpiaeConfig
from hf_vistok.modeling.rpiae.modeling_rpiae import RpiaeModel

from .tiny import Tiny
from .tiny_rae import ENCODERS


def rpiae(kind="dinov2", **options):
    fields = {
        "image_size": 32,
        "encoder_type": kind,
        "encoder_config": ENCODERS[kind],
        "encoder_input_size": 16,
        "decoder_hidden_size": 32,
        "decoder_num_layers": 2,
        "decoder_num_heads": 2,
        "decoder_intermediate_size": 48,
        "decoder_patch_size": 8,
        "bridge_dim": 6,
        "bridge_num_layers": 2,
    }
    return lambda: RpiaeModel(RpiaeConfig(**{**fields, **options})).eval()


def draws(batch, *shape):
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(batch)])


def first_stage(batch):
    return {
        "pivot_features": draws(batch, 16, 32),
        "noise": draws(batch, 32, 4, 4),
        "sigma": torch.linspace(0.1, 0.7, batch),
    }


def second_stage(batch):
    return {"posterior_noise": draws(batch, 6, 4, 4)}


def build():
    bridge = {"^encoder\\.": "frozen", "^bridge_": "frozen"}
    return {
        "rpiae": Tiny(rpiae(), grad_free=bridge),
        "rpiae-bridge": Tiny(
            rpiae(training_stage="stage2", has_statistics=True),
            forward_kwargs=second_stage,
            grad_free={"^encoder\\.": "frozen", "^decoder\\.": "frozen"},
        ),
        "rpiae-pivot": Tiny(
            rpiae("mae", training_stage="stage1", bridge_dim=None, noise_tau=0.8),
            forward_kwargs=first_stage,
            grad_free={
                r"^encoder\.embeddings\.position_embeddings": "MAE's table is fixed",
            },
        ),
    }
