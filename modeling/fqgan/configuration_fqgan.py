"""Configuration of FQGAN's tokenizer."""

from huggingface_hub.dataclasses import strict

from ..llamagen.configuration_llamagen import LlamaGenVQConfig


@strict
class FQGANConfig(LlamaGenVQConfig):
    r"""
    Configuration of [`FQGANModel`]: LlamaGen's convolutional trunk (see [`LlamaGenVQConfig`]), and its heads.

    Args:
        num_codebooks (`int`): 2 (visual, semantic) or 3 (visual, mid-level, high-level semantic).
        adapter_hidden_size, adapter_num_layers, adapter_num_heads (`int`): of the transformer in each head.
        feature_sizes (`list[int]`): widths of the teachers' features that the semantic codes predict, one per semantic
            codebook; empty where the checkpoint was trained without.
        feature_num_layers, feature_num_heads (`int`): of the networks that predict them.
        disentangle_weight, feature_weight (`float`): of the disentanglement and the feature term.
    """

    model_type = "vistok_fqgan"

    num_codebooks: int = 2
    adapter_hidden_size: int = 512
    adapter_num_layers: int = 6
    adapter_num_heads: int = 8
    feature_sizes: tuple[int, ...] | list[int] = (1024,)
    feature_num_layers: int = 3
    feature_num_heads: int = 8
    entropy_loss_ratio: float = 0.03
    disentangle_weight: float = 0.1
    feature_weight: float = 0.5

    def validate_codebooks(self) -> None:
        """Raises a ValueError where the numbers of codebooks and features do not fit."""
        if self.num_codebooks not in (2, 3):
            raise ValueError(f"num_codebooks must be 2 or 3, got {self.num_codebooks}.")
        if len(self.feature_sizes) not in (0, self.num_codebooks - 1):
            raise ValueError(f"feature_sizes must be empty or name {self.num_codebooks - 1} widths.")

    @property
    def grid_size(self) -> int:
        """Positions per side."""
        return self.image_size // self.downsample_factor
