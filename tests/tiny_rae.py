from hf_vistok.modeling.rae.configuration_rae import RaeConfig
from hf_vistok.modeling.rae.modeling_rae import RaeModel

from .tiny import Tiny

ENCODERS = {
    "dinov2": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 4,
        "image_size": 24,
        "num_register_tokens": 2,
    },
    "siglip2": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 4,
        "image_size": 16,
    },
    "mae": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 4,
        "image_size": 8,
    },
}


def rae(kind, **options):
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
    }
    return lambda: RaeModel(RaeConfig(**{**fields, **options})).eval()


def build():
    return {
        "rae": rae("dinov2"),
        "rae-siglip2": Tiny(rae("siglip2", encoder_mean=(0.5, 0.5, 0.5), encoder_std=(0.5, 0.5, 0.5))),
        "rae-mae": rae("mae", has_statistics=False),
    }
