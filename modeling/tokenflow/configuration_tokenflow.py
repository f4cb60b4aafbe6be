"""Configuration of TokenFlow's tokenizer."""

from itertools import accumulate

from huggingface_hub.dataclasses import strict

from ..llamagen.configuration_llamagen import LlamaGenVQConfig

TEACHERS = ("clip", "siglip")


@strict
class TokenFlowConfig(LlamaGenVQConfig):
    r"""
    Configuration of [`TokenFlowModel`]: LlamaGen's convolutional encoder and quantizer options (see
    [`LlamaGenVQConfig`]; `codebook_dim` is the width of pixel codes, `hidden_channels` and `num_res_blocks` are the
    encoder's), and what TokenFlow adds.

    Args:
        scales (`list[int]`): side of each map of ids, coarse to fine; the last is the grid.
        semantic_dim (`int`): width of semantic codes.
        scale_drop (`float`): chance in training that one random scale, not the first, is left out.
        decoder_hidden_channels, decoder_num_res_blocks (`int`): of the pixel decoder (256 and 4 where "enhanced").
        teacher (`str`): "clip" or "siglip", the architecture of the semantic encoder.
        vision_hidden_size, vision_num_layers, vision_num_heads, vision_intermediate_size, vision_patch_size: of the
            semantic encoder; SigLIP's features are read before its last layer, which is not counted.
        vision_image_size (`int`): side of the pictures whose positions the semantic encoder stores.
        semantic_num_layers, semantic_num_heads, semantic_intermediate_size (`int`): of the semantic decoder.
        semantic_grid (`int`): side of the grid whose positions it stores.
        feature_size (`int`): width of the teacher's features, which it predicts.
        feature_weight (`float`): of their loss.
        train_pixel_decoder_only (`bool`): nothing but the pixel decoder learns, as in the authors' second stage.
    """

    model_type = "vistok_tokenflow"

    image_size: int = 256
    codebook_size: int = 32768
    scales: tuple[int, ...] | list[int] = (1, 2, 4, 6, 8, 10, 12, 14, 16)
    semantic_dim: int = 32
    scale_drop: float = 0.1
    decoder_hidden_channels: int = 128
    decoder_num_res_blocks: int = 2
    teacher: str = "clip"
    vision_hidden_size: int = 768
    vision_num_layers: int = 12
    vision_num_heads: int = 12
    vision_intermediate_size: int = 3072
    vision_patch_size: int = 16
    vision_image_size: int = 224
    semantic_num_layers: int = 3
    semantic_num_heads: int = 12
    semantic_intermediate_size: int = 3072
    semantic_grid: int = 14
    feature_size: int = 512
    feature_weight: float = 1.0
    train_pixel_decoder_only: bool = False

    def validate_scales(self) -> None:
        """Raises a ValueError unless the scales grow and end at the semantic encoder's grid."""
        if list(self.scales) != sorted(set(self.scales)) or self.scales[0] < 1:
            raise ValueError(f"scales must grow from 1 or more, got {list(self.scales)}.")
        if self.scales[-1] != self.grid_size:
            raise ValueError(
                f"A picture of {self.image_size} pixels has {self.grid_size} patches along a side; the last of scales "
                f"must be that, got {list(self.scales)}."
            )

    def validate_teacher(self) -> None:
        """Raises a ValueError for an unknown teacher, or for SigLIP at another size than its own."""
        if self.teacher not in TEACHERS:
            raise ValueError(f"teacher must be one of {', '.join(TEACHERS)}, got {self.teacher!r}.")
        if self.teacher == "siglip" and self.vision_image_size != self.image_size:
            raise ValueError(f"SigLIP sees the picture itself: vision_image_size must be {self.image_size}.")

    @property
    def grid_size(self) -> int:
        """Positions per side of the finest map."""
        return self.image_size // self.vision_patch_size

    @property
    def pixel_size(self) -> int:
        """Side of the picture that the convolutional encoder and decoder work at."""
        return self.grid_size * self.downsample_factor

    @property
    def scale_ends(self) -> list[int]:
        """Number of tokens up to the end of each scale."""
        return list(accumulate(scale * scale for scale in self.scales))
