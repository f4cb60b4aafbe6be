"""The base class of priors: models that write a tokenizer's tokens from a class or a text."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from .configuration_utils import ImagePriorConfig
from .modeling_utils import INTEGER_TYPES, InitWeightsMixin


class PreTrainedImagePrior(InitWeightsMixin, PreTrainedModel):
    """
    A generator of image tokens with one public method, `generate`.

    It has a loop of its own and not the one of `GenerationMixin`, which takes no `torch.Generator`, moves one token a
    step and asks the host at each step. Settings that a checkpoint was published with (steps, guidance, temperature)
    stand in its `generation_config.json`; arguments of `generate` default to None and mean those.
    """

    config: ImagePriorConfig
    base_model_prefix = "prior"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    default_settings: dict[str, Any] = {}

    # These two lines make transformers write and read generation_config.json for a class without GenerationMixin.
    can_generate = classmethod(lambda cls: True)
    adjust_generation_fn = GenerationMixin.adjust_generation_fn

    @property
    def codebook_size(self) -> int:
        """Number of different ids that the prior writes."""
        return self.config.codebook_size

    @property
    def num_codebooks(self) -> int:
        """Ids at one position."""
        return self.config.num_codebooks

    @property
    def num_tokens(self) -> int:
        """Positions of a full sequence."""
        return self.config.num_image_tokens

    def set_published_settings(self, **settings: Any) -> None:
        """Makes `settings` what `generate` uses by default, and what `save_pretrained` writes."""
        self.generation_config = GenerationConfig(do_sample=True, **settings)

    def setting(self, name: str, value: Any = None) -> Any:
        """`value` if given, else the published setting, else the family's default."""
        if value is not None:
            return value
        published = getattr(self.generation_config, name, None)
        return self.default_settings.get(name) if published is None else published

    def check_class_labels(self, class_labels: int | list[int] | Tensor) -> Tensor:
        """
        Class labels as an int64 tensor `(B,)` on the model's device.

        Raises:
            ValueError: for labels that are not integers in [0, num_classes).
        """
        classes, name = self.config.num_classes, type(self).__name__
        if not classes:
            raise ValueError(f"{name} is not conditioned on classes.")
        if isinstance(class_labels, int):
            class_labels = [class_labels]
        labels = class_labels if isinstance(class_labels, Tensor) else torch.tensor(class_labels)
        if labels.ndim != 1 or labels.numel() == 0 or labels.dtype not in INTEGER_TYPES:
            raise ValueError(f"{name}: class_labels must be integers of shape (B,), got {class_labels!r}.")
        if not torch.compiler.is_compiling() and bool(((labels < 0) | (labels >= classes)).any()):
            raise ValueError(f"{name}: class_labels must lie in [0, {classes - 1}], got {labels.tolist()}.")
        return labels.long().to(self.device)
