"""Configuration of the masked priors."""

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImagePriorConfig

ARCHITECTURES = ("bert", "uvit")


@strict
class MaskGitPriorConfig(ImagePriorConfig):
    r"""
    Configuration of [`MaskGitPrior`].

    Args:
        architecture (`str`): "bert" (post-norm, learned positions) or "uvit" (pre-norm with long skips).
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the transformer. "uvit" has
            `num_hidden_layers // 2` blocks on each side of one middle block.
        hidden_dropout, attention_dropout (`float`): in training.
        class_dropout (`float`): share of labels that training replaces by the null class.
        label_smoothing, unmasked_loss_weight (`float`): of the training loss.
    """

    model_type = "vistok_maskgit"

    architecture: str = "bert"
    num_classes: int = 1000
    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 3072
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    class_dropout: float = 0.1
    label_smoothing: float = 0.1
    unmasked_loss_weight: float = 0.1

    def validate_architecture(self) -> None:
        """Raises a ValueError for an unknown architecture."""
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {ARCHITECTURES}, got {self.architecture!r}.")

    @property
    def mask_id(self) -> int:
        """The input id that stands for "open": the first after the codes."""
        return self.codebook_size

    @property
    def input_vocab_size(self) -> int:
        """Rows of the input table: codes, the mask, the classes, the null class."""
        return self.codebook_size + 1 + self.num_classes + 1
