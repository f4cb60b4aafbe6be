"""Original checkpoints of TokenFlow's tokenizers: pickles without a configuration, or with the authors' arguments."""

from typing import Any

import torch

from .adapter import Adapter, ConversionError, Part, Plan, Preset, State

# what the authors' code has built in for each teacher: picture, patch, width, layers, heads, MLP, features, scales
SIZES: dict[str, dict[str, Any]] = {
    "clipb_224": {
        "image_size": 224,
        "teacher_image_size": 224,
        "teacher_patch": 16,
        "teacher_width": 768,
        "teacher_layers": 12,
        "semantic_decoder_grid": 14,
        "semantic_decoder_out_dim": 512,
        "scales": [1, 2, 4, 6, 8, 10, 12, 14],
    },
    "siglip_384": {
        "image_size": 384,
        "teacher_image_size": 384,
        "teacher_patch": 14,
        "teacher_width": 1152,
        "teacher_layers": 27,
        "teacher_heads": 16,
        "teacher_mlp": 4304,
        "semantic_decoder_grid": 27,
        "semantic_decoder_out_dim": 1152,
        "scales": [*range(1, 11), 12, 14, 17, 22, 27],
    },
}
INTERPOLATED = {"image_size": 256, "scales": [1, 2, 4, 6, 8, 10, 12, 14, 16]}
CODEC = {"ch": 128, "num_res_blocks": 2, "enhanced_ch": 256, "enhanced_num_res_blocks": 4}
CLIP_RENAMES = [
    (r"^encoder_vqkd\.transformer\.resblocks\.", "semantic_encoder.layers."),
    (r"^encoder_vqkd\.conv1\.", "semantic_encoder.patch_embed."),
    (r"^encoder_vqkd\.class_embedding$", "semantic_encoder.class_token"),
    (r"^encoder_vqkd\.positional_embedding$", "semantic_encoder.position_embedding"),
    (r"^encoder_vqkd\.ln_(pre|post)\.", r"semantic_encoder.norm_\1."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
]
SIGLIP_RENAMES = [(r"^encoder_vqkd\.vision_model\.", "semantic_encoder.")]
RENAMES = [
    (r"^scaling_layer\.", "scaling."),
    (r"^encode_task_layer\.", "semantic_head."),
    (r"^decode_task_layer\.", "semantic_decoder.head."),
    (r"^decoder_vqkd\.patch_embed\.proj\.", "semantic_decoder.embed."),
    (r"^decoder_vqkd\.cls_token$", "semantic_decoder.class_token"),
    (r"^decoder_vqkd\.pos_embed$", "semantic_decoder.position_embedding"),
    (r"^decoder_vqkd\.blocks\.", "semantic_decoder.layers."),
    (r"^decoder_vqkd\.fc_norm\.", "semantic_decoder.norm."),
    (r"^quantize\.embedding_vqkd\.", "quantize.semantic_embedding."),
    (r"^quantize\.embedding_vqgan\.", "quantize.pixel_embedding."),
]
USAGE = {r"quantize\.codebook_used": "the last ids of training, kept for a usage figure"}


def hard_coded(config: dict[str, Any]) -> dict[str, Any]:
    """Sizes that the authors' code has built in, and those that `fixture_overrides` puts in their place."""
    teacher = config["teacher"]
    if teacher not in SIZES:
        raise ConversionError(f"Unknown teacher {teacher!r}; known: {', '.join(SIZES)}.")
    sizes = SIZES[teacher] | CODEC
    if config.get("infer_interpolate", False) and teacher == "clipb_224":
        sizes |= INTERPOLATED
    sizes |= config.get("fixture_overrides", {})
    width = sizes["teacher_width"]
    defaults = {"teacher_heads": width // 64, "teacher_mlp": 4 * width, "semantic_decoder_heads": 12}
    return defaults | {"semantic_decoder_depth": 3} | sizes


def tokenflow_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the authors' arguments."""
    sizes = hard_coded(config)
    siglip, prefix = config["teacher"] == "siglip_384", "enhanced_" if config.get("enhanced_decoder", False) else ""
    return {
        "image_size": sizes["image_size"],
        "scales": tuple(sizes["scales"]),
        "hidden_channels": sizes["ch"],
        "num_res_blocks": sizes["num_res_blocks"],
        "decoder_hidden_channels": sizes[f"{prefix}ch"],
        "decoder_num_res_blocks": sizes[f"{prefix}num_res_blocks"],
        "encoder_channel_mult": tuple(config.get("encoder_ch_mult", (1, 1, 2, 2, 4))),
        "decoder_channel_mult": tuple(config.get("decoder_ch_mult", (1, 1, 2, 2, 4))),
        "z_channels": config.get("z_channels", 256),
        "codebook_size": config.get("codebook_size", 32768),
        "codebook_dim": config.get("codebook_embed_dim", 8),
        "codebook_l2_norm": config.get("codebook_l2_norm", True),
        "semantic_dim": config.get("semantic_code_dim", 32),
        "commitment_cost": float(config.get("commit_loss_beta", 0.25)),  # of the training script, not the dataclass
        "entropy_loss_ratio": float(config.get("entropy_loss_ratio", 0.0)),
        "dropout": float(config.get("dropout_p", 0.0)),
        "teacher": "siglip" if siglip else "clip",
        "vision_hidden_size": sizes["teacher_width"],
        "vision_num_layers": sizes["teacher_layers"] - siglip,
        "vision_num_heads": sizes["teacher_heads"],
        "vision_intermediate_size": sizes["teacher_mlp"],
        "vision_patch_size": sizes["teacher_patch"],
        "vision_image_size": sizes["teacher_image_size"],
        "semantic_num_layers": sizes["semantic_decoder_depth"],
        "semantic_num_heads": sizes["semantic_decoder_heads"],
        "semantic_intermediate_size": 4 * sizes["teacher_width"],
        "semantic_grid": sizes["semantic_decoder_grid"],
        "feature_size": sizes["semantic_decoder_out_dim"],
    }


def _surgery(state: State) -> State:
    for name in [name for name in state if name.endswith(".attn.q_bias")]:
        query, value = state.pop(name), state.pop(name.replace("q_bias", "v_bias"))
        state[name.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
    token, table = "semantic_decoder.class_token", "semantic_decoder.position_embedding"
    if token in state and table in state:
        state[token], state[table] = state[token][0, 0], state[table][0]
    return state


class TokenFlowAdapter(Adapter):
    """TokenFlow's tokenizers (a pickle without a configuration: pass `preset=`)."""

    system = "tokenflow"
    missing = {"TokenFlow-t2i_DERIVED_vocab_size_assumed": "the language model is not implemented yet"}
    wrappers = ("ema", "model", "state_dict")

    def recognise(self, config: dict[str, Any]) -> str | None:
        """The arguments of the authors' class."""
        return "tokenizer" if {"teacher", "semantic_code_dim"} <= set(config) else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """A table of names; fused attention layers."""
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.layers.conv_codec_taming import TAMING_RENAMES
        from ..modeling.tokenflow.configuration_tokenflow import TokenFlowConfig
        from ..modeling.tokenflow.modeling_tokenflow import TokenFlowModel

        ours, drops = TokenFlowConfig(**tokenflow_fields(config)), dict(USAGE)
        if ours.teacher == "siglip":
            tower = SIGLIP_RENAMES
            last = rf"encoder\.layers\.{ours.vision_num_layers}\."
            drops[rf"encoder_vqkd\.vision_model\.({last}|post_layernorm\.|head\.).*"] = (
                "features are read before SigLIP's last layer"
            )
        else:
            tower = CLIP_RENAMES
            drops[r"encoder_vqkd\.proj"] = "patch tokens are read before CLIP's projection"
        renames = [*tower, *RENAMES, *TAMING_RENAMES]
        return Plan({"image_tokenizer": Part(TokenFlowModel, ours)}, renames, drops, _surgery)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Shorter side resized (bicubic), centre crop, [-1, 1]."""
        from ..modeling.image_processing_utils import ImageTokenizerProcessor

        if component != "tokenizer":
            return None
        return ImageTokenizerProcessor.for_size(hard_coded(config)["image_size"], (-1.0, 1.0))


def _preset(filename: str, **changes: Any) -> Preset:
    config = {
        "codebook_size": 32768,
        "codebook_embed_dim": 8,
        "semantic_code_dim": 32,
        "encoder_ch_mult": [1, 1, 2, 2, 4],
        "decoder_ch_mult": [1, 1, 2, 2, 4],
        "z_channels": 256,
        "commit_loss_beta": 0.25,
        **changes,
    }
    return Preset("tokenizer", config, "ByteFlow-AI/TokenFlow", filename)


TokenFlowAdapter.presets = {
    "tokenflow_clipb_32k_enhanced": _preset(
        "tokenflow_clipb_32k_enhanced.pt", teacher="clipb_224", enhanced_decoder=True, infer_interpolate=True
    ),
    "tokenflow_siglip_32k": _preset(
        "tokenflow_siglip_32k.pt", teacher="siglip_384", enhanced_decoder=False, infer_interpolate=False
    ),
}

ADAPTER = TokenFlowAdapter()
