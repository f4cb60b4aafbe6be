"""Configuration of MingTok."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig

MLPS = ("swiglu", "gelu")


@strict
class MingTokConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`MingTokModel`]. Heads are 64 wide in all three parts.

    Args:
        token_size (`int`): width of a latent.
        latents_mean, latents_scale (`float`): `latents = (raw - latents_mean) / latents_scale`.
        encoder_patch_size, encoder_hidden_size, encoder_num_layers, encoder_mlp: of the low-level encoder; "swiglu" or
            "gelu".
        semantic_hidden_size, semantic_num_layers, semantic_mlp: of the causal semantic decoder.
        pixel_patch_size, pixel_hidden_size, pixel_num_layers, pixel_mlp: of the pixel decoder.
        loss_weights (`dict`): weights of the terms that `forward` returns; those not named weigh 1.
    """

    model_type = "vistok_mingtok"

    image_size: int = 512
    pixel_range: tuple[float, ...] | list[float] | None = (-1.0, 1.0)
    token_size: int = 32
    latents_mean: float = 1.46817409
    latents_scale: float = 8.09449291
    encoder_patch_size: int = 32
    encoder_hidden_size: int = 768
    encoder_num_layers: int = 12
    encoder_mlp: str = "swiglu"
    semantic_hidden_size: int = 1024
    semantic_num_layers: int = 24
    semantic_mlp: str = "swiglu"
    pixel_patch_size: int = 16
    pixel_hidden_size: int = 1024
    pixel_num_layers: int = 24
    pixel_mlp: str = "gelu"
    loss_weights: dict[str, Any] | None = None

    def validate_sizes(self) -> None:
        """Raises a ValueError for widths and patches that do not fit each other, or an unknown MLP."""
        for name in ("encoder", "semantic", "pixel"):
            width = getattr(self, f"{name}_hidden_size")
            if width % 64:
                raise ValueError(f"{name}_hidden_size must be a multiple of 64, the width of a head, got {width}.")
            if getattr(self, f"{name}_mlp") not in MLPS:
                raise ValueError(f"{name}_mlp must be one of {MLPS}.")
        if self.encoder_hidden_size % self.token_size or self.semantic_hidden_size % self.token_size:
            raise ValueError("The widths of encoder and semantic decoder must be multiples of token_size.")
        if self.encoder_patch_size % self.pixel_patch_size:
            raise ValueError("encoder_patch_size must be a multiple of pixel_patch_size.")
