"""Original checkpoints of GigaTok: 1-D and 2-D tokenizers, and priors."""

from typing import Any

from .adapter import Adapter, ConversionError, Part, Plan, Preset
from .llamagen import PRIOR_DROPS, PRIOR_RENAMES, SIZES, prior_config_fields

VIT_SIZES = {
    "small": {"width": 512, "layers": 6, "heads": 8},
    "base": {"width": 768, "layers": 12, "heads": 12},
    "large": {"width": 1024, "layers": 24, "heads": 16},
    "xl": {"width": 1280, "layers": 36, "heads": 20},
    "xxl": {"width": 1536, "layers": 48, "heads": 24},
}
MODEL_CLASSES = {"VQVitModelPlus": "1d", "VQVitModel2DPlus": "2d"}
VIT_RENAMES = [
    (r"^(s2to1|s2d)encoder\.", "token_encoder."),
    (r"^(s1to2|s2d)decoder\.", "token_decoder."),
    (r"^(token_\w+)\.transformer\.", r"\1.layers."),
    (r"^(token_\w+)\.(encoder|decoder)_embed\.", r"\1.embed."),
    (r"^(token_\w+)\.ln_(pre|post)\.", r"\1.norm_\2."),
    (r"^(token_\w+)\.positional_embedding$", r"\1.position_embedding"),
    (r"^(token_\w+)\.latent_token_positional_embedding$", r"\1.latent_position_embedding"),
    (r"^(token_\w+)\.latent_token_positional_embedding_comp$", r"\1.redundant_position_embedding"),
    (r"^token_encoder\.global_proj\.", "token_encoder.query_proj."),
    (r"^token_encoder\.conv_out\.", "token_encoder.proj."),
    (r"^token_decoder\.distill_mlp\.", "token_decoder.alignment_head."),
    (r"^(post_)?quant_conv\.", r"\1quant_proj."),
]
CONV_RENAMES = [(r"^decoder\.conv_blocks\.(\d+)\.upsample\.conv1\.", r"decoder.upsample.\1.")]
NO_ATTENTION_RENAMES = [(r"^(encoder|decoder)\.mid\.1\.", r"\1.mid.2.")]  # the middle counts what it has
# the authors' evaluation: a step at 0.18, scales of 1.5 to 1.75; their pictures use a constant 4.0
PRIOR_SETTINGS = {"cfg_scale": 1.75, "cfg_schedule": "step", "cfg_window_start": 0.18, "cfg_window_end": 1.0}
VQ_DROPS = {r"quantize\.codebook_used": "the last 65,536 ids of training, kept for a usage figure"}


