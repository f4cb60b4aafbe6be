"""Original checkpoints of DetailFlow: tokenizers and group-parallel priors."""

from typing import Any

from .adapter import Adapter, ConversionError, Part, Plan, Preset
from .llamagen import PRIOR_DROPS, PRIOR_RENAMES, SIZES, prior_config_fields

# google/siglip2-so400m-patch16-naflex, of which the encoder is the first layers
SIGLIP2 = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_patches": 256,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
ENCODER, DECODER = {"layer_num": 12}, {"layer_num": 12, "embed_dim": 768, "num_heads": 12}
TOKENIZER_RENAMES = [
    (r"\.visual_model\.embeddings\.patch_embedding\.", ".embed."),
    (r"\.visual_model\.embeddings\.position_embedding\.", ".positions."),
    (r"\.visual_model\.encoder\.layers\.", ".layers."),
    (r"\.visual_model\.post_layernorm\.", ".norm_post."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.latent_pos_embed$", ".latent_position_embedding"),
    (r"^decoder\.to_pixel\.model\.", "decoder.head."),
    (r"^(post_)?quant_conv\.", r"\1quant_proj."),
    (r"^refine_conv\.", "refine_proj."),
    (r"^global_token_proj\.", "global_head."),
]
TOKENIZER_DROPS = {
    r"quantize\.codebook_used": "the last 65,536 ids of training, kept for a usage figure",
    r"repa_model\..*": "the SigLIP2 that training aligns with, a frozen teacher",
}


PUBLISHED_SCALES = {128: 1.45, 256: 1.5, 512: 1.32}
SAMPLING = {"cfg_interval": -1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def flat_config(config: dict[str, Any]) -> dict[str, Any]:
    """The authors' config.json, whether it stands alone or beside their training YAML."""
    return config.get("config.json", config)


def tokenizer_config_fields(config: dict[str, Any]) -> dict[str, Any]:
    """
    Fields of our configuration for the authors' files.

    Raises:
        ConversionError: for options that no published checkpoint uses.
    """
    flat, yaml, fixed = flat_config(config), config.get("config.yaml", {}), config.get("fixture_overrides", {})
    if flat.get("causal_decoder") or flat.get("num_codebooks", 1) != 1:
        raise ConversionError("No published DetailFlow has a causal decoder or several codebooks.")
    siglip = {**SIGLIP2, **fixed.get("siglip2_vision_config_of_the_pretrained_model", {})}
    encoder, decoder = {**ENCODER, **fixed.get("encoder", {})}, {**DECODER, **fixed.get("decoder", {})}
    patch = flat.get("dec_patch_size", 16)
    size = flat.get("max_image_size") or flat.get("image_size", 256)
    group = flat.get("group_size", 8)
    return {
        "image_size": size,
        "num_channels": siglip["num_channels"],
        "encoder_patch_size": flat.get("enc_patch_size", siglip["patch_size"]),
        "decoder_patch_size": patch,
        "encoder_positions": siglip["num_patches"],
        "decoder_positions": decoder.get("num_patches", siglip["num_patches"]),
        "encoder_hidden_size": siglip["hidden_size"],
        "encoder_intermediate_size": siglip["intermediate_size"],
        "encoder_num_layers": encoder["layer_num"],
        "encoder_num_heads": siglip["num_attention_heads"],
        "decoder_hidden_size": decoder["embed_dim"],
        "decoder_intermediate_size": decoder.get("intermediate_size", 4 * decoder["embed_dim"]),
        "decoder_num_layers": decoder["layer_num"],
        "decoder_num_heads": decoder["num_heads"],
        "layer_norm_eps": float(siglip["layer_norm_eps"]),
        "num_latent_tokens": flat["num_latent_tokens"],
        "group_size": group,
        "num_causal_tokens": flat.get("causal_num") or group,
        "causal_encoder": flat.get("causal_encoder", True),
        "resolution_power": float(yaml.get("degradation_power", 1.5)),
        "codebook_size": flat["codebook_size"],
        "codebook_dim": flat["codebook_embed_dim"],
        "codebook_l2_norm": flat.get("codebook_l2_norm", True),
        "commitment_cost": float(flat.get("commit_loss_beta", 0.25)),
        "entropy_loss_ratio": float(flat.get("entropy_loss_ratio", 0.0)),
        "global_hidden_size": fixed.get("global_token_proj_hidden", 1024),
        "global_dim": siglip["hidden_size"],
        "global_weight": float(flat.get("global_token_loss_weight", 1.0)),
    }


def tokenizer_plan(config: dict[str, Any]) -> Plan:
    """The plan of the tokenizer."""
    from ..modeling.detailflow.configuration_detailflow import DetailFlowConfig
    from ..modeling.detailflow.modeling_detailflow import DetailFlowModel

    part = Part(DetailFlowModel, DetailFlowConfig(**tokenizer_config_fields(config)))
    return Plan({"image_tokenizer": part}, TOKENIZER_RENAMES, TOKENIZER_DROPS, _drop_batch_axes)


def _drop_batch_axes(state: dict[str, Any]) -> dict[str, Any]:
    for name, tensor in state.items():
        if name.endswith((".latent_position_embedding", ".latent_tokens", ".refined_tokens")):
            state[name] = tensor.flatten(0, 1)
        elif name == "decoder.mask_token":
            state[name] = tensor.flatten()
    return state


def prior_plan(config: dict[str, Any]) -> Plan:
    """The plan of a prior: LlamaGen's `ModelArgs` with groups."""
    from ..modeling.detailflow.configuration_detailflow_prior import DetailFlowPriorConfig
    from ..modeling.detailflow.modeling_detailflow_prior import DetailFlowPrior

    flat = flat_config(config)
    group = flat.get("group_size", 8)
    groups = {"group_size": group, "num_causal_tokens": flat.get("causal_num") or group}
    ours = DetailFlowPriorConfig(**prior_config_fields(flat), **groups)
    settings = {**SAMPLING, "cfg_schedule": "constant", "cfg_scale": PUBLISHED_SCALES.get(ours.num_image_tokens, 1.45)}
    renames = [*PRIOR_RENAMES, (r"^spe_tok_embeddings\.special_embeddings\.", "special_embedding.")]
    return Plan({"prior": Part(DetailFlowPrior, ours, settings)}, renames, PRIOR_DROPS)


class DetailFlowAdapter(Adapter):
    """DetailFlow's tokenizers and priors."""

    system = "detailflow"
    weight_files = ("checkpoints/128.pt", "checkpoints/256.pt", "checkpoints/512.pt", *Adapter.weight_files)

    def wrappers_of(self, component: str) -> tuple[str, ...]:
        """The authors evaluate priors with the moving average and tokenizers without."""
        first = ("model", "ema") if component == "tokenizer" else ("ema", "model")
        return (*first, "state_dict", "module")

    def recognise(self, config: dict[str, Any]) -> str | None:
        """The dataclass dump of the tokenizer, or of the prior."""
        flat = flat_config(config)
        if {"dim", "n_layer", "group_size", "causal_num"} <= set(flat):
            return "ar_prior"
        return "tokenizer" if {"enc_type", "causal_num", "group_size", "codebook_embed_dim"} <= set(flat) else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """See the functions above."""
        plans = {"tokenizer": tokenizer_plan, "ar_prior": prior_plan}
        return plans[component](config) if component in plans else super().plan(component, config)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """ADM's centre crop, [-1, 1]."""
        from ..modeling.image_processing_adm import AdmCropProcessor

        if component != "tokenizer":
            return None
        return AdmCropProcessor.for_size(tokenizer_config_fields(config)["image_size"], (-1.0, 1.0))


def _tokenizer(tokens: int) -> Preset:
    config = {
        "image_size": 256,
        "max_image_size": 256,
        "codebook_size": 8192,
        "codebook_embed_dim": 8,
        "codebook_l2_norm": True,
        "commit_loss_beta": 0.25,
        "enc_type": "siglip2",
        "num_latent_tokens": tokens,
        "enc_patch_size": 16,
        "dec_patch_size": 16,
        "causal_encoder": True,
        "causal_decoder": False,
        "group_size": 8,
        "causal_num": 8,
    }
    return Preset("tokenizer", config, f"ByteFlow-AI/DetailFlow-{tokens // 8}", f"checkpoints/{tokens}.pt")


def _prior(tokens: int) -> Preset:
    config = {
        **SIZES["L"],
        "vocab_size": 8192,
        "block_size": tokens,
        "num_classes": 1000,
        "cls_token_num": 1,
        "model_type": "c2i",
        "group_size": 8,
        "causal_num": 8,
    }
    return Preset("ar_prior", config, f"ByteFlow-AI/DetailFlow-{tokens // 8}-GPT-L", f"checkpoints/{tokens}.pt")


DetailFlowAdapter.presets = {
    **{f"DetailFlow-{tokens // 8}": _tokenizer(tokens) for tokens in (128, 256, 512)},
    **{f"DetailFlow-{tokens // 8}-GPT-L": _prior(tokens) for tokens in (128, 256, 512)},
}

ADAPTER = DetailFlowAdapter()
