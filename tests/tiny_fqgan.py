"""Tiny FQGAN tokenizers with two and three codebooks."""

import torch

from hf_vistok.modeling.fqgan.configuration_far import FARPriorConfig
from hf_vistok.modeling.fqgan.configuration_fqgan import FQGANConfig
from hf_vistok.modeling.fqgan.modeling_far import FARPrior
from hf_vistok.modeling.fqgan.modeling_fqgan import FQGANModel

from .tiny import Tiny


def fqgan(count: int) -> FQGANModel:
    config = FQGANConfig(
        image_size=16, hidden_channels=32, encoder_channel_mult=(1, 1), decoder_channel_mult=(1, 1), num_res_blocks=1,
        z_channels=16, codebook_size=32, codebook_dim=4, num_codebooks=count, adapter_hidden_size=32,
        adapter_num_layers=1, adapter_num_heads=4, feature_sizes=(16, 24)[: count - 1], feature_num_layers=1,
        feature_num_heads=4,
    )  # fmt: skip
    return FQGANModel(config).eval()


def features(count: int):
    def make(batch: int) -> dict:
        generator = torch.Generator().manual_seed(0)
        return {"teacher_features": [torch.randn(batch, size, generator=generator) for size in (16, 24)[: count - 1]]}

    return make


def far() -> FARPrior:
    config = FARPriorConfig(
        codebook_size=32, num_codebooks=3, num_image_tokens=9, num_classes=5, hidden_size=32, num_hidden_layers=2,
        num_head_layers=1, num_attention_heads=4, multiple_of=16,
    )  # fmt: skip
    return FARPrior(config).eval()


def build() -> dict[str, Tiny]:
    return {
        "far": Tiny(far),
        "fqgan-dual": Tiny(lambda: fqgan(2), forward_kwargs=features(2)),
        "fqgan-triple": Tiny(lambda: fqgan(3), forward_kwargs=features(3)),
    }