def gigatok_config_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the authors' YAML; what it lacks is the code's default."""
    args, fixed = config["model"]["init_args"], config.get("fixture_overrides", {})
    sizes = {**VIT_SIZES, **fixed.get("vit_sizes", {})}
    fields = {
        "layout": MODEL_CLASSES[config["model"]["model_cls"]],
        "image_size": fixed.get("image_size", 256),
        "hidden_channels": fixed.get("cnn_base_channels", 128),
        "num_res_blocks": fixed.get("cnn_num_res_blocks", 2),
        "encoder_channel_mult": tuple(args["encoder_ch_mult"]),
        "decoder_channel_mult": tuple(args["decoder_ch_mult"]),
        "z_channels": args.get("z_channels", 256),
        "conv_attention": args.get("use_attn", True),
        "adaptive_norm": args.get("adaptive_gn", False),
        "depth_to_space": args.get("d2s_up", False),
        "dropout": float(args.get("dropout_p", 0.0)),
        "grid_cross_attention": args.get("cross_attention", True),
        "num_latent_tokens": args.get("num_latent_tokens", 256),
        "query_init": query_init(args),
        "codebook_size": args["codebook_size"],
        "codebook_dim": args["codebook_embed_dim"],
        "codebook_l2_norm": args.get("codebook_l2_norm", True),
        "rotation_trick": args.get("rot", False),
        "commitment_cost": float(args.get("commit_loss_beta", 0.25)),
        "entropy_loss_ratio": float(args.get("entropy_loss_ratio", 0.0)),
        "alignment_depth": args.get("distill_depth") if config.get("trainer", {}).get("distill_loss", True) else None,
        "alignment_dim": args.get("out_inner_dim", 768),
        "feature_reconstruction_weight": float(args.get("fea_rec_loss_weight", 1.0)),
    }
    for half in ("encoder", "decoder"):
        name = args.get(f"{half}_size") or args.get("model_size")
        if name not in sizes:
            raise ConversionError(f"Unknown transformer size {name!r}; known: {', '.join(sizes)}.")
        size = sizes[name]
        fields[f"{half}_hidden_size"] = size["width"]
        fields[f"{half}_num_layers"], fields[f"{half}_num_heads"] = size["layers"], size["heads"]
    return fields


def query_init(args: dict[str, Any]) -> str:
    """
    The name of a query initialisation.

    Raises:
        ConversionError: for the two options of the decoder that no published configuration uses.
    """
    unused = [name for name in ("last_level_2d_query_init", "multi_level_2d_query_init") if args.get(name)]
    if unused:
        raise ConversionError(f"No published GigaTok uses {', '.join(unused)}: it is not implemented.")
    return "multi_level" if args.get("multi_level_query_init", False) else "mean"


def tokenizer_plan(model: type, model_config: Any) -> Plan:
    """The plan of a GigaTok-shaped tokenizer."""
    from ..modeling.layers.conv_codec_taming import TAMING_RENAMES
    from ..modeling.layers.query_block import QUERY_BLOCK_RENAMES

    middle = [] if model_config.conv_attention else NO_ATTENTION_RENAMES
    return Plan(
        {"image_tokenizer": Part(model, model_config)},
        [*middle, *CONV_RENAMES, *TAMING_RENAMES, *VIT_RENAMES, *QUERY_BLOCK_RENAMES],
        VQ_DROPS,
        _surgery,
    )


def _surgery(state: dict[str, Any]) -> dict[str, Any]:
    """Splits packed projections; 1x1 convolutions and tables with a batch axis become matrices."""
    from ..modeling.layers.query_block import split_packed_projections

    state = split_packed_projections(state)
    matrices = ("token_encoder.proj.weight", "quant_proj.weight", "post_quant_proj.weight")
    for name, tensor in state.items():
        if name in matrices or name.endswith("position_embedding"):
            state[name] = tensor.flatten(1)
    return state


def prior_plan(config: dict[str, Any]) -> Plan:
    """
    The plan of a prior: LlamaGen's `ModelArgs` with `rope`.

    Raises:
        ConversionError: for options that no published checkpoint uses.
    """
    from ..modeling.gigatok.configuration_gigatok_prior import GigaTokPriorConfig
    from ..modeling.gigatok.modeling_gigatok_prior import GigaTokPrior

    unused = [
        name for name, value in config.items() if value and ("adaln" in name.lower() or "qk_norm" in name.lower())
    ]
    if unused:
        raise ConversionError(f"No published GigaTok prior uses {', '.join(unused)}: it is not implemented.")
    positions = "rotary" if config.get("rope", False) else "learned"
    ours = GigaTokPriorConfig(**prior_config_fields(config), positions=positions)
    settings = {**PRIOR_SETTINGS, "cfg_interval": -1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    renames = [*PRIOR_RENAMES, (r"^positional_embedding$", "position_embedding.weight")]
    return Plan({"prior": Part(GigaTokPrior, ours, settings)}, renames, PRIOR_DROPS)


class GigaTokAdapter(Adapter):
    """GigaTok's tokenizers and priors."""

    system = "gigatok"
    wrappers = ("ema", "model", "module", "state_dict")

    def recognise(self, config: dict[str, Any]) -> str | None:
        """The YAML with `model.model_cls`. ReToK's looks the same: give `preset=` for its files."""
        model = config.get("model")
        if isinstance(model, dict) and model.get("model_cls") in MODEL_CLASSES:
            return "tokenizer" if "head_tokens" not in config.get("fixture_overrides", {}) else None
        return "ar_prior" if {"dim", "n_layer", "n_head", "rope"} <= set(config) else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """See the functions above."""
        if component == "ar_prior":
            return prior_plan(config)
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.gigatok.configuration_gigatok import GigaTokConfig
        from ..modeling.gigatok.modeling_gigatok import GigaTokModel

        return tokenizer_plan(GigaTokModel, GigaTokConfig(**gigatok_config_fields(config)))

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """ADM's centre crop, [-1, 1]."""
        from ..modeling.image_processing_adm import AdmCropProcessor

        if component != "tokenizer":
            return None
        return AdmCropProcessor.for_size(gigatok_config_fields(config)["image_size"], (-1.0, 1.0))


