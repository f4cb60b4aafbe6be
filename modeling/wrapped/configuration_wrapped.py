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
        inner_config (`dict`): its configuration.
    """

    model_type = "vistok_wrapped"

    pixel_range: tuple[float, ...] | list[float] | None = (-1.0, 1.0)
    inner_class: str = "AutoencoderKL"
    inner_config: dict[str, Any] | None = None

    def validate_inner_class(self) -> None:
        """Raises a ValueError for a class that there is no wrapper for."""
        if self.inner_class not in LIBRARIES:
            raise ValueError(f"inner_class must be one of {', '.join(LIBRARIES)}, got {self.inner_class!r}.")
