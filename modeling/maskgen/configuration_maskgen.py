"""Configuration of MaskGen over ids."""

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImagePriorConfig


@strict
class MaskGenConfig(ImagePriorConfig):
    r"""
    Configuration of [`MaskGenPrior`].

    Args:
        hidden_size, num_hidden_layers, num_attention_heads: of the MM-DiT trunk.
        text_embed_dim (`int`): width of the text encoder's states, and of its pooled text.
        micro_condition (`bool`): whether the aesthetic score joins the pooled text.
        micro_condition_dim (`int`): width of its sinusoid.
        text_dropout (`float`): share of texts that training replaces by the empty one.
        num_spare_rows (`int`): rows of the input table behind the codes and the mask, which nothing reads.
        tie_lm_head (`bool`): logits are products with the input table's first rows, without a bias.
        label_smoothing, unmasked_loss_weight (`float`): of the training loss.
    """

    model_type = "vistok_maskgen"

    codebook_size: int = 8192
    num_image_tokens: int = 128
    hidden_size: int = 1024
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    text_embed_dim: int = 768
    micro_condition: bool = True
    micro_condition_dim: int = 256
    text_dropout: float = 0.1
    num_spare_rows: int = 1001
    tie_lm_head: bool = True
    label_smoothing: float = 0.1
    unmasked_loss_weight: float = 0.1

    @property
    def mask_id(self) -> int:
        """The input id that stands for "open": the first after the codes."""
        return self.codebook_size
