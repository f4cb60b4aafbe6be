"""Original checkpoints of RAE: decoders and statistics beside published encoders, and the generators on top."""

import os
from typing import Any

import torch

from .adapter import Adapter, ConversionError, Part, Plan, Preset, State
from .rae_diffusers import CLASS_NAME, add_tables, diffusers_fields
from .rae_diffusers import DROPS as DIFFUSERS_DROPS
from .rae_diffusers import RENAMES as DIFFUSERS_RENAMES
from .rae_flow import dashed_lightning, is_flow, stage_config, stage_plan
from .vision_towers import tower_drops, tower_name

ENCODERS = {"Dinov2withNorm": "dinov2", "SigLIP2wNorm": "siglip2", "MAEwNorm": "mae"}
LAST_NORMS = {
    "dinov2": r"layernorm",
    "mae": r"(?:vit\.)?layernorm",
    "siglip2": r"(?:vision_model\.)?post_layernorm",
}
DECODERS = {  # width, layers, heads, MLP
    "vitxl": (1152, 28, 16, 4096),
    "vitl": (1024, 24, 16, 4096),
    "vitb": (768, 12, 12, 3072),
}
# published encoders by the names that the authors' files hold; fields that differ from transformers' defaults
PUBLISHED_ENCODERS: dict[str, dict[str, Any]] = {
    "dinov2-with-registers-base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "mlp_ratio": 4,
        "patch_size": 14,
        "image_size": 518,
        "num_register_tokens": 4,
        "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0,
    },
    "siglip2-base-patch16-256": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 16,
        "image_size": 256,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "vit-mae-base": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 16,
        "image_size": 224,
        "layer_norm_eps": 1e-12,
    },
}
_LAYER = r"^(?:decoder\.)?decoder_layers\.(\d+)\."
DECODER_RENAMES = [
    (r"^(?:decoder\.)?decoder_embed\.", "decoder.embed."),
    (r"^(?:decoder\.)?trainable_cls_token$", "decoder.class_token"),
    (r"^(?:decoder\.)?decoder_pos_embed$", "decoder.position_embedding"),
    (r"^(?:decoder\.)?decoder_norm\.", "decoder.norm."),
    (r"^(?:decoder\.)?decoder_pred\.", "decoder.head."),
    (_LAYER + r"layernorm_before\.", r"decoder.layers.\1.norm1."),
    (_LAYER + r"layernorm_after\.", r"decoder.layers.\1.norm2."),
    (_LAYER + r"attention\.attention\.", r"decoder.layers.\1.attn."),
    (_LAYER + r"attention\.output\.dense\.", r"decoder.layers.\1.attn.proj."),
    (_LAYER + r"intermediate\.dense\.", r"decoder.layers.\1.mlp.fc1."),
    (_LAYER + r"output\.dense\.", r"decoder.layers.\1.mlp.fc2."),
    (r"^stats\.", "statistics."),
]


def encoder_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The encoder's part of our configuration."""
    params = config["stage_1"]["params"]
    kind = ENCODERS.get(params["encoder_cls"])
    if kind is None:
        raise ConversionError(f"Unknown encoder_cls {params['encoder_cls']!r}; known: {', '.join(ENCODERS)}.")
    if not params.get("encoder_params", {}).get("normalize", True):
        raise ConversionError("Encoders with the gain of their last norm (normalize: false) are not published.")
    name = str(params["encoder_config_path"]).rstrip("/").rsplit("/", 1)[-1]
    tower = config.get("encoder_config") or PUBLISHED_ENCODERS.get(name)
    if tower is None:
        raise ConversionError(f"Unknown encoder {name!r}: put its configuration under the key encoder_config.")
    fields = {"encoder_type": kind, "encoder_config": tower, "encoder_input_size": params["encoder_input_size"]}
    if kind == "siglip2":
        fields.update(encoder_mean=(0.5, 0.5, 0.5), encoder_std=(0.5, 0.5, 0.5))
    return fields


def decoder_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The decoder's part of our configuration: of a file, or of the size in its folder's name."""
    params, given = config["stage_1"]["params"], config.get("decoder_config")
    fields = {"decoder_patch_size": params.get("decoder_patch_size", 16)}
    if given is None:
        name = str(params["decoder_config_path"]).rstrip("/").rsplit("/", 1)[-1].lower().split("_")[0]
        if name not in DECODERS:
            raise ConversionError(f"Unknown decoder {name!r}; known: {', '.join(DECODERS)}.")
        sizes = DECODERS[name]
    else:
        if given.get("hidden_act", "gelu") != "gelu":
            raise ConversionError(f"The decoder's hidden_act must be gelu, got {given['hidden_act']!r}.")
        keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        sizes = tuple(given[f"decoder_{key}"] for key in keys)
        fields["decoder_layer_norm_eps"] = float(given.get("layer_norm_eps", 1e-12))
        fields["decoder_qkv_bias"] = given.get("qkv_bias", True)
    names = ("hidden_size", "num_layers", "num_heads", "intermediate_size")
    return fields | {f"decoder_{name}": size for name, size in zip(names, sizes, strict=True)}


def picture_side(fields: dict[str, Any]) -> int:
    """Side of the decoded picture."""
    patch = fields["encoder_config"].get("patch_size", 14 if fields["encoder_type"] == "dinov2" else 16)
    return fields["encoder_input_size"] // patch * fields["decoder_patch_size"]


def rae_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the authors' `stage_1` block."""
    params = config["stage_1"]["params"]
    fields = encoder_fields(config) | decoder_fields(config)
    return fields | {
        "image_size": picture_side(fields),
        "has_encoder": not config.get("decoder_only", False),
        "has_statistics": bool(params.get("normalization_stat_path")) and not config.get("decoder_only", False),
        "noise_tau": float(params.get("noise_tau", 0.8)),
    }


