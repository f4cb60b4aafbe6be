"""The CLIP text tower beside tokenizers and generators that were trained with one: not in their own checkpoints."""

from typing import Any

from .adapter import Part

TOWER = "openai/clip-vit-large-patch14-336"


def clip_text_part(config: dict[str, Any], projection: bool) -> tuple[dict[str, Part], dict[str, str]]:
    """
    The part `text_encoder` and where its tensors come from, where the state dict holds the tower too.

    Args:
        config: of the checkpoint; the tower's own is `fixture_overrides.external_clip_text_config`.
        projection: whether the pooled, projected text is needed.
    """
    tower = config.get("fixture_overrides", {}).get("external_clip_text_config")
    if tower is None:
        return {}, {}
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    model = CLIPTextModelWithProjection if projection else CLIPTextModel
    prefix = "external.clip_text." + ("" if projection else "text_model.")
    return {"text_encoder": Part(model, CLIPTextConfig(**tower))}, {prefix: "text_encoder/"}
