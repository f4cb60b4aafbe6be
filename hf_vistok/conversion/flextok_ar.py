"""Original checkpoints of FlexAR and GridAR: `config.yaml` (hydra, mapped by table) and `model.safetensors`."""

from typing import Any

from .adapter import Adapter, ConversionError, Part, Plan, Preset

PREFIX = r"^models\.ar_image_model\."
RENAMES = [
    (r"^models\.text_encoder\.mlp\.", "text_projection."),
    (r"^models\.text_encoder\.t5_embedder\.model\.", "text_encoder/"),
    (PREFIX + r"preprocessor\.embedding\.", "token_embedding."),
    (PREFIX + r"preprocessor\.cls_embedding\.", "class_embedding."),
    (PREFIX + r"preprocessor\.sos_token_embed$", "start_token"),
    (PREFIX + r"preprocessor\.positional_embedding$", "position_embedding"),
    (PREFIX + r"trunk\.blocks\.", "layers."),
    (PREFIX + r"trunk\.post_trunk_norm\.", "norm."),
    (PREFIX + r"head\.linear\.", "lm_head."),
    (PREFIX + r"head\.(norm|ln|layer_norm|norm_layer)\.", "head_norm."),
    (r"\.self_attn\.", ".attn."),
    (r"\.cross_attn\.W([qkv])\.", r".cross_attn.\1."),
    (r"^(layers\.\d+)\.norm_1\.", r"\1.norm1."),
]
CLASS_RENAMES = [(r"^(layers\.\d+)\.norm_2\.", r"\1.norm2.")]
TEXT_RENAMES = [(r"^(layers\.\d+)\.norm_2\.", r"\1.norm_cross."), (r"^(layers\.\d+)\.norm_3\.", r"\1.norm2.")]
SWIGLU_RENAMES = [(r"^(layers\.\d+\.mlp)\.fc(\d)\.", r"\1.w\2.")]
DROPS = {
    r"models\.text_encoder\.t5_embedder\.model\.encoder\.embed_tokens\.weight": "the same as T5's `shared.weight`",
    r"models\.image_tokenizer\..*": "the tokenizer's own weights: load its checkpoint",
}
FLAN_T5_XL = {
    "vocab_size": 32128,
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 24,
    "num_heads": 32,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
NORMS = {"LayerNorm": "layer_norm", "RMSNorm": "rms_norm", "LPLayerNorm": "gain_bias_layer_norm"}
DEFAULT_EPS = {"layer_norm": 1e-5, "rms_norm": 1e-6, "gain_bias_layer_norm": 1e-5}
FEED_FORWARDS = {"MLP": "gelu", "SwiGLUFFN": "swiglu"}


def models_of(config: dict[str, Any]) -> dict[str, Any]:
    """The parts of the original container, by name; empty where this is another kind of configuration."""
    model = config.get("model", config)
    meta = model.get("meta_model", model) if isinstance(model, dict) else {}
    models = meta.get("models") if isinstance(meta, dict) else None
    return models if isinstance(models, dict) and "ar_image_model" in models else {}


def target(part: dict[str, Any] | str | None) -> str:
    """The class that a hydra node names, without its module."""
    name = part.get("_target_", "") if isinstance(part, dict) else str(part or "")
    return name.rsplit(".", 1)[-1]


def known(table: dict[str, str], part: Any, what: str) -> str:
    """Our name of a class."""
    name = target(part)
    if name not in table:
        raise ConversionError(f"Unknown {what} {name!r}; known: {', '.join(table)}.")
    return table[name]


def norm_fields(node: Any, prefix: str, default_eps: float | None = None) -> dict[str, Any]:
    """`norm`, eps, gain and bias of a norm's hydra node."""
    kind = known(NORMS, node, "norm")
    options = node if isinstance(node, dict) else {}
    affine = options.get("elementwise_affine", True)
    return {
        prefix: kind,
        f"{prefix}_eps": float(options.get("eps") or default_eps or DEFAULT_EPS[kind]),
        f"{prefix}_gain": bool(options.get("elementwise_gain", affine)),
        f"{prefix}_bias": bool(options.get("elementwise_bias", options.get("bias", affine))) and affine,
    }


def config_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the authors' hydra tree."""
    models = models_of(config)
    image, text = models["ar_image_model"], models.get("text_encoder")
    pre, trunk, head = image["preprocessor"], image["trunk"], image["head"]
    attention = trunk.get("self_attn_target") or trunk["attn_target"]
    grid, norm = pre["token_grid_size"], trunk.get("norm_layer") or {"_target_": "LayerNorm", "eps": 1e-6}
    fields = {
        "condition": "class" if text is None else "text",
        "codebook_size": pre["codebook_size"],
        "num_image_tokens": grid[0] * grid[1],
        "token_grid": tuple(grid),
        "num_classes": pre.get("num_classes") or 0,
        "positions": positions_of(pre.get("pos_embed_type", "absolute"), grid),
        "hidden_size": trunk["embed_dim"],
        "num_hidden_layers": trunk["num_blocks"],
        "num_attention_heads": attention["num_heads"],
        "ffn_ratio": float(trunk.get("mlp_ratio", 4)),
        "final_norm": bool(trunk.get("post_trunk_norm", True)),
        "head_bias": bool(head.get("use_bias", True)),
        "head_norm": any(bool(value) for name, value in head.items() if "norm" in name),
        "guidance_class": 0,  # the authors' sampler takes class 0 as the null class, not -1
        "condition_dropout": float(pre.get("cond_dropout_prob", 0.1)),
        **bias_fields(trunk, attention),
        **ffn_fields(trunk.get("ffn_target") or "MLP", bool(trunk.get("use_bias", False))),
        **norm_fields(norm, "norm"),
    }
    if attention.get("qk_norm"):
        fields |= norm_fields(norm if attention["qk_norm"] is True else attention["qk_norm"], "qk_norm")
    if text is None:
        return fields
    cross = trunk["cross_attn_target"]
    if cross.get("qk_norm"):
        fields |= norm_fields(norm if cross["qk_norm"] is True else cross["qk_norm"], "cross_qk_norm")
    return fields | text_fields(text, cross) | bias_fields(trunk, cross, "cross_")


def bias_fields(trunk: dict[str, Any], attention: dict[str, Any], prefix: str = "") -> dict[str, bool]:
    """Biases of an attention layer: its own options, else the trunk's."""
    common = attention.get("use_bias", trunk.get("use_bias", False))
    return {f"{prefix}{name}": bool(attention.get(name, common)) for name in ("qkv_bias", "proj_bias")}


def ffn_fields(node: Any, bias: bool) -> dict[str, Any]:
    """Kind, rounding and bias of the feed-forward layers."""
    options = node if isinstance(node, dict) else {}
    kind = known(FEED_FORWARDS, node, "feed-forward layer")
    return {
        "feed_forward": kind,
        "ffn_multiple_of": options.get("multiple_of", 256),
        "ffn_bias": bool(options.get("use_bias", bias)),
    }


def text_fields(text: dict[str, Any], cross: dict[str, Any]) -> dict[str, Any]:
    """What text-conditional models have besides."""
    embedder, mlp = text["t5_embedder"], text["mlp"]
    return {
        "text_dim": mlp["text_dim"],
        "text_projection_bias": bool(mlp.get("use_bias", mlp.get("bias", False))),
        "text_length": embedder.get("encoder_seqlen_max") or 128,
        "num_cross_attention_heads": cross["num_heads"],
    }


def positions_of(name: str, grid: list[int]) -> str:
    """Our name of a kind of positions."""
    name = str(name).lower()
    if name in ("absolute", "learned", "learnable"):
        return "learned"
    if "sin" not in name:
        raise ConversionError(f"Unknown positions {name!r}; known: absolute, 1D and 2D sincos.")
    if "1d" in name or "2d" in name:
        return "sincos_1d" if "1d" in name else "sincos_2d"
    return "sincos_2d" if min(grid) > 1 else "sincos_1d"


def settings_of(config: dict[str, Any], condition: str) -> dict[str, Any]:
    """Sampling: the file's own, else that of the authors' scripts."""
    given = config.get("generation") or {}
    return {
        "cfg_scale": float(given.get("cfg_factor", 3.0 if condition == "text" else 1.5)),
        "temperature": float(given.get("temperature", 1.0)) if given.get("sample", True) else 0.0,
        "top_k": int(given.get("top_k") or 0),
        "top_p": float(given.get("top_p") or 1.0),
        "cfg_interval": -1,
        "min_p": 0.0,
    }


class FlexARAdapter(Adapter):
    """FlexAR and GridAR."""

    system = "flextok_ar"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """A container of models with an `ar_image_model`."""
        return "ar_prior" if models_of(config) else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """The prior and, where the file has it, the T5 encoder."""
        if component != "ar_prior" or not models_of(config):
            return super().plan(component, config)
        from ..modeling.flextok_ar.configuration_flextok_ar import FlexARConfig
        from ..modeling.flextok_ar.modeling_flextok_ar import FlexARPrior

        ours = FlexARConfig(**config_fields(config))
        parts = {"prior": Part(FlexARPrior, ours, settings_of(config, ours.condition))}
        renames = [*RENAMES, *(TEXT_RENAMES if ours.condition == "text" else CLASS_RENAMES)]
        if ours.condition == "text":
            parts["text_encoder"] = _t5(config)
        if ours.feed_forward == "swiglu":
            renames += SWIGLU_RENAMES

        def surgery(state: dict[str, Any]) -> dict[str, Any]:
            if not any(name.startswith("text_encoder/") for name in state):
                parts.pop("text_encoder", None)  # published files may leave T5 out: the authors' loader ignores it
            if "start_token" in state:
                state["start_token"] = state["start_token"].flatten()
            if ours.positions != "learned" and "position_embedding" not in state:
                device = next(iter(state.values())).device
                state["position_embedding"] = FlexARPrior.make_positions(ours, device)
            return state

        return Plan(parts, renames, DROPS, surgery)


def _t5(config: dict[str, Any]) -> Part:
    from transformers import T5Config, T5EncoderModel

    sizes = config.get("fixture_overrides", {}).get("t5", FLAN_T5_XL)
    return Part(T5EncoderModel, T5Config(**sizes))


def published_config(layers: int, text: bool, grid: tuple[int, int] = (256, 1)) -> dict[str, Any]:
    """A configuration as the authors write it; sizes follow from parameter counts, the rest are the code's defaults."""
    dim = 64 * layers
    norm = {"_target_": "torch.nn.LayerNorm", "eps": 1e-6}
    preprocessor = {
        "token_grid_size": list(grid),
        "codebook_size": 64000,
        "embed_dim": dim,
        "pos_embed_type": "absolute",
        "num_classes": None if text else 1000,
    }
    attention = {"dim": dim, "num_heads": layers, "is_causal": True}
    targets = (
        {"self_attn_target": attention, "cross_attn_target": {"dim": dim, "encoder_dim": dim, "num_heads": layers}}
        if text
        else {"attn_target": attention}
    )
    trunk = {
        **targets,
        "embed_dim": dim,
        "num_blocks": layers,
        "ffn_target": {"_target_": "l3m.model.layers.ffn.MLP"},
        "norm_layer": norm,
        "use_bias": False,
    }
    image = {"preprocessor": preprocessor, "trunk": trunk, "head": {"use_bias": False}}
    encoder = {"t5_embedder": {"encoder_seqlen_max": 128}, "mlp": {"text_dim": 2048, "embed_dim": dim}}
    models = {**({"text_encoder": encoder} if text else {}), "ar_image_model": image}
    return {"model": {"meta_model": {"models": models}}}


def _published(name: str, *args: Any) -> tuple[str, Preset]:
    return name, Preset("ar_prior", published_config(*args), f"EPFL-VILAB/{name}", unverified=True)


FlexARAdapter.presets = dict(
    [
        _published("FlexAR-113M-T2I", 12, True),
        _published("FlexAR-382M-T2I", 18, True),
        _published("FlexAR-1B-T2I", 26, True),
        _published("FlexAR-3B-T2I", 36, True),
        _published("GridAR-3B-T2I", 36, True, (16, 16)),
        _published("FlexAR-1B-C2I", 26, False),
    ]
)

ADAPTER = FlexARAdapter()
