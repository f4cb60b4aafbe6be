"""Tensor names of published vision encoders (transformers 4) as the names that transformers 5 has in memory."""

import re

_VIT_LAYER = [
    (r"\.attention\.attention\.(query|key|value)\.", lambda m: f".attention.{m[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
]
TOWER_RENAMES: dict[str, list] = {
    "dinov2": _VIT_LAYER,
    "mae": [
        (r"^(vit\.)?encoder\.layer\.", "layers."),
        (r"^vit\.", ""),
        *_VIT_LAYER,
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
    ],
    "siglip2": [(r"^vision_model\.", "")],
}
# what encoder-only use never reads
TOWER_DROPS: dict[str, dict[str, str]] = {
    "dinov2": {r"embeddings\.mask_token": "mask token of DINOv2's training: no position is masked here"},
    "mae": {r"decoder\..*": "MAE's own decoder"},
    "siglip2": {
        r"(vision_model\.)?head\..*": "the pooling head: patch tokens are read before it",
        r"text_model\..*|logit_(scale|bias)": "the text tower and the loss's parameters",
    },
}


def tower_name(kind: str, name: str) -> str:
    """A published tensor's name in memory."""
    for pattern, replacement in TOWER_RENAMES[kind]:
        name = re.sub(pattern, replacement, name)
    return name


def tower_drops(kind: str, prefix: str = "") -> dict[str, str]:
    """Patterns of unread tensors -> reasons, for names that start with `prefix` (a pattern)."""
    return {f"{prefix}(?:{pattern})": reason for pattern, reason in TOWER_DROPS[kind].items()}
