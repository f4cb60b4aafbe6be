"""Configuration of TiTok."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig

QUANTIZERS = ("vq", "kl", "fsq")
PIXEL_HEADS = ("patch", "proxy", "vqgan")


@strict
class TiTokConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`TiTokModel`].

    Args:
        num_latent_tokens (`int`): tokens of one image.
        token_size (`int`): width of a token.
        quantizer (`str`): "vq" (ids), "kl" (continuous, a Gaussian posterior) or "fsq" (ids, ours: no published
            checkpoint has it; it trains without tricks on few pictures).
        codebook_size, use_l2_norm, commitment_cost: of the "vq" quantizer.
        fsq_levels (`list[int]`, *optional*): values of each of the `token_size` channels of the "fsq" quantizer; their
            product is `codebook_size`.
        pixel_head (`str`): what the ViT decoder ends in: "patch" (pixels: one-stage models), "proxy" (logits over the
            codes of a teacher: stage 1) or "vqgan" (the expected teacher code, then a convolutional pixel decoder:
            two-stage models).
        scrambled_latents (`bool`): the two-stage models of the authors read the `(N, width)` latents in memory order
            as `(width, N)` before the last projection, without a transposition; their weights need it.
        encoder_patch_size, encoder_hidden_size, encoder_num_layers, encoder_num_heads: of the ViT encoder.
        decoder_patch_size, decoder_hidden_size, decoder_num_layers, decoder_num_heads: of the ViT decoder.
        proxy_codebook_size, proxy_channels: number and width of the teacher's codes ("proxy" and "vqgan").
        pixel_hidden_channels, pixel_channel_mult, pixel_num_res_blocks, pixel_dropout: of the pixel decoder ("vqgan").
        loss_weights (`dict`): weights of the terms that `forward` returns; those not named weigh 1.
    """

    model_type = "vistok_titok"

    num_latent_tokens: int = 32
    token_size: int = 12
    quantizer: str = "vq"
    codebook_size: int = 4096
    use_l2_norm: bool = True
    commitment_cost: float = 0.25
    fsq_levels: tuple[int, ...] | list[int] | None = None
    pixel_head: str = "vqgan"
    scrambled_latents: bool = False
    encoder_patch_size: int = 16
    encoder_hidden_size: int = 1024
    encoder_num_layers: int = 24
    encoder_num_heads: int = 16
    decoder_patch_size: int = 16
    decoder_hidden_size: int = 1024
    decoder_num_layers: int = 24
    decoder_num_heads: int = 16
    proxy_codebook_size: int = 1024
    proxy_channels: int = 256
    pixel_hidden_channels: int = 128
    pixel_channel_mult: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4)
    pixel_num_res_blocks: int = 2
    pixel_dropout: float = 0.0
    loss_weights: dict[str, Any] | None = None

    def validate_options(self) -> None:
        """Raises a ValueError for an unknown quantizer or pixel head, or FSQ levels that do not fit."""
        if self.quantizer not in QUANTIZERS:
            raise ValueError(f"quantizer must be one of {QUANTIZERS}, got {self.quantizer!r}.")
        if self.pixel_head not in PIXEL_HEADS:
            raise ValueError(f"pixel_head must be one of {PIXEL_HEADS}, got {self.pixel_head!r}.")
        if self.quantizer == "fsq":
            levels = self.fsq_levels or ()
            if len(levels) != self.token_size or math.prod(levels) != self.codebook_size:
                raise ValueError(
                    f"fsq_levels {levels} must be token_size={self.token_size} numbers with the product "
                    f"codebook_size={self.codebook_size}."
                )
