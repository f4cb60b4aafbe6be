"""Configuration of TA-TiTok."""

from huggingface_hub.dataclasses import strict

from ..titok.configuration_titok import TiTokConfig


@strict
class TaTiTokConfig(TiTokConfig):
    r"""
    Configuration of [`TaTiTokModel`]: that of a one-stage TiTok, and the shape of the text that its decoder reads.

    Args:
        text_context_length (`int`): positions of a caption, padding included; always all of them.
        text_embed_dim (`int`): width of the text encoder's states.
    """

    model_type = "vistok_ta_titok"

    pixel_head: str = "patch"
    use_l2_norm: bool = False
    codebook_size: int = 8192
    token_size: int = 64
    text_context_length: int = 77
    text_embed_dim: int = 768

    def validate_one_stage(self) -> None:
        """Raises a ValueError for another pixel head, or the two-stage models' memory order."""
        if self.pixel_head != "patch" or self.scrambled_latents:
            raise ValueError('TA-TiTok is a one-stage model: pixel_head must be "patch", scrambled_latents False.')
