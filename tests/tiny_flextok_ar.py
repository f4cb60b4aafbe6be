"""Tiny FlexAR models: from a class (SwiGLU, qk-norm, sine-cosine positions) and from a text."""

import torch

from hf_vistok.modeling.flextok_ar.configuration_flextok_ar import FlexARConfig
from hf_vistok.modeling.flextok_ar.modeling_flextok_ar import FlexARPrior

from .tiny import Tiny

SIZES = {
    "codebook_size": 40,
    "num_image_tokens": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_multiple_of": 16,
    "token_grid": (4, 4),
}


def build() -> dict[str, Tiny]:
    """The models by name."""

    def of_class() -> FlexARPrior:
        options = {"feed_forward": "swiglu", "qk_norm": "rms_norm", "norm": "gain_bias_layer_norm", "norm_bias": False}
        config = FlexARConfig(**SIZES, **options, condition="class", num_classes=5, positions="sincos_2d")
        return FlexARPrior(config).eval()

    def of_text() -> FlexARPrior:
        biases = dict.fromkeys(("qkv_bias", "proj_bias", "cross_qkv_bias", "cross_proj_bias", "ffn_bias"), True)
        options = {"cross_qk_norm": "layer_norm", "head_norm": True, **biases}
        config = FlexARConfig(**SIZES, condition="text", text_dim=12, text_length=6, **options)
        return FlexARPrior(config).eval()

    def text(batch: int) -> dict[str, torch.Tensor]:
        source = torch.Generator().manual_seed(0)
        states, empty = torch.randn(8, 6, 12, generator=source), torch.randn(1, 1, 12, generator=source)
        mask = torch.arange(6) < torch.tensor([6, 4, 5, 3, 6, 2, 1, 6])[:, None]
        return {
            "encoder_hidden_states": states[:batch],
            "encoder_attention_mask": mask[:batch],
            "negative_encoder_hidden_states": empty.expand(batch, -1, -1),
        }

    return {
        "flextok-ar-class": Tiny(of_class, grad_free={r"position_embedding": "a fixed table"}),
        "flextok-ar-text": Tiny(of_text, forward_kwargs=text, generate_kwargs=text),
    }
