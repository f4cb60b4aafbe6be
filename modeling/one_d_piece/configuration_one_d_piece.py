"""Configuration of One-D-Piece."""

from huggingface_hub.dataclasses import strict

from ..titok.configuration_titok import TiTokConfig


@strict
class OneDPieceConfig(TiTokConfig):
    r"""
    Configuration of [`OneDPieceModel`]: that of TiTok, and what tail token drop needs.

    Args:
        tail_token_drop (`bool`): in training, keep a random prefix of the tokens (section 3.2).
        per_image_drop (`bool`): draw the length for each image and not, as the authors do, once for the batch.
    """

    model_type = "vistok_one_d_piece"

    num_latent_tokens: int = 256
    tail_token_drop: bool = True
    per_image_drop: bool = False
