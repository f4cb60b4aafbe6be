"""Original checkpoints of MedITok: UniTok's tensors without a text tower, and the prior."""

from typing import Any

from .adapter import Adapter, Part, Plan, Preset
from .unitok import DROPS, LARGE, RENAMES, prior_plan, unitok_fields, unitok_surgery


class MedITokAdapter(Adapter):
    """MedITok's tokenizer and prior."""

    system = "meditok"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """UniTok's arguments and `drop_alignment`. A prior's configuration does not tell whose ids it writes."""
        return "tokenizer" if {"num_codebooks", "vocab_width", "drop_alignment"} <= set(config) else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """UniTok's plan; an alignment head, but no text tower."""
        if component == "ar_prior":
            return prior_plan(config)
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.meditok.configuration_meditok import MedITokConfig
        from ..modeling.meditok.modeling_meditok import MedITokModel

        fields = unitok_fields(config)
        if config.get("drop_alignment", False):
            fields["embed_dim"] = 0
        return Plan({"image_tokenizer": Part(MedITokModel, MedITokConfig(**fields))}, RENAMES, DROPS, unitok_surgery)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Resized to a square with Lanczos' filter, [-1, 1]."""
        from ..modeling.meditok.image_processing_meditok import MedITokProcessor

        return MedITokProcessor.for_size(config.get("img_size", 256)) if component == "tokenizer" else None


REPO = "massaki75/meditok"
GPT_B = {
    "dim": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_output_layer": 1,
    "num_codebooks": 8,
    "num_classes": 6,
    "vocab_size": 32768,
    "block_size": 256,
}
MedITokAdapter.presets = {
    "meditok_simple_v1": Preset("tokenizer", {**LARGE, "drop_alignment": False}, REPO, "meditok_simple_v1.pth"),
    "meditok_c2i_gptb": Preset("ar_prior", GPT_B, REPO, "llamagen_meditok/meditok_c2i_gptb.pt", unverified=True),
}

ADAPTER = MedITokAdapter()
