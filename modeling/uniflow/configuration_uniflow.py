"""Configuration of UniFlow."""

import re

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig
from ..layers.intern_vit import NORMS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@strict
class UniFlowConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`UniFlowModel`].

    Args:
        patch_size (`int`): of the encoder, and of the pixels that one token becomes.
        hidden_size, num_layers, num_heads, intermediate_size (`int`): of the encoder (InternViT-300M by default).
        norm_type (`str`): "layer_norm" or "rms_norm".
        layer_norm_eps (`float`): of the encoder's norms.
        qkv_bias, qk_norm (`bool`): whether q, k and v have biases; whether q and k are normalised.
        layer_scale (`float`): at which fresh LayerScale starts.
        latent_channels (`int`, *optional*): of the latents; None: the encoder's tokens are the latents.
        num_global_layers (`int`): blocks of the decoder that see all tokens; 0 for none.
        global_num_heads (`int`): their heads.
        num_flow_layers (`int`): blocks of the flow of single patches.
        num_inference_steps (`int`): Euler steps of the flow.
        schedule (`str`): "linear" (equal steps) or "pow_p" with a number p: `t_k = 1 - ((S - k) / S) ** (1 / p)`.
        guidance_scale (`float`): weight of guidance by a condition of zeros; 1 means none.
        guidance_interval (`tuple[float, float]`, *optional*): noise levels `sigma = (1 - t) / t` of guidance.
        condition_dropout (`float`): share of pictures whose condition training replaces by zeros.
        uniform_times (`float`): share of training times that are uniform; the rest is logit-normal.
        distillation_weight, distillation_beta (`float`): of the self-distillation, and how strongly layers that went
            astray are favoured.
        dispersive_weight (`float`): of the dispersive term on latents.
    """

    model_type = "vistok_uniflow"

    image_size: int = 448
    pixel_range: tuple[float, ...] | list[float] | None = None
    image_mean: tuple[float, ...] | list[float] | None = IMAGENET_MEAN
    image_std: tuple[float, ...] | list[float] | None = IMAGENET_STD
    patch_size: int = 14
    hidden_size: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    intermediate_size: int = 4096
    norm_type: str = "layer_norm"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float = 1.0
    latent_channels: int | None = 64
    num_global_layers: int = 6
    global_num_heads: int = 16
    num_flow_layers: int = 12
    num_inference_steps: int = 1
    schedule: str = "linear"
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, ...] | list[float] | None = None
    condition_dropout: float = 0.0
    uniform_times: float = 0.1
    distillation_weight: float = 1.0
    distillation_beta: float = 1.0
    dispersive_weight: float = 0.0
    latents_mean: list[float] | None = None
    latents_std: list[float] | None = None

    @property
    def grid_size(self) -> int:
        """Tokens along a side."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        """Numbers of one patch."""
        return self.num_channels * self.patch_size**2

    def validate_sizes(self) -> None:
        """Pictures are whole patches; widths are whole heads; names are known."""
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size={self.patch_size}, got {self.image_size}.")
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise ValueError("hidden_size must be a multiple of num_heads, and of 4.")
        if self.num_global_layers and self.hidden_size % self.global_num_heads:
            raise ValueError("hidden_size must be a multiple of global_num_heads.")
        if self.norm_type not in NORMS:
            raise ValueError(f"norm_type must be one of {NORMS}, got {self.norm_type!r}.")

    def validate_schedule(self) -> None:
        """The schedule is one of the two kinds."""
        if schedule_power(self.schedule) is None:
            raise ValueError(f'schedule must be "linear" or "pow_p" with a number p above 0, got {self.schedule!r}.')


def schedule_power(schedule: str) -> float | None:
    """The number p of a schedule, 1 for "linear", None for an unknown name."""
    found = re.fullmatch(r"linear|pow_(\d*\.?\d+)", schedule)
    power = float(found[1] or 1) if found else 0.0
    return power if power > 0 else None
