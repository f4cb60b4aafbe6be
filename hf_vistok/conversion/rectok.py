"""Original checkpoints of RecTok: training pickles whose architecture stands in the authors' code."""

import math
import re
from typing import Any

from .adapter import Adapter, ConversionError, Part, Plan, Preset, State
from .latent_flow import dialect, flow_plan, label_fields, trunk_fields, with_table

SIZES = {  # width, layers, heads
    "tiny": (192, 3, 4),
    "small": (512, 8, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "xl": (1152, 28, 16),
    "huge": (1280, 32, 16),
}
LETTERS = {"T": "tiny", "S": "small", "B": "base", "L": "large", "XL": "xl", "H": "huge"}
TEACHER_DIM = 768
GENERATORS = {"xl": ([1152, 2048], [28, 2], [16, 16]), "s": ([384, 2048], [12, 2], [6, 16])}
BASE_SIZE = 4096
AUTOGUIDANCE_SCALE = 1.29
RENAMES = [
    (r"^sem_decoders\.\w+\.", "semantic_decoder."),
    (r"\.positional_embedding$", ".position_embedding"),
    (r"\.sem_cls_token_embedding$", ".class_token"),
    (r"\.mask_embedding$", ".mask_token"),
    (r"\.(decoder_embed|token_embedding)\.", ".embed."),
    (r"\.patch_embed\.0\.", ".patch_embed."),
    (r"\.(latent_head|ffn\.1)\.", ".head."),
    (r"\.ln_pre\.", ".norm_in."),
    (r"\.ln_post\.", ".norm_out."),
    (r"\.transformer\.", ".layers."),
]
DROPS = {r"sem_foundation_models\..*": "the frozen teacher of training"}


def table_sizes(config: dict[str, Any], name: str) -> tuple[int, int, int]:
    """Width, layers and heads of a named size."""
    given = config.get("fixture_overrides", {}).get("size_dict", {}).get(name)
    if given is not None:
        return given["width"], given["layers"], given["heads"]
    if name not in SIZES:
        raise ConversionError(f"Unknown size {name!r}; known: {', '.join(SIZES)}.")
    return SIZES[name]


def model_sizes(name: str) -> tuple[str, str]:
    """Sizes of encoder and decoder of "rectok_BB"."""
    letters = "XL|[TSBLH]"
    found = re.fullmatch(rf"rectok_({letters})({letters})", name)
    if not found:
        raise ConversionError(f"Unknown model {name!r}: expected rectok_ and two sizes of {', '.join(LETTERS)}.")
    return LETTERS[found[1]], LETTERS[found[2]]


def teacher_of(config: dict[str, Any]) -> int | None:
    """Width of the teacher's features, None without a semantic decoder."""
    teacher, kind = config.get("foundation_model_type") or "", config.get("sem_dec_type", "transformer")
    if not teacher or teacher == "none":
        return None
    if "," in teacher or kind != "transformer":
        raise ConversionError(f"One teacher and a transformer are published, got {teacher!r} and {kind!r}.")
    return config.get("fixture_overrides", {}).get("sem_embed_dim", TEACHER_DIM)


def tokenizer_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the authors' arguments."""
    if config.get("diff_cls_token") and config.get("cls_token_type", "none") == "learnable":
        raise ConversionError("diff_cls_token: latents with a class token of their own are not published.")
    if config.get("encoder_type", "vit") == "dinov3":
        raise ConversionError("encoder_type dinov3: no weights are published.")
    names = dict(zip(("encoder", "decoder"), model_sizes(config["model"]), strict=True))
    names["semantic"] = config.get("vit_sem_model_size", "tiny")
    sizes = {}
    for part, name in names.items():
        width, layers, heads = table_sizes(config, name)
        sizes |= {f"{part}_hidden_size": width, f"{part}_num_layers": layers, f"{part}_num_heads": heads}
    return sizes | {
        "image_size": config["img_size"],
        "patch_size": config["patch_size"],
        "latent_dim": config["token_channels"],
        "semantic_dim": teacher_of(config),
        "qk_norm": config.get("use_qknorm", False),
        "kl": not config.get("disable_kl", False),
        "class_token": config.get("cls_token_type", "none"),
        "latents_scale": float(config.get("scale_factor", 1.0)),
        "flow_noise": float(config.get("gamma", 0.0)),
        "noise_schedule": config.get("noise_schedule", "shift"),
        "semantic_target": config.get("sem_target", "rec+align"),
        "mask_ratio_min": float(config.get("mask_ratio_min", -0.1)),
        "mask_ratio_max": float(config.get("mask_ratio", 0.0)),
        "train_encoder": not config.get("freeze_encoder", False),
    }


def surgery(state: State) -> State:
    """Tables without their batch axis; the 1 x 1 convolution as a linear layer."""
    found: State = {}
    for name, tensor in state.items():
        if name.endswith(".position_embedding"):
            tensor = tensor[0]
        elif name == "decoder.head.weight":
            tensor = tensor[:, :, 0, 0]
        found[name] = tensor
    return found


def network_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The network's part of a generator's configuration."""
    if config.get("force_one_d_seq"):
        raise ConversionError("force_one_d_seq: generators of sequences are not published.")
    params = {"use_swiglu": True, "use_rope": True, "use_rmsnorm": True, **config}
    if "hidden_size" not in params:
        size = str(params["model"]).rsplit("_", 1)[-1]
        if size not in GENERATORS:
            raise ConversionError(f"Unknown model {params['model']!r}; known sizes: {', '.join(GENERATORS)}.")
        params |= dict(zip(("hidden_size", "depth", "num_heads"), GENERATORS[size], strict=True))
    return {
        "sample_size": config["img_size"] // config["tokenizer_patch_size"],
        "in_channels": config["token_channels"],
        **dialect(params),
        **trunk_fields(params),
        **label_fields(config.get("label_dropout_prob", 0.1)),
        "time_embedding": "fourier",
        "position_embedding": config.get("use_pos_embed", True),
        "noise_time": 0,
        "grid": "rectok",
        "latent_norm": "channel",
        "latents_scale": float(config.get("scale_factor", 1.0)),
        "guidance": "cfg",
        "guidance_scale": float(config.get("cfg", 1.0)),
        "sampler": str(config.get("sampling_method", "euler")).lower(),
        "num_inference_steps": config.get("num_sampling_steps", 50),
    }


def generator_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the authors' arguments."""
    fields = network_fields(config)
    fields["time_shift"] = math.sqrt(fields["sample_size"] ** 2 * fields["in_channels"] / BASE_SIZE)
    if config.get("auto_guidance") is not None:
        scale = float(config.get("auto_guidance_scale", AUTOGUIDANCE_SCALE))
        fields |= {"guidance": "autoguidance", "guidance_scale": scale}
    return fields


class RecTokAdapter(Adapter):
    """RecTok's tokenizers and generators."""

    system = "rectok"
    wrappers = ("model_ema", "model")

    def recognise(self, config: dict[str, Any]) -> str | None:
        """The name of the model in the authors' code."""
        name = config.get("model")
        if not isinstance(name, str):
            return None
        if name.startswith("rectok_"):
            return "tokenizer"
        return "flow_generator" if name.startswith("DiTDDT_") else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """Tables of names."""
        if component == "tokenizer":
            from ..modeling.rectok.configuration_rectok import RecTokConfig
            from ..modeling.rectok.modeling_rectok import RecTokModel

            part = Part(RecTokModel, RecTokConfig(**tokenizer_fields(config)))
            return Plan({"image_tokenizer": part}, RENAMES, DROPS, surgery)
        if component != "flow_generator":
            return super().plan(component, config)
        fields, weak = generator_fields(config), config.get("auto_guidance")
        if weak is None:
            return with_table(flow_plan(fields))
        return with_table(flow_plan(fields, {**network_fields(weak), "time_shift": fields["time_shift"]}))

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Resized and cropped as ADM does, [-1, 1]."""
        from ..modeling.image_processing_utils import ImageTokenizerProcessor

        if component != "tokenizer":
            return None
        return ImageTokenizerProcessor.for_size(config["img_size"], (-1.0, 1.0))


def tokenizer_config(**options: Any) -> dict[str, Any]:
    """Arguments of a published tokenizer."""
    return {
        "model": "rectok_BB",
        "img_size": 256,
        "patch_size": 16,
        "token_channels": 128,
        "vit_sem_model_size": "tiny",
        "cls_token_type": "none",
        "disable_kl": False,
        "use_qknorm": False,
        "scale_factor": 1.0,
        **options,
    }


def generator_config(size: str, **options: Any) -> dict[str, Any]:
    """Arguments of a published generator; 150 points gave the reported numbers."""
    return {
        "model": f"DiTDDT_{size}",
        "img_size": 256,
        "patch_size": [1, 1],
        "tokenizer_patch_size": 16,
        "token_channels": 128,
        "label_dropout_prob": 0.1,
        "num_classes": 1000,
        "use_qknorm": False,
        "wo_shift": False,
        "sampling_method": "euler",
        "num_sampling_steps": 150,
        **options,
    }


REPO = "QingyuShi/RecTok"
FLOW = {"gamma": 1.0, "noise_schedule": "shift", "mask_ratio": 0.4, "mask_ratio_min": -0.1, "sem_target": "rec+align"}
RecTokAdapter.presets = {
    "RecTok": Preset("tokenizer", tokenizer_config(foundation_model_type="dinov3", **FLOW), REPO, "RecTok.pth"),
    "RecTok_decft": Preset("tokenizer", tokenizer_config(freeze_encoder=True), REPO, "RecTok_decft.pth"),
    "ditdhxl": Preset("flow_generator", generator_config("xl"), REPO, "ditdhxl_epoch_0599.pth"),
    "ditdhxl_80": Preset("flow_generator", generator_config("xl"), REPO, "ditdhxl_epoch_0079.pth"),
    "ditdhs": Preset("flow_generator", generator_config("s"), REPO, "ditdhs_epoch_0029.pth"),
}

ADAPTER = RecTokAdapter()
