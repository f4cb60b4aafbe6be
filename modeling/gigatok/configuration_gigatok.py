"""Configuration of GigaTok's tokenizers."""

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig

LAYOUTS = ("1d", "2d")
QUERY_INITS = ("multi_level", "mean", "learned")


@strict
class GigaTokConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`GigaTokModel`].

    Args:
        layout (`str`): "1d" (a sequence of `num_latent_tokens`) or "2d" (one token per grid position).
        num_latent_tokens (`int`): tokens of the 1-D layout.
        num_redundant_tokens (`int`): ReToK's extra latents behind them; they start as copies of the last queries.
        redundant_decoder (`bool`): whether the decoder has positions for them, as training needs and pictures do not.
        query_init (`str`): how the 1-D encoder's queries start: "multi_level" (averages over ever finer blocks),
            "mean" (one average, repeated) or "learned".
        hidden_channels (`int`): width that the multipliers of the convolutional codec multiply.
        encoder_channel_mult, decoder_channel_mult (`list[int]`): one factor per level, fine to coarse; every level but
            the last halves the picture.
        num_res_blocks (`int`): residual blocks per level of the encoder; the decoder has one more.
        norm_num_groups (`int`): groups of the GroupNorms.
        z_channels (`int`): width between the convolutional codec and the transformers.
        conv_attention (`bool`): attention in the convolutional codec's coarsest level and middle.
        adaptive_norm, depth_to_space (`bool`): see `AdaptiveTamingDecoder`.
        dropout (`float`): in residual blocks.
        grid_cross_attention (`bool`): whether the layers of the 2-D layout have a second attention, to their own input.
        encoder_hidden_size, encoder_num_layers, encoder_num_heads: of the transformer encoder.
        decoder_hidden_size, decoder_num_layers, decoder_num_heads: of the transformer decoder.
        codebook_size, codebook_dim (`int`): number and width of codes.
        codebook_l2_norm (`bool`): unit-length latents and rows.
        rotation_trick (`bool`): gradients through the quantizer are rotated, not copied.
        commitment_cost, entropy_loss_ratio (`float`): weights of the quantizer's terms.
        alignment_depth (`int`, *optional*): decoder layers before the tap that is aligned with a vision model; None
            where there is no such head.
        alignment_dim (`int`): width of that model's features.
        alignment_weight, feature_reconstruction_weight (`float`): weights of these two terms.
    """

    model_type = "vistok_gigatok"

    pixel_range: tuple[float, ...] | list[float] | None = (-1.0, 1.0)
    layout: str = "1d"
    num_latent_tokens: int = 256
    num_redundant_tokens: int = 0
    redundant_decoder: bool = True
    query_init: str = "multi_level"
    hidden_channels: int = 128
    encoder_channel_mult: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4)
    decoder_channel_mult: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    norm_num_groups: int = 32
    z_channels: int = 256
    conv_attention: bool = False
    adaptive_norm: bool = True
    depth_to_space: bool = True
    dropout: float = 0.0
    grid_cross_attention: bool = True
    encoder_hidden_size: int = 512
    encoder_num_layers: int = 6
    encoder_num_heads: int = 8
    decoder_hidden_size: int = 512
    decoder_num_layers: int = 6
    decoder_num_heads: int = 8
    codebook_size: int = 16384
    codebook_dim: int = 8
    codebook_l2_norm: bool = True
    rotation_trick: bool = True
    commitment_cost: float = 0.25
    entropy_loss_ratio: float = 0.0
    alignment_depth: int | None = 3
    alignment_dim: int = 768
    alignment_weight: float = 0.5
    feature_reconstruction_weight: float = 1.0

    def validate_layout(self) -> None:
        """Raises a ValueError for an unknown layout or query initialisation, or counts that do not fit."""
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {LAYOUTS}, got {self.layout!r}.")
        if self.query_init not in QUERY_INITS:
            raise ValueError(f"query_init must be one of {QUERY_INITS}, got {self.query_init!r}.")
        if self.layout == "1d" and self.query_init == "multi_level" and self.num_latent_tokens.bit_count() != 1:
            raise ValueError(
                f"Multi-level queries need a power of two, got num_latent_tokens={self.num_latent_tokens}."
            )
        if self.layout == "2d" and self.num_redundant_tokens:
            raise ValueError("Redundant tokens belong to the 1-D layout.")
        if len(self.encoder_channel_mult) != len(self.decoder_channel_mult):
            raise ValueError("encoder_channel_mult and decoder_channel_mult must have as many levels.")

    @property
    def grid_size(self) -> int:
        """Rows, and columns, of the convolutional codec's features."""
        return self.image_size // 2 ** (len(self.encoder_channel_mult) - 1)
