"""Configuration of RAE."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig
from ..layers.vision_towers import check_tower


@strict
class RaeConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`RaeModel`].

    Args:
        encoder_type (`str`): "dinov2" (with registers), "siglip2" or "mae".
        encoder_config (`dict`): fields of transformers' configuration of the encoder.
        encoder_input_size (`int`): side of the picture that the encoder sees; pictures are resized to it.
        encoder_mean, encoder_std (`tuple[float]`): normalisation of that picture.
        has_encoder (`bool`): False for a decoder alone, which is what the authors publish in one file.
        has_statistics (`bool`): whether latents are normalised position by position; the statistics are tensors of
            the checkpoint.
        statistics_eps (`float`): added to the variance.
        decoder_hidden_size, decoder_num_layers, decoder_num_heads, decoder_intermediate_size (`int`): of the decoder.
        decoder_patch_size (`int`): pixels along a side that one token becomes.
        decoder_layer_norm_eps (`float`): of the decoder's norms.
        decoder_qkv_bias (`bool`): whether the decoder's q, k and v have biases.
        noise_tau (`float`): largest standard deviation of the noise on latents in training (section 3.3).
    """

    model_type = "vistok_rae"

    encoder_type: str = "dinov2"
    encoder_config: dict[str, Any] | None = None
    encoder_input_size: int = 224
    encoder_mean: tuple[float, ...] | list[float] = (0.485, 0.456, 0.406)
    encoder_std: tuple[float, ...] | list[float] = (0.229, 0.224, 0.225)
    has_encoder: bool = True
    has_statistics: bool = True
    statistics_eps: float = 1e-5
    decoder_hidden_size: int = 1152
    decoder_num_layers: int = 28
    decoder_num_heads: int = 16
    decoder_intermediate_size: int = 4096
    decoder_patch_size: int = 16
    decoder_layer_norm_eps: float = 1e-12
    decoder_qkv_bias: bool = True
    noise_tau: float = 0.8

    def __post_init__(self, **kwargs: Any) -> None:
        self.encoder_config = dict(self.encoder_config or {})
        super().__post_init__(**kwargs)

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.encoder_input_size // self.encoder_patch_size

    @property
    def encoder_patch_size(self) -> int:
        """Pixels along a side of the encoder's patches."""
        return self.encoder_config.get("patch_size", 14 if self.encoder_type == "dinov2" else 16)

    @property
    def latent_dim(self) -> int:
        """Width of the encoder."""
        return self.encoder_config.get("hidden_size", 768)

    def validate_encoder(self) -> None:
        """The encoder is known, and its grid times the decoder's patch is the picture."""
        check_tower(self.encoder_type)
        if self.encoder_input_size % self.encoder_patch_size:
            raise ValueError(f"encoder_input_size must be a multiple of {self.encoder_patch_size}.")
        if self.grid * self.decoder_patch_size != self.image_size:
            raise ValueError(
                f"image_size must be {self.grid} tokens of {self.decoder_patch_size} pixels, got {self.image_size}."
            )
