"""Original checkpoints of RPiAE, which is built on RAE's code: the autoencoder in one file, LightningDiT in others."""

from typing import Any

from .adapter import Adapter, Part, Plan, Preset
from .rae import DECODER_RENAMES, decoder_fields, encoder_fields, picture_side, tower_surgery
from .rae_flow import dashed_lightning, is_flow, stage_config, stage_plan
from .vision_towers import tower_drops

BRIDGE_LAYERS = 6  # in the authors' code
RENAMES = [
    (r"^encoder\.encoder\.", "encoder."),
    (r"^vb_feature_encoder\.", "bridge_encoder."),
    (r"^vb_feature_decoder\.in_proj\.", "bridge_decoder.proj_in."),
    (r"^vb_feature_decoder\.out_proj\.", "bridge_decoder.proj_out."),
    (r"^vb_feature_decoder\.net\.", "bridge_decoder.layers."),
    (r"^(bridge_.*)\.(?:self_)?attn\.in_proj_", r"\1.attn.qkv."),
    (r"^(bridge_.*)\.(?:self_)?attn\.out_proj\.", r"\1.attn.proj."),
    (r"^(bridge_.*)\.(?:linear1|proj2\.0)\.", r"\1.mlp.fc1."),
    (r"^(bridge_.*)\.(?:linear2|proj2\.3)\.", r"\1.mlp.fc2."),
    *DECODER_RENAMES,
]


def is_tokenizer(config: dict[str, Any]) -> bool:
    """Whether `stage_1` is RPiAE's."""
    stage = config.get("stage_1")
    return isinstance(stage, dict) and str(stage.get("target", "")).rsplit(".", 1)[-1].startswith("RPiAE")


def rpiae_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the authors' `stage_1` block."""
    params = config["stage_1"]["params"]
    fields = encoder_fields(config) | decoder_fields(config)
    stage = params.get("training_stage") or "stage1"
    if stage == "stage2":
        names = {"vb_feat_loss_weight": "feature_weight", "vb_kl_weight": "kl_weight"}
        names["vb_rec_weight"] = "reconstruction_weight"
        fields |= {ours: float(params[theirs]) for theirs, ours in names.items() if theirs in params}
    return fields | {
        "image_size": picture_side(fields),
        "has_statistics": bool(params.get("normalization_stat_path")),
        "noise_tau": float(params.get("noise_tau", 0.0)),
        "bridge_dim": params.get("vb_latent_dim", 64) if params.get("use_vb", False) else None,
        "bridge_num_layers": config.get("fixture_overrides", {}).get("vb_n_layers", BRIDGE_LAYERS),
        "training_stage": stage,
    }


class RpiaeAdapter(Adapter):
    """RPiAE's autoencoders (`stage_1`) and generators (`stage_2`)."""

    system = "rpiae"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """`stage_1` with RPiAE's class; LightningDiT with the keys that its sampler reads."""
        if is_flow(config) and (is_tokenizer(config) or ("stage_1" not in config and dashed_lightning(config))):
            return "flow_generator"
        return "tokenizer" if is_tokenizer(config) else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """A table of names, and the encoder's own."""
        if component == "flow_generator":
            return stage_plan(config, dashed=True)
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.rpiae.configuration_rpiae import RpiaeConfig
        from ..modeling.rpiae.modeling_rpiae import RpiaeModel

        fields = rpiae_fields(config)
        kind = fields["encoder_type"]
        drops = tower_drops(kind, r"encoder\.encoder\.")
        drops[r"teacher_encoder\..*"] = "the pivot of stage 1: a copy of the published encoder"
        surgery = tower_surgery(kind, fields["encoder_config"])
        return Plan({"image_tokenizer": Part(RpiaeModel, RpiaeConfig(**fields))}, RENAMES, drops, surgery)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Shorter side resized (bicubic), centre crop, [0, 1]."""
        from ..modeling.image_processing_utils import ImageTokenizerProcessor

        if component != "tokenizer":
            return None
        return ImageTokenizerProcessor.for_size(picture_side(encoder_fields(config) | decoder_fields(config)))


TOKENIZER = {
    "stage_1": {
        "target": "stage1.RPiAE_VB",
        "params": {
            "encoder_cls": "Dinov2withNorm",
            "encoder_config_path": "facebook/dinov2-with-registers-base",
            "encoder_input_size": 224,
            "encoder_params": {"dinov2_path": "facebook/dinov2-with-registers-base", "normalize": True},
            "decoder_config_path": "configs/decoder/ViTXL",
            "noise_tau": 0,
            "use_vb": True,
            "vb_latent_dim": 64,
            "training_stage": "stage3",
        },
    }
}
LIGHTNING = {
    "input_size": 16,
    "patch_size": 1,
    "in_channels": 64,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "class_dropout_prob": 0.1,
    "num_classes": 1000,
    "use_qknorm": True,
    "use_swiglu": True,
    "use_rope": True,
    "use_rmsnorm": True,
    "wo_shift": False,
    "use_gembed": True,
}
TARGET, REPO = "stage2.models.lightningDiT.LightningDiT", "qihoo360/RPiAE"
GUIDED = stage_config(
    TARGET, LIGHTNING, {"method": "autoguidance", "scale": 2.05, "t-min": 0, "t-max": 0}, num_steps=250
)
PLAIN = stage_config(TARGET, LIGHTNING, {"method": "cfg", "scale": 1.0, "t-min": 0, "t-max": 0})
RpiaeAdapter.presets = {
    "rpiae_stage3_1_c64_ema": Preset("tokenizer", TOKENIZER, REPO, "rpiae_stage3_1_c64_ema.pt"),
    "LightningDiT_ep-0000800": Preset("flow_generator", GUIDED, REPO, "LightningDiT/ep-0000800.pt"),
    "LightningDiT_ep-0000020": Preset("flow_generator", PLAIN, REPO, "LightningDiT/ep-0000020.pt"),
}

ADAPTER = RpiaeAdapter()
