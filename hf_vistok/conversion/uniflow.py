"""Original checkpoints of UniFlow."""

from typing import Any

from .adapter import Adapter, ConversionError, Part, Plan, Preset
from .vision_towers import INTERN_VIT_RENAMES

RENAMES = [
    *((rf"^{pattern}", rf"encoder.{replacement}") for pattern, replacement in INTERN_VIT_RENAMES),
    (r"^chal_proj\.c_fc\.", "bottleneck.fc1."),
    (r"^chal_proj\.c_proj\.", "bottleneck.fc2."),
    (r"^chal_unproj\.c_fc\.", "unproject.fc1."),
    (r"^chal_unproj\.c_proj\.", "unproject.fc2."),
    (r"^global_block_pos_embed$", "global_position_embedding"),
    (r"^global_blocks\.", "global_layers."),
    (r"^decoder_pos_embed$", "position_embedding"),
    (r"^flow_head\.net\.", "flow."),
    (r"^flow\.time_embed\.mlp\.0\.", "flow.time_embed.fc1."),
    (r"^flow\.time_embed\.mlp\.2\.", "flow.time_embed.fc2."),
    (r"^flow\.cond_embed\.", "flow.condition_embed."),
    (r"^flow\.res_blocks\.", "flow.blocks."),
    (r"^flow\.final_layer\.linear\.", "flow.output_proj."),
    (r"^flow\.final_layer\.", "flow."),
    (r"\.in_ln\.", ".norm."),
    (r"^(flow\.blocks\.\d+\.mlp)\.0\.", r"\1.fc1."),
    (r"^(flow\.blocks\.\d+\.mlp)\.2\.", r"\1.fc2."),
    (r"\.adaLN_modulation\.1\.", ".modulation.linear."),
]
DROPS = {r"(.*\.)?[Dd]istill\w*\..*": "heads of the self-distillation: training only"}


def uniflow_fields(config: dict[str, Any]) -> dict[str, Any]:
    """
    Fields for the authors' `config.json`.

    Raises:
        ConversionError: for a decoder or an activation that is not published.
    """
    width = config["hidden_size"]
    if config.get("decoder_type", "mlp") != "mlp" or config.get("hidden_act", "gelu") != "gelu":
        raise ConversionError('Only decoder_type "mlp" and hidden_act "gelu" are published.')
    if config.get("vit_hidden_size", width) != width:
        raise ConversionError("vit_hidden_size must be hidden_size.")
    return {
        "image_size": config["image_size"],
        "patch_size": config["patch_size"],
        "num_channels": config.get("num_channels", 3),
        "hidden_size": width,
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "intermediate_size": config["intermediate_size"],
        "norm_type": config.get("norm_type", "layer_norm"),
        "layer_norm_eps": float(config.get("layer_norm_eps", 1e-6)),
        "qkv_bias": config.get("qkv_bias", True),
        "qk_norm": config.get("qk_normalization", False),
        "layer_scale": float(config.get("initializer_factor", 1.0)),
        "latent_channels": config["latent_ch"] if config.get("use_chal_proj", True) else None,
        "num_global_layers": config["global_blocks_depth"] if config.get("use_global_blocks", True) else 0,
        "num_flow_layers": config["num_decoder_layers"],
        "num_inference_steps": int(config.get("num_sampling_steps", 1)),
        "condition_dropout": 0.1 if config.get("use_cfg", False) else 0.0,
        "dispersive_weight": 0.5 if config.get("use_disp_loss", False) else 0.0,
    }


class UniFlowAdapter(Adapter):
    """The authors' `config.json`, by its `model_type`."""

    system = "uniflow"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """`model_type` "uniflow"."""
        return "tokenizer" if config.get("model_type") == "uniflow" else None

    def _config(self, config: dict[str, Any]) -> Any:
        from ..modeling.uniflow.configuration_uniflow import UniFlowConfig

        return UniFlowConfig(**uniflow_fields(config))

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """A table of names."""
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.uniflow.modeling_uniflow import UniFlowModel

        return Plan({"image_tokenizer": Part(UniFlowModel, self._config(config))}, RENAMES, DROPS)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """ADM's crop, ImageNet's mean and deviation."""
        from ..modeling.image_processing_adm import AdmCropProcessor

        return AdmCropProcessor.for_config(self._config(config)) if component == "tokenizer" else None


UniFlowAdapter.presets = {
    "UniFlow-InternViT300M": Preset(
        "tokenizer",
        {
            "model_type": "uniflow",
            "image_size": 448,
            "patch_size": 14,
            "hidden_size": 1024,
            "vit_hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "norm_type": "layer_norm",
            "qkv_bias": True,
            "qk_normalization": False,
            "use_chal_proj": True,
            "use_global_blocks": True,
            "use_cfg": False,
            "latent_ch": 64,
            "global_blocks_depth": 6,
            "num_decoder_layers": 12,
            "num_sampling_steps": "1",
        },
        "yuezhengrong/UniFlow",
    )
}

ADAPTER = UniFlowAdapter()
