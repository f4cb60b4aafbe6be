"""Configuration of SEED's tokenizer."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig

HEADS = ("mlp", "qformer")


@strict
class SeedConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`SeedModel`].

    Args:
        vision_hidden_size, vision_num_layers, vision_num_heads, vision_mlp_ratio, vision_patch_size: of EVA's ViT-g.
        has_vision_encoder (`bool`): without it the model takes features (`encode_features`).
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the Q-Former.
        cross_attention_every (`int`): Q-Former layers 0, n, 2n, ... look at the picture.
        num_query_tokens (`int`): ids of one picture.
        causal_queries (`bool`): whether a query sees only those before it.
        codebook_size, token_size: of the codebook.
        decode_num_layers, decode_num_heads: of the blocks behind the codebook.
        feature_branch, image_branch (`bool`): whether there are blocks that rebuild the Q-Former's output (training),
            and blocks before the head.
        embeds_from_features (`bool`): the head reads the feature branch and not the codes.
        head (`str`): "mlp" (published) or "qformer" (one query over the tokens).
        image_embed_dim (`int`): width of the image embedding.
        freeze_encoder (`bool`): whether ViT and Q-Former are left alone in training, as in the authors' second stage.
        loss_weights (`dict`): weights of the terms that `forward` returns; the authors' are the defaults.
    """

    model_type = "vistok_seed"

    image_size: int = 224
    pixel_range: tuple[float, ...] | list[float] | None = None
    image_mean: tuple[float, ...] | list[float] | None = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] | list[float] | None = (0.26862954, 0.26130258, 0.27577711)
    vision_hidden_size: int = 1408
    vision_num_layers: int = 39
    vision_num_heads: int = 16
    vision_mlp_ratio: float = 4.3637
    vision_patch_size: int = 14
    vision_layer_norm_eps: float = 1e-6
    has_vision_encoder: bool = True
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12
    cross_attention_every: int = 2
    num_query_tokens: int = 32
    causal_queries: bool = True
    codebook_size: int = 8192
    token_size: int = 32
    decode_num_layers: int = 4
    decode_num_heads: int = 12
    feature_branch: bool = True
    image_branch: bool = True
    embeds_from_features: bool = False
    head: str = "mlp"
    image_embed_dim: int = 1024
    freeze_encoder: bool = True
    loss_weights: dict[str, Any] | None = None

    def validate_head(self) -> None:
        """Raises a ValueError for an unknown head, or one that reads a branch which is not there."""
        if self.head not in HEADS:
            raise ValueError(f"head must be one of {HEADS}, got {self.head!r}.")
        if self.embeds_from_features and not self.feature_branch:
            raise ValueError("embeds_from_features needs feature_branch.")
