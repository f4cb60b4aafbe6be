"""Configuration of LlamaGen's tokenizer."""

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig


@strict
class LlamaGenVQConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`LlamaGenVQModel`].

    Args:
        hidden_channels (`int`): width that the multipliers multiply.
        encoder_channel_mult, decoder_channel_mult (`list[int]`): one factor per level, fine to coarse; every level but
            the last halves the picture.
        num_res_blocks (`int`): residual blocks per level of the encoder; the decoder has one more.
        norm_num_groups (`int`): groups of the GroupNorms.
        z_channels (`int`): width of the encoder's output.
        codebook_size, codebook_dim (`int`): number and width of codes.
        codebook_l2_norm (`bool`): unit-length latents and rows.
        commitment_cost (`float`), entropy_loss_ratio (`float`): weights of the quantizer's terms.
        dropout (`float`): in residual blocks.
    """

    model_type = "vistok_llamagen_vq"

    pixel_range: tuple[float, ...] | list[float] | None = (-1.0, 1.0)
    hidden_channels: int = 128
    encoder_channel_mult: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4)
    decoder_channel_mult: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    norm_num_groups: int = 32
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_dim: int = 8
    codebook_l2_norm: bool = True
    commitment_cost: float = 0.25
    entropy_loss_ratio: float = 0.0
    dropout: float = 0.0

    def validate_levels(self) -> None:
        """Raises a ValueError where encoder and decoder have different numbers of levels."""
        if len(self.encoder_channel_mult) != len(self.decoder_channel_mult):
            raise ValueError("encoder_channel_mult and decoder_channel_mult must have as many levels.")

    @property
    def downsample_factor(self) -> int:
        """Pixels per side of one token."""
        return 2 ** (len(self.encoder_channel_mult) - 1)