def tower_surgery(kind: str, config: dict[str, Any], prefix: str = "encoder.") -> Any:
    """A function that renames the encoder's tensors and joins the decoder's q, k and v."""

    def surgery(state: State) -> State:
        found: State = {}
        for name, tensor in state.items():
            start, last = name.startswith(prefix), name.rsplit(".", 2)
            if start:
                name = prefix + tower_name(kind, name[len(prefix) :])
            elif last[-2:-1] and last[-2] in ("query", "key", "value"):
                if last[-2] == "query":
                    parts = [state[f"{last[0]}.{part}.{last[2]}"] for part in ("query", "key", "value")]
                    found[f"{last[0]}.qkv.{last[2]}"] = torch.cat(parts)
                continue
            found[name] = tensor[0] if name == "decoder.position_embedding" else tensor
        if kind == "dinov2" and any(name.startswith(prefix) for name in found):
            like = found["decoder.embed.weight"]
            size = (1, config["hidden_size"])
            found[f"{prefix}embeddings.mask_token"] = torch.zeros(size, dtype=like.dtype, device=like.device)
        return found

    return surgery


class RaeAdapter(Adapter):
    """RAE's autoencoders (`stage_1`) and generators (`stage_2`)."""

    system = "rae"
    weight_files = ("model.pt", "stage2_model.pt", "diffusion_pytorch_model.safetensors")

    def recognise(self, config: dict[str, Any]) -> str | None:
        """`stage_2`, or `stage_1` with RAE's class alone (descendants name classes of their own); diffusers' class."""
        if config.get("_class_name") == CLASS_NAME:
            return "tokenizer"
        stage = config.get("stage_1")
        own = not isinstance(stage, dict) or stage.get("target", "stage1.RAE") == "stage1.RAE"
        if own and is_flow(config) and not dashed_lightning(config):
            return "flow_generator"
        return "tokenizer" if isinstance(stage, dict) and stage.get("target") == "stage1.RAE" else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """A table of names, and the encoder's own."""
        if component == "flow_generator":
            return stage_plan(config)
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.rae.configuration_rae import RaeConfig
        from ..modeling.rae.modeling_rae import RaeModel

        diffusers = config.get("_class_name") == CLASS_NAME
        fields = diffusers_fields(config) if diffusers else rae_fields(config)
        kind = fields["encoder_type"]
        drops = tower_drops(kind, r"encoder\.")
        drops[rf"encoder\.{LAST_NORMS[kind]}\.(weight|bias)"] = "the last norm has no gain and bias in RAE"
        parts = {"image_tokenizer": Part(RaeModel, RaeConfig(**fields))}
        surgery = tower_surgery(kind, fields["encoder_config"])
        if not diffusers:
            return Plan(parts, DECODER_RENAMES, drops, surgery)
        eps, scale = parts["image_tokenizer"].config.statistics_eps, float(config.get("scaling_factor", 1.0))
        if scale != 1.0 and not fields["has_statistics"]:
            raise ConversionError("A scaling_factor goes with statistics of the latents here.")

        def with_tables(state: State) -> State:
            return add_tables(surgery(state), fields, eps, scale)

        return Plan(parts, [*DIFFUSERS_RENAMES, *DECODER_RENAMES], {**drops, **DIFFUSERS_DROPS}, with_tables)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Shorter side resized (bicubic), centre crop, [0, 1]."""
        from ..modeling.image_processing_utils import ImageTokenizerProcessor

        if component != "tokenizer":
            return None
        if config.get("_class_name") == CLASS_NAME:
            return ImageTokenizerProcessor.for_size(diffusers_fields(config)["image_size"])
        return ImageTokenizerProcessor.for_size(picture_side(encoder_fields(config) | decoder_fields(config)))


def assemble(
    preset: str,
    encoder: str | os.PathLike,
    decoder: str | os.PathLike,
    statistics: str | os.PathLike | None = None,
    **model_kwargs: Any,
) -> Any:
    """
    A whole RAE from the three files that the authors' downloads consist of.

    Args:
        preset: of the decoder, for example "decoder_dinov2_base_ViTXL_n08".
        encoder: Hub id or folder of the encoder ("facebook/dinov2-with-registers-base").
        decoder: the decoder's `model.pt`.
        statistics: `stat.pt`; latents are not normalised without.
        model_kwargs: as `from_pretrained` takes them.
    """
    from ..hub import fetch
    from .build import from_original
    from .loading import read_state_dict

    config = {**ADAPTER.presets[preset].config, "decoder_only": False}
    params = {**config["stage_1"]["params"], "normalization_stat_path": statistics}
    config["stage_1"] = {**config["stage_1"], "params": params}
    weights = fetch(str(encoder), "model.safetensors") or fetch(str(encoder), "pytorch_model.bin")
    if weights is None:
        raise ConversionError(f"{encoder} has neither model.safetensors nor pytorch_model.bin.")
    state = {f"encoder.{name}": tensor for name, tensor in read_state_dict(str(weights)).items()}
    state |= read_state_dict(str(decoder), ADAPTER.wrappers)
    if statistics is not None:
        state |= {f"stats.{name}": tensor for name, tensor in read_state_dict(str(statistics)).items()}
    return from_original("rae", "tokenizer", config, state, **model_kwargs)


def tokenizer_config(encoder: str, path: str, size: int) -> dict[str, Any]:
    """A published autoencoder's configuration in the authors' shape, for the decoder's file alone."""
    params = {
        "encoder_cls": encoder,
        "encoder_config_path": path,
        "encoder_input_size": size,
        "decoder_config_path": "configs/decoder/ViTXL",
        "decoder_patch_size": 16,
        "noise_tau": 0.0,
        "normalization_stat_path": None,
    }
    return {"stage_1": {"target": "stage1.RAE", "params": params}, "decoder_only": True}


