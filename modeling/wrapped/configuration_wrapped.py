"""Configuration of wrapped tokenizers."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig

# class -> library
LIBRARIES = {
    "AutoencoderKL": "diffusers",
    "AutoencoderDC": "diffusers",
    "VQModel": "diffusers",
    "Emu3VQVAE": "transformers",
    "ChameleonVQVAE": "transformers",
    "JanusVQVAE": "transformers",
}


@strict
class WrappedTokenizerConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`WrappedTokenizerModel`].

    Args:
        inner_class (`str`): class of transformers or diffusers.
        inner_config (`dict`): its configuration. An `AutoencoderKL` of 48 channels takes pixels in blocks of 4 x 4.
        kl_weight (`float`): of the KL term in training, summed over an image's latents.
        latent_noise (`float`): standard deviation of noise added to latents in training, in units of theirs: makes
            the decoder forgive a generator's errors.
    """

    model_type = "vistok_wrapped"

    pixel_range: tuple[float, ...] | list[float] | None = (-1.0, 1.0)
    inner_class: str = "AutoencoderKL"
    inner_config: dict[str, Any] | None = None
    kl_weight: float = 1e-6
    latent_noise: float = 0.0

    def validate_inner_class(self) -> None:
        """Raises a ValueError for a class that there is no wrapper for."""
        if self.inner_class not in LIBRARIES:
            raise ValueError(f"inner_class must be one of {', '.join(LIBRARIES)}, got {self.inner_class!r}.")
