"""Configuration of KARL."""

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig

BASES = ("vqgan", "vae")


@strict
class KarlConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`KarlModel`].

    Args:
        quantize (`bool`): whether tokens are ids of a codebook, or vectors.
        codebook_size, use_l2_norm, commitment_cost: of the codebook.
        token_size (`int`): width of a token.
        max_tokens (`int`): the largest budget.
        default_budget (`int`): the budget where none is asked for.
        default_max_error (`float`): mean absolute error that an image may have where none is asked for.
        halting_threshold (`float`): a token is left out where its halting probability is above.
        dynamic_halting (`bool`): whether tokens are left out at all.
        patch_size (`int`): pixels per side of a grid position, of the patches and of the base tokenizer alike.
        max_grid (`int`): side of the learned position tables, resized to the grid by the nearest neighbour.
        encoder_hidden_size, encoder_num_layers, encoder_num_heads: of the encoder; the same with `decoder_`.
        halting_hidden_size (`int`): of the head that decides.
        base (`str`): the grid tokenizer inside, "vqgan" (MAGE) or "vae" (MAR).
        base_channels, base_channel_mult, base_num_res_blocks, base_latent_channels, base_codebook_size: of it.
        base_attention (`bool`): attention in the coarsest level of the "vae".
        base_scale (`float`): factor of its latents ("vae") in the encoder's input.
    """

    model_type = "vistok_karl"

    quantize: bool = True
    codebook_size: int = 4096
    use_l2_norm: bool = True
    commitment_cost: float = 0.25
    token_size: int = 12
    max_tokens: int = 512
    default_budget: int = 256
    default_max_error: float = 0.05
    halting_threshold: float = 0.75
    dynamic_halting: bool = True
    patch_size: int = 16
    max_grid: int = 64
    encoder_hidden_size: int = 1024
    encoder_num_layers: int = 8
    encoder_num_heads: int = 8
    decoder_hidden_size: int = 1024
    decoder_num_layers: int = 8
    decoder_num_heads: int = 8
    halting_hidden_size: int = 512
    base: str = "vqgan"
    base_channels: int = 128
    base_channel_mult: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4)
    base_num_res_blocks: int = 2
    base_latent_channels: int = 256
    base_codebook_size: int = 1024
    base_attention: bool = True
    base_scale: float = 0.2325

    def validate_base(self) -> None:
        """Raises a ValueError for an unknown base tokenizer."""
        if self.base not in BASES:
            raise ValueError(f"base must be one of {BASES}, got {self.base!r}.")
