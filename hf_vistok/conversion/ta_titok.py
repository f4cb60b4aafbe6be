"""Original checkpoints of TA-TiTok: a one-stage TiTok with a few tensors for text."""

from dataclasses import replace
from typing import Any

from .adapter import Adapter, ConversionError, Plan, Preset
from .clip_text import clip_text_part
from .titok import TiTokAdapter, titok_config_fields, titok_plan, tokenizer_config

TEXT_RENAMES = [
    (r"^decoder\.text_guidance_proj\.", "decoder.text_proj."),
    (r"^decoder\.text_guidance_positional_embedding$", "decoder.text_position_embedding"),
]
DROPS = {
    r"quantize\.embed_prob": "running code usage, read in training alone (clustering_vq)",
    r"external\.clip_text\.text_projection\.weight": "the tokenizer reads the tower's states, not its pooled text",
}


class TaTiTokAdapter(Adapter):
    """TA-TiTok with VQ or KL tokens. The text tower is CLIP's own checkpoint."""

    system = "ta_titok"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """TiTok's nested configuration with the shape of the text, and without a generator."""
        model = config.get("model")
        vq = model.get("vq_model") if isinstance(model, dict) else None
        text = isinstance(vq, dict) and "vit_enc_model_size" in vq and "text_embed_dim" in vq
        return "tokenizer" if text and "maskgen" not in model and "generator" not in model else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """TiTok's plan; the tower is a part of its own where the state dict holds it."""
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.ta_titok.configuration_ta_titok import TaTiTokConfig
        from ..modeling.ta_titok.modeling_ta_titok import TaTiTokModel

        vq = {"is_legacy": False, "finetune_decoder": False, **config["model"]["vq_model"]}
        if vq["is_legacy"] or vq["finetune_decoder"]:
            raise ConversionError("TA-TiTok is a one-stage model: is_legacy and finetune_decoder must be False.")
        fields = titok_config_fields({**config, "model": {"vq_model": vq}})
        text = {
            "text_context_length": vq.get("text_context_length", 77),
            "text_embed_dim": vq.get("text_embed_dim", 768),
        }
        plan = titok_plan(TaTiTokModel, TaTiTokConfig(**fields, **text), DROPS)
        tower, foreign = clip_text_part(config, projection=False)
        return replace(plan, parts=plan.parts | tower, renames=[*TEXT_RENAMES, *plan.renames], foreign=foreign)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """As TiTok's."""
        return TiTokAdapter().processor(component, config)


def text_aware_config(encoder: str, tokens: int, quantizer: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's configuration as the authors write it."""
    text = {"text_context_length": 77, "text_embed_dim": 768}
    return tokenizer_config(encoder, "large", tokens, finetune_decoder=False, is_legacy=False, **quantizer, **text)


VQ = {
    "quantize_mode": "vq",
    "codebook_size": 8192,
    "token_size": 64,
    "use_l2_norm": False,
    "commitment_cost": 0.25,
    "clustering_vq": False,
}
KL = {"quantize_mode": "vae", "token_size": 16}

TaTiTokAdapter.presets = {
    name: Preset("tokenizer", text_aware_config(encoder, tokens, quantizer), f"turkeyju/{name}")
    for name, encoder, tokens, quantizer in (
        ("tokenizer_tatitok_bl32_vq", "base", 32, VQ),
        ("tokenizer_tatitok_bl64_vq", "base", 64, VQ),
        ("tokenizer_tatitok_bl128_vq", "base", 128, VQ),
        ("tokenizer_tatitok_bl32_vae", "base", 32, KL),
        ("tokenizer_tatitok_bl64_vae", "base", 64, KL),
        ("tokenizer_tatitok_sl128_vae", "small", 128, KL),
    )
}

ADAPTER = TaTiTokAdapter()
