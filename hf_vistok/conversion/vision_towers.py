"""Tensor names of published vision encoders (transformers 4) as the names that transformers 5 has in memory."""

import importlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .adapter import ConversionError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_VIT_LAYER = [
    (r"\.attention\.attention\.(query|key|value)\.", lambda m: f".attention.{m[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
]
TOWER_RENAMES: dict[str, list] = {
    "dinov2": [(r"^dinov2_with_registers\.", ""), *_VIT_LAYER],
    "mae": [
        (r"^(vit\.)?encoder\.layer\.", "layers."),
        (r"^vit\.", ""),
        *_VIT_LAYER,
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
    ],
    "siglip2": [(r"^vision_model\.", "")],
    "clip": [(r"^vision_model\.", "")],
    "dinov2_plain": [
        (r"^dinov2\.", ""),
        *_VIT_LAYER,
    ],
}
# OpenGVLab's InternViT and what is built on it: names relative to the start, for `layers/intern_vit.py`
INTERN_VIT_RENAMES: list[tuple[str, str]] = [
    (r"embeddings\.class_embedding$", "class_token"),
    (r"embeddings\.position_embedding$", "position_embedding"),
    (r"embeddings\.patch_embedding\.", "patch_embed."),
    (r"encoder\.layers\.", "layers."),
]
# what encoder-only use never reads
TOWER_DROPS: dict[str, dict[str, str]] = {
    "dinov2": {r"embeddings\.mask_token": "mask token of DINOv2's training: no position is masked here"},
    "mae": {r"decoder\..*": "MAE's own decoder"},
    "siglip2": {
        r"(vision_model\.)?head\..*": "the pooling head: patch tokens are read before it",
        r"text_model\..*|logit_(scale|bias)": "the text tower and the loss's parameters",
    },
    "clip": {
        r"text_model\..*|(text|visual)_projection\..*|logit_scale": "the text tower, the joint space, the loss's scale",
        r"(vision_model\.)?embeddings\.position_ids": "numbers from 0, made again",
    },
    "dinov2_plain": {},
}
# what a whole encoder has beside the above: classes of transformers, and tensors of other heads
_CLASSES = {
    "dinov2": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
    "dinov2_plain": ("Dinov2Config", "Dinov2Model"),
    "mae": ("ViTMAEConfig", "ViTMAEModel"),
    "siglip2": ("SiglipVisionConfig", "SiglipVisionModel"),
    "clip": ("CLIPVisionConfig", "CLIPVisionModel"),
}
_OTHER_HEADS = {
    "dinov2": r"classifier\..*",
    "dinov2_plain": r"classifier\..*",
    "mae": r"decoder\..*|classifier\..*",
    "siglip2": r"text_model\..*|logit_(scale|bias)",
    "clip": r"text_model\..*|(text|visual)_projection\..*|logit_scale|(vision_model\.)?embeddings\.position_ids",
}


def tower_name(kind: str, name: str) -> str:
    """A published tensor's name in memory."""
    for pattern, replacement in TOWER_RENAMES[kind]:
        name = re.sub(pattern, replacement, name)
    return name


def tower_drops(kind: str, prefix: str = "") -> dict[str, str]:
    """Patterns of unread tensors -> reasons, for names that start with `prefix` (a pattern)."""
    return {f"{prefix}(?:{pattern})": reason for pattern, reason in TOWER_DROPS[kind].items()}


def encoder_state(kind: str, state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """
    Tensors of a published encoder under the names that transformers has in memory; those that are so named already
    stay, text towers and heads of other tasks are left out.

    Args:
        kind: "dinov2" (with registers), "dinov2_plain", "mae", "siglip2" (and SigLIP) or "clip". InternViT has a class
            of its own: see `INTERN_VIT_RENAMES`.
        state: as in the published file.

    Raises:
        ConversionError: for an unknown kind.
    """
    if kind not in _CLASSES:
        raise ConversionError(f"Unknown encoder {kind!r}; known: {', '.join(_CLASSES)}.")
    return {
        tower_name(kind, name): value for name, value in state.items() if not re.fullmatch(_OTHER_HEADS[kind], name)
    }


def published_encoder(
    kind: str, config: dict[str, Any], state: "Mapping[str, Tensor]", **options: Any
) -> "PreTrainedModel":
    """
    A whole published encoder in eval mode, its weights bit for bit those of the file.

    Args:
        kind, state: see [`encoder_state`].
        config: contents of its `config.json` (of a pair of towers the `vision_config`).
        options: fields of the configuration to change.

    Raises:
        ConversionError: where a tensor is missing or left over.
    """
    found = encoder_state(kind, state)
    library = importlib.import_module("transformers")
    config_class, model_class = (getattr(library, name) for name in _CLASSES[kind])
    fields = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
    model = model_class(config_class(**{**fields, **options}))
    wanted = set(model.state_dict())
    problems = [
        f"{title}: {', '.join(sorted(names)[:8])}"
        for title, names in (("missing", wanted - set(found)), ("left over", set(found) - wanted))
        if names
    ]
    if problems:
        raise ConversionError(f"The weights do not fit {model_class.__name__}; {'; '.join(problems)}.")
    model.load_state_dict(found)
    return model.eval()