def tokenizer_config(encoder: str, decoder: str, two_dimensional: bool = False, entropy: float = 0.0) -> dict[str, Any]:
    """A tokenizer's configuration as the authors write it."""
    # "cross_attention" is a key of ours: two of the 2-D lists lack that attention, how the YAML says so was not seen
    blocks = {"cross_attention": encoder == decoder} if two_dimensional else {"multi_level_query_init": True}
    return {
        "model": {
            "model_cls": "VQVitModel2DPlus" if two_dimensional else "VQVitModelPlus",
            "init_args": {
                "codebook_size": 16384,
                "codebook_embed_dim": 8,
                "codebook_l2_norm": True,
                "codebook_show_usage": True,
                "commit_loss_beta": 0.25,
                "entropy_loss_ratio": entropy,
                "encoder_ch_mult": [1, 1, 2, 2, 4],
                "decoder_ch_mult": [1, 1, 2, 2, 4],
                "encoder_size": encoder,
                "decoder_size": decoder,
                "num_latent_tokens": 256,
                "z_channels": 256,
                "dropout_p": 0.0,
                "adaptive_gn": True,
                "d2s_up": True,
                "rot": True,
                "use_attn": False,
                "distill_depth": 3,
                "out_inner_dim": 768,
                **blocks,
            },
        },
        "trainer": {"distill_loss": True, "distill_model": "dinov2-vit-b"},
    }


def prior_config(size: str) -> dict[str, Any]:
    """A prior's configuration as the authors write it."""
    common = {"vocab_size": 16384, "block_size": 256, "num_classes": 1000, "cls_token_num": 1, "model_type": "c2i"}
    return {**common, **SIZES[size], "rope": False}


GigaTokAdapter.presets = {
    "VQ_SS256": Preset("tokenizer", tokenizer_config("small", "small"), filename="VQ_SS256_e100.pt"),
    "VQ_SB256": Preset("tokenizer", tokenizer_config("small", "base"), filename="VQ_SB256_e200.pt"),
    "VQ_BL256": Preset("tokenizer", tokenizer_config("base", "large"), filename="VQ_BL256_e200.pt"),
    "VQ_BL256_dino_disc": Preset("tokenizer", tokenizer_config("base", "large"), filename="VQ_BL256_dino_disc.pt"),
    "VQ_XLXXL256": Preset("tokenizer", tokenizer_config("xl", "xxl", entropy=0.005), filename="VQ_XLXXL256_e300.pt"),
    # configurations without released weights
    "VQ_SS256_2d": Preset("tokenizer", tokenizer_config("small", "small", True)),
    "VQ_SB256_2d": Preset("tokenizer", tokenizer_config("small", "base", True), unverified=True),
    "VQ_BL256_2d": Preset("tokenizer", tokenizer_config("base", "large", True, 0.005), unverified=True),
    **{
        f"GPT_{size}_256": Preset("ar_prior", prior_config(size), filename=f"GPT_{size}256_e300_VQ_BL.pt")
        for size in ("B", "XL", "XXL")
    },
}

ADAPTER = GigaTokAdapter()
