"""Configuration of MaskGIT-VQGAN."""

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig


@strict
class MaskGitVQGANConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`MaskGitVQGANModel`].

    Args:
        hidden_channels (`int`): width that `channel_mult` multiplies.
        channel_mult (`list[int]`): one factor per level; every level but the last halves the picture.
        num_res_blocks (`int`): residual blocks per level and in the middle.
        latent_channels (`int`): width of codes.
        codebook_size (`int`): number of codes.
        commitment_cost (`float`): weight of the commitment term.
        dropout (`float`): in residual blocks.
    """

    model_type = "vistok_maskgit_vqgan"

    hidden_channels: int = 128
    channel_mult: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_channels: int = 256
    codebook_size: int = 1024
    commitment_cost: float = 0.25
    dropout: float = 0.0

    @property
    def downsample_factor(self) -> int:
        """Pixels per side of one latent."""
        return 2 ** (len(self.channel_mult) - 1)
