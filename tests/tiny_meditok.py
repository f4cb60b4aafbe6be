"""Tiny MedITok tokenizers with and without the alignment head, and a prior with grouped queries."""

import torch

from hf_vistok.modeling.meditok.configuration_meditok import MedITokConfig
from hf_vistok.modeling.meditok.modeling_meditok import MedITokModel

from .tiny import Tiny
from .tiny_unitok import SHAPE, prior


def meditok(**options) -> MedITokModel:
    # a head is wider than the codes: its average is pooled
    return MedITokModel(MedITokConfig(**{**SHAPE, "latent_width": 12, "embed_dim": 24, **options})).eval()


def teacher(batch: int) -> dict[str, torch.Tensor]:
    return {"teacher_features": torch.randn(8, 24, generator=torch.Generator().manual_seed(0))[:batch]}


def build() -> dict[str, Tiny]:
    """The models by name."""
    return {
        "meditok": Tiny(meditok, forward_kwargs=teacher),
        "meditok-unaligned": Tiny(lambda: meditok(embed_dim=0)),
        "meditok-prior": Tiny(lambda: prior(num_key_value_heads=2, num_head_layers=2)),
    }
