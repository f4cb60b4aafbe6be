"""A tiny ReToK: the first 3 of 8 tokens have no redundant twin."""

import torch

from hf_vistok.modeling.retok.configuration_retok import ReTokConfig
from hf_vistok.modeling.retok.modeling_retok import ReTokModel

from .tiny import Tiny
from .tiny_gigatok import SIZES, teacher


def build() -> dict[str, Tiny]:
    """The model by name."""

    def forward_kwargs(batch: int) -> dict[str, torch.Tensor]:
        return {**teacher(batch), "keep": torch.tensor([2, 5, 8, 1])[:batch]}

    def tokenizer(**options):
        return lambda: ReTokModel(ReTokConfig(**{**SIZES, "num_redundant_tokens": 5, **options})).eval()

    def lengths(batch: int) -> dict[str, torch.Tensor]:
        return {"keep": torch.tensor([2, 5, 8, 1])[:batch]}

    return {
        "retok": Tiny(tokenizer(), forward_kwargs=forward_kwargs),
        "retok-converted": Tiny(tokenizer(redundant_decoder=False, alignment_depth=None), forward_kwargs=lengths),
    }