REPO = "nyu-visionx/RAE-collections"
DINO = ("Dinov2withNorm", "facebook/dinov2-with-registers-base")
TOKENIZERS = {
    "decoder_dinov2_base_ViTXL_n08": (*DINO, 224, "dinov2/wReg_base/ViTXL_n08"),
    "decoder_dinov2_base_ViTXL_n08_i512": (*DINO, 448, "dinov2/wReg_base/ViTXL_n08_i512"),
    "decoder_mae_base_ViTXL_n08": ("MAEwNorm", "facebook/vit-mae-base", 256, "mae/base_p16/ViTXL_n08"),
    "decoder_siglip2_base_ViTXL_n08": (
        "SigLIP2wNorm",
        "google/siglip2-base-patch16-256",
        256,
        "siglip2/base_p16_i256/ViTXL_n08",
    ),
}
RaeAdapter.presets = {
    name: Preset("tokenizer", tokenizer_config(*row[:3]), REPO, f"decoders/{row[3]}/model.pt")
    for name, row in TOKENIZERS.items()
}
WIDE = "stage2.models.DDT.DiTwDDTHead"
WIDE_SIZES = {"XL": ((1152, 2048), (28, 2), (16, 16)), "S": ((384, 2048), (12, 2), (6, 16))}  # width, depth, heads


def wide_params(size: str, latent: int, channels: int = 768) -> dict[str, Any]:
    """Parameters of a published DiT-DH."""
    width, depth, heads = (list(pair) for pair in WIDE_SIZES[size])
    return {
        "input_size": latent,
        "patch_size": 1,
        "in_channels": channels,
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": 4.0,
        "class_dropout_prob": 0.1,
        "num_classes": 1000,
        "use_qknorm": False,
        "use_swiglu": True,
        "use_rope": True,
        "use_rmsnorm": True,
        "wo_shift": False,
        "use_pos_embed": True,
    }


def wide_config(size: str, latent: int, scale: float | None) -> dict[str, Any]:
    """A published DiT-DH's configuration; `scale` is that of autoguidance by the small one, None without guidance."""
    guidance: dict[str, Any] = {"method": "cfg", "scale": 1.0}
    if scale is not None:
        guidance = {"method": "autoguidance", "scale": scale, "t_min": 0.0, "t_max": 1.0}
    return stage_config(WIDE, wide_params(size, latent), guidance)


GENERATORS = {
    "DiTDH-XL_256": ("XL", 16, 1.42, "ImageNet256/DiTDH-XL"),
    "DiTDH-S_256": ("S", 16, None, "ImageNet256/DiTDH-S_ep14"),
    "DiTDH-XL_512": ("XL", 32, 1.5, "ImageNet512/DiTDH-XL_ep400"),
    "DiTDH-S_512": ("S", 32, None, "ImageNet512/DiTDH-S_ep20"),
}
RaeAdapter.presets |= {
    name: Preset("flow_generator", wide_config(*row[:3]), REPO, f"DiTs/Dinov2/wReg_base/{row[3]}/stage2_model.pt")
    for name, row in GENERATORS.items()
}

ADAPTER = RaeAdapter()
