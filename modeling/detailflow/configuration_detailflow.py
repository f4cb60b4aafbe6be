"""Configuration of DetailFlow's tokenizer."""

import math

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig


@strict
class DetailFlowConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`DetailFlowModel`].

    Args:
        encoder_patch_size, decoder_patch_size (`int`): sides of patches.
        encoder_positions, decoder_positions (`int`): entries of the tables of positions, square grids that are resized
            to the picture's.
        encoder_hidden_size, encoder_intermediate_size, encoder_num_layers, encoder_num_heads: of the encoder (the first
            layers of a SigLIP2).
        decoder_hidden_size, decoder_intermediate_size, decoder_num_layers, decoder_num_heads: of the decoder.
        layer_norm_eps (`float`): of all LayerNorms.
        num_latent_tokens (`int`): tokens N of a picture of `image_size`.
        group_size (`int`): tokens that are encoded, and written, in parallel.
        num_causal_tokens (`int`): first tokens that come one by one; a multiple of `group_size`.
        causal_encoder (`bool`): whether groups see earlier groups only.
        resolution_power (`float`): exponent of the number of tokens -> side of the picture.
        codebook_size, codebook_dim (`int`): number and width of codes.
        codebook_l2_norm (`bool`), commitment_cost (`float`), entropy_loss_ratio (`float`): of the quantizer.
        refine_candidates (`int`): self-correction replaces an id by one of so many nearest codes.
        global_hidden_size (`int`): of the head that aligns the first token with a vision model.
        global_dim (`int`): width of that model's features.
        global_weight (`float`): weight of that term.
        coarse_share (`float`): share of training batches that decode fewer tokens into a smaller picture.
    """

    model_type = "vistok_detailflow"

    pixel_range: tuple[float, ...] | list[float] | None = (-1.0, 1.0)
    encoder_patch_size: int = 16
    decoder_patch_size: int = 16
    encoder_positions: int = 256
    decoder_positions: int = 256
    encoder_hidden_size: int = 1152
    encoder_intermediate_size: int = 4304
    encoder_num_layers: int = 12
    encoder_num_heads: int = 16
    decoder_hidden_size: int = 768
    decoder_intermediate_size: int = 3072
    decoder_num_layers: int = 12
    decoder_num_heads: int = 12
    layer_norm_eps: float = 1e-6
    num_latent_tokens: int = 128
    group_size: int = 8
    num_causal_tokens: int = 8
    causal_encoder: bool = True
    resolution_power: float = 1.5
    codebook_size: int = 8192
    codebook_dim: int = 8
    codebook_l2_norm: bool = True
    commitment_cost: float = 0.25
    entropy_loss_ratio: float = 0.0
    refine_candidates: int = 50
    global_hidden_size: int = 1024
    global_dim: int = 1152
    global_weight: float = 1.0
    coarse_share: float = 0.2

    def validate_groups(self) -> None:
        """Raises a ValueError unless tokens divide into groups, and tables of positions are square."""
        group, causal = self.group_size, self.num_causal_tokens
        if group < 1 or causal % group or self.num_latent_tokens % group or not 0 < causal <= self.num_latent_tokens:
            raise ValueError(
                f"num_causal_tokens={causal} and num_latent_tokens={self.num_latent_tokens} must be multiples of "
                f"group_size={group}."
            )
        for positions in (self.encoder_positions, self.decoder_positions):
            if math.isqrt(positions) ** 2 != positions:
                raise ValueError(f"Tables of positions must be square, got {positions} entries.")

    def blocks(self, num_tokens: int) -> list[int]:
        """Lengths of the first blocks of tokens: single ones, then groups."""
        causal = min(num_tokens, self.num_causal_tokens)
        return [1] * causal + [self.group_size] * ((num_tokens - causal) // self.group_size)

    @property
    def valid_num_tokens(self) -> list[int]:
        """Numbers of tokens that are a picture."""
        causal, group = self.num_causal_tokens, self.group_size
        return [*range(1, causal + 1), *range(causal + group, self.num_latent_tokens + 1, group)]

    def target_size(self, num_tokens: int) -> int:
        """Side in pixels of the detail that the first `num_tokens` tokens hold (section 3.2)."""
        size, count, power = self.image_size, self.num_latent_tokens, self.resolution_power
        if count == 1:
            return size
        side = int(size - (size - 1) / (count - 1) ** power * (count - num_tokens) ** power)
        return min(max(side, 1), size)

    def picture_size(self, num_tokens: int) -> int:
        """Side of the picture that `num_tokens` tokens are decoded to: `target_size`, up to whole patches."""
        patch = self.decoder_patch_size
        return min(-(-self.target_size(num_tokens) // patch) * patch, self.image_size)

    def tokens_for_size(self, size: int) -> int:
        """Number of tokens whose picture is nearest to `size`, the largest where several are."""
        return min(self.valid_num_tokens, key=lambda count: (abs(self.picture_size(count) - size), -count))
