"""Configuration of UniTok's tokenizer."""

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig

PROJECTIONS = ("attention", "linear")
PATCH = 16  # pixels per side of a token: four convolutions of stride 2


@strict
class UniTokConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`UniTokModel`]; the defaults are those of the published checkpoint.

    Args:
        stem_width (`int`), conv_widths (`list[int]`): of the convolutions at full, and of the two stages at lower size.
        encoder_stage_depths (`list[int]`): blocks of the encoder's two stages, fine to coarse.
        decoder_stage_depths (`list[int]`): blocks of the decoder's two stages, coarse to fine.
        hidden_size, num_hidden_layers, num_attention_heads (`int`): of the two ViTs.
        num_codebooks (`int`), codebook_size (`int`): ids of a position, and different ids of each.
        latent_width (`int`): of all codes of a position together, a multiple of `num_codebooks`.
        commitment_cost (`float`): weight of the commitment term.
        projection (`str`): "attention" or "linear", between the ViTs' width and that of the codes.
        causal_projection (`bool`): whether these attend to earlier tokens only (MedITok, and UniTok before April 2025).
        embed_dim (`int`): width of picture and text embeddings, 0 where there are none.
        text_hidden_size, text_num_layers, text_num_heads, text_vocab_size, text_context_length (`int`): of the text
            tower; `text_num_layers=0` where there is none.
        l1_weight, l2_weight, contrastive_weight (`float`): of the terms of `forward`.
    """

    model_type = "vistok_unitok"

    pixel_range: tuple[float, ...] | list[float] | None = (-1.0, 1.0)
    stem_width: int = 160
    conv_widths: tuple[int, ...] | list[int] = (160, 320)
    encoder_stage_depths: tuple[int, ...] | list[int] = (2, 4)
    decoder_stage_depths: tuple[int, ...] | list[int] = (4, 2)
    hidden_size: int = 1024
    num_hidden_layers: int = 31
    num_attention_heads: int = 16
    num_codebooks: int = 8
    codebook_size: int = 4096
    latent_width: int = 64
    commitment_cost: float = 0.25
    projection: str = "attention"
    causal_projection: bool = False
    embed_dim: int = 768
    text_hidden_size: int = 768
    text_num_layers: int = 12
    text_num_heads: int = 12
    text_vocab_size: int = 49408
    text_context_length: int = 77
    l1_weight: float = 0.2
    l2_weight: float = 1.0
    contrastive_weight: float = 1.0

    def validate_shapes(self) -> None:
        """Raises a ValueError where sizes do not fit each other."""
        if self.image_size % PATCH:
            raise ValueError(f"image_size must be a multiple of {PATCH}, got {self.image_size}.")
        if self.latent_width % self.num_codebooks:
            raise ValueError(f"latent_width {self.latent_width} is no multiple of {self.num_codebooks} codebooks.")
        for name in ("conv_widths", "encoder_stage_depths", "decoder_stage_depths"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"{name} must hold two numbers, got {getattr(self, name)}.")
        if self.projection not in PROJECTIONS:
            raise ValueError(f"projection must be one of {PROJECTIONS}, got {self.projection!r}.")
        if self.text_num_layers and not self.embed_dim:
            raise ValueError("A text tower needs embed_dim.")

    @property
    def grid_size(self) -> int:
        """Positions per side."""
        return self.image_size // PATCH

    @property
    def projection_heads(self) -> int:
        """Heads of the attention projections: a head is about as wide as the codes, whatever the ViT's heads."""
        return self.hidden_size // self.latent_width
