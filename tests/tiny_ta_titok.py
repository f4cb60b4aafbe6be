import torch

from hf_vistok.modeling.ta_titok.configuration_ta_titok import TaTiTokConfig
from hf_vistok.modeling.ta_titok.modeling_ta_titok import TaTiTokModel

from .tiny import Tiny
from .tiny_titok import SIZES


def ta_titok(**options):
    text = {"text_context_length": 5, "text_embed_dim": 12}
    return lambda: TaTiTokModel(TaTiTokConfig(**{**SIZES, **text, **options})).eval()


def text(batch):
    states = [torch.randn(5, 12, generator=torch.Generator().manual_seed(i)) for i in range(batch)]
    return {"text_hidden_states": torch.stack(states)}


def build():
    conditions = {"decode_kwargs": text, "forward_kwargs": text}
    return {
        "ta_titok": Tiny(ta_titok(), **conditions),
        "ta_titok-kl": Tiny(ta_titok(quantizer="kl"), **conditions),
    }
