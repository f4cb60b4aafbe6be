"""`import hf_vistok.auto`: the one line before transformers' own `AutoModel.from_pretrained` on checkpoints of ours."""

from .auto_classes import AutoImagePrior, AutoImageTokenizer, AutoImageTokenizerProcessor
from .registration import register_all

__all__ = ["AutoImagePrior", "AutoImageTokenizer", "AutoImageTokenizerProcessor"]

register_all()
