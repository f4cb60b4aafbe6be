"""Original checkpoints of ReToK: GigaTok's layout with one more table of positions on each side."""

from dataclasses import replace
from typing import Any

from .adapter import Plan, Preset
from .gigatok import MODEL_CLASSES, GigaTokAdapter, gigatok_config_fields, tokenizer_config, tokenizer_plan

TRAINING_DROPS = {
    r"s1to2decoder\.distill_mlp\..*": "the head that training aligns with DINOv2; pictures do without",
    r"s1to2decoder\.latent_token_positional_embedding_comp": "of redundant tokens, which only training decodes",
}
HEAD_TOKENS = 32  # fixed in the authors' code: so many first tokens have no redundant twin


class ReTokAdapter(GigaTokAdapter):
    """ReToK's tokenizers; their configuration cannot be told from GigaTok's, so that files need `preset=`."""

    system = "retok"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """GigaTok's configuration, where it names the tokens without a twin."""
        model = config.get("model")
        named = "head_tokens" in config.get("fixture_overrides", {})
        return "tokenizer" if named and isinstance(model, dict) and model.get("model_cls") in MODEL_CLASSES else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """GigaTok's plan with our subclass; the priors are GigaTok's."""
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.retok.configuration_retok import ReTokConfig
        from ..modeling.retok.modeling_retok import ReTokModel

        fields = gigatok_config_fields(config)
        head = config.get("fixture_overrides", {}).get("head_tokens", HEAD_TOKENS)
        redundant = fields["num_latent_tokens"] - head
        fields |= {"num_redundant_tokens": redundant, "redundant_decoder": False, "alignment_depth": None}
        plan = tokenizer_plan(ReTokModel, ReTokConfig(**fields))
        return replace(plan, drops={**plan.drops, **TRAINING_DROPS})


ReTokAdapter.presets = {
    "VQ_SS256": Preset("tokenizer", tokenizer_config("small", "small"), filename="VQ_SS256.pt"),
    "VQ_SB256": Preset("tokenizer", tokenizer_config("small", "base"), filename="VQ_SB256_e250.pt"),
}

ADAPTER = ReTokAdapter()
