"""Tiny KARL models: both base tokenizers, discrete and continuous."""

from hf_vistok.modeling.karl.configuration_karl import KarlConfig
from hf_vistok.modeling.karl.modeling_karl import KarlModel

from .tiny import Tiny

SIZES = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in
         {"hidden_size": 48, "num_layers": 2, "num_heads": 4}.items()}  # fmt: skip


def karl(base: str, quantize: bool) -> KarlModel:
    options = {"base_codebook_size": 16} if base == "vqgan" else {"base_attention": False}
    config = KarlConfig(
        image_size=16, patch_size=2, max_grid=9, max_tokens=16, default_budget=16, token_size=4, codebook_size=32,
        halting_hidden_size=16, quantize=quantize, base=base, base_channels=32, base_channel_mult=(1, 1),
        base_num_res_blocks=1, base_latent_channels=8, **SIZES, **options,
    )  # fmt: skip
    return KarlModel(config).eval()


def build() -> dict[str, Tiny]:
    options = {
        "forward_kwargs": {"num_tokens": 8, "max_error": 0.05},
        "skip": {"encode_refuses_lengths": "num_tokens is a budget: any up to the largest is taken"},
    }
    return {
        "karl": Tiny(lambda: karl("vqgan", True), **options),
        "karl-continuous": Tiny(lambda: karl("vqgan", False), **options),
        "karl-vae": Tiny(lambda: karl("vae", True), **options),
    }
