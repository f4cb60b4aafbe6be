"""A tiny RAR."""

import torch

from hf_vistok.modeling.rar.configuration_rar import RARConfig
from hf_vistok.modeling.rar.modeling_rar import RARPrior

from .tiny import Tiny

SIZES = {
    "codebook_size": 24,
    "num_image_tokens": 16,
    "num_classes": 5,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_spare_positions": 3,
    "num_spare_timesteps": 3,
}


def build() -> dict[str, Tiny]:
    """The model by name, in raster order and in random orders."""

    def prior() -> RARPrior:
        return RARPrior(RARConfig(**SIZES)).eval()

    def shuffled(batch: int) -> dict[str, torch.Tensor]:
        return {"orders": torch.rand(8, 16, generator=torch.Generator().manual_seed(0)).argsort(1)[:batch]}

    reason = {"log_probs_are_those_of_forward": "generation is in raster order, its forward here is not"}
    return {"rar": Tiny(prior), "rar-random-order": Tiny(prior, forward_kwargs=shuffled, skip=reason)}
