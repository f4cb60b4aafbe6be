"""Configuration of ReToK."""

from huggingface_hub.dataclasses import strict

from ..gigatok.configuration_gigatok import GigaTokConfig


@strict
class ReTokConfig(GigaTokConfig):
    r"""
    Configuration of [`ReTokModel`]; fields as in [`GigaTokConfig`].

    Args:
        num_redundant_tokens (`int`): redundant latents R; the first `num_latent_tokens - R` tokens have none.
    """

    model_type = "vistok_retok"

    num_redundant_tokens: int = 224

    def validate_redundant_tokens(self) -> None:
        """Raises a ValueError for a 2-D layout, or more redundant tokens than there are tokens."""
        if self.layout != "1d" or not 0 < self.num_redundant_tokens < self.num_latent_tokens:
            raise ValueError("ReToK is 1-D, with 0 < num_redundant_tokens < num_latent_tokens.")
