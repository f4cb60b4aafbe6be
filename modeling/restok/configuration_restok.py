"""Configuration of ResTok's tokenizer."""

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig


@strict
class ResTokConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`ResTokModel`].

    Args:
        pixel_hidden_channels, pixel_channel_mult, pixel_num_res_blocks, pixel_z_channels, pixel_dropout: of the
            convolutional encoder and decoder (MaskGIT-VQGAN's).
        encoder_hidden_size, encoder_num_layers, encoder_num_heads: of the transformer encoder.
        decoder_hidden_size, decoder_num_layers, decoder_num_heads: of the transformer decoder.
        num_latent_tokens (`int`): a power of two; levels have 1, 1, 2, 4, ... tokens.
        num_stages (`int`): image blocks at the end of the encoder; each but the first comes of a merge. 1: no merges.
        reduction_ratio (`float`): share of positions that a merge keeps.
        residual_image_tokens (`bool`): a merge subtracts the coarse block from the finer one.
        residual_latent_tokens (`bool`): each level starts from what coarser levels leave over.
        per_level_projection (`bool`): projections into and out of the code space for each level.
        scrambled_latents (`bool`): latents are reshaped and not transposed before the projection, as in all published
            weights.
        codebook_size, token_size (`int`): number and width of codes.
        use_l2_norm (`bool`), commitment_cost (`float`), entropy_loss_ratio (`float`): of the quantizer.
        rope_theta (`float`): base of rotary positions.
        nested_dropout (`bool`): training decodes random prefixes.
        min_tokens (`int`): the shortest of them.
        full_length_share (`float`): share of images that keep all tokens.
        alignment_dim (`int`, *optional*): width of the vision model that training aligns with, None without heads.
        alignment_margin (`float`): cosine above which there is no alignment loss.
    """

    model_type = "vistok_restok"

    pixel_hidden_channels: int = 128
    pixel_channel_mult: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4)
    pixel_num_res_blocks: int = 2
    pixel_z_channels: int = 256
    pixel_dropout: float = 0.0
    encoder_hidden_size: int = 1024
    encoder_num_layers: int = 24
    encoder_num_heads: int = 16
    decoder_hidden_size: int = 1024
    decoder_num_layers: int = 24
    decoder_num_heads: int = 16
    num_latent_tokens: int = 128
    num_stages: int = 4
    reduction_ratio: float = 0.5
    residual_image_tokens: bool = True
    residual_latent_tokens: bool = True
    per_level_projection: bool = True
    scrambled_latents: bool = True
    codebook_size: int = 8192
    token_size: int = 8
    use_l2_norm: bool = True
    commitment_cost: float = 0.25
    entropy_loss_ratio: float = 0.0
    rope_theta: float = 10000.0
    nested_dropout: bool = True
    min_tokens: int = 4
    full_length_share: float = 0.8
    alignment_dim: int | None = None
    alignment_margin: float = 0.75

    def validate_levels(self) -> None:
        """Raises a ValueError unless the number of tokens is a power of two and merges have layers to happen in."""
        if self.num_latent_tokens.bit_count() != 1:
            raise ValueError(f"num_latent_tokens must be a power of two, got {self.num_latent_tokens}.")
        if self.num_stages < 1 or len(set(self.merge_layers)) != self.num_stages - 1 or -1 in self.merge_layers:
            raise ValueError(f"{self.encoder_num_layers} layers are too few for {self.num_stages} stages.")

    @property
    def grid_size(self) -> int:
        """Rows, and columns, of the finest image block."""
        return self.image_size // 2 ** (len(self.pixel_channel_mult) - 1)

    @property
    def level_lengths(self) -> list[int]:
        """Tokens of each level: 1, 1, 2, 4, ..."""
        return [1] + [2**i for i in range(self.num_latent_tokens.bit_length() - 1)]

    @property
    def level_grids(self) -> list[tuple[int, int]]:
        """Rows and columns of each level."""
        return [(1, 1)] + [(2 ** (i // 2), 2 ** ((i + 1) // 2)) for i in range(self.num_latent_tokens.bit_length() - 1)]

    @property
    def merge_layers(self) -> list[int]:
        """Layers of the encoder in which a merge happens."""
        return [int(i / self.num_stages * self.encoder_num_layers) - 1 for i in range(1, self.num_stages)]
