"""Original checkpoints of ResTok: the tokenizer and its hierarchical prior."""

from typing import Any

from .adapter import Adapter, ConversionError, Part, Plan, Preset
from .llamagen import PRIOR_DROPS, PRIOR_RENAMES, SIZES, prior_config_fields
from .titok import VQGAN_RENAMES, up_renames

VIT_SIZES = {"large": {"width": 1024, "layers": 24, "heads": 16}}
PIXEL_CNN = {"channel_mult": [1, 1, 2, 2, 4], "hidden_channels": 128, "num_res_blocks": 2, "z_channels": 256}
TOKENIZER_RENAMES = [
    (r"^_orig_mod\.", ""),
    (r"^encoder\.patch_embed\.", "encoder.embed."),
    (r"^(encoder|decoder)\.blocks\.", r"\1.layers."),
    (r"^(encoder|decoder)\.ln_(pre|post)\.", r"\1.norm_\2."),
    (r"^(encoder|decoder)\.latent_token_level_embedding\.", r"\1.latent_level_embedding."),
    (r"^encoder\.level_embedding\.", "encoder.image_level_embedding."),
    (r"^encoder\.conv_out\.(\d+)\.", r"encoder.proj.levels.\1."),
    (r"^encoder\.conv_out\.(weight|bias)$", r"encoder.proj.levels.0.\1"),
    (r"^decoder\.decoder_embed\.(\d+)\.", r"decoder.embed.levels.\1."),
    (r"^decoder\.decoder_embed\.(weight|bias)$", r"decoder.embed.levels.0.\1"),
    (r"^decoder\.ffn\.", "decoder.proj."),
]
TOKENIZER_DROPS = {
    r"(_orig_mod\.)?vf_proj(_dec)?\..*": "heads of the alignment with DINOv3, for training",
    r"(_orig_mod\.)?foundation_model\..*": "DINOv3 itself, the teacher",
    r"(_orig_mod\.)?decoder\.feat_mask_token": "queries of the alignment with DINOv3, for training",
}
SPECIAL_RENAME = (r"^spe_tok_embeddings\.special_embeddings\.", "special_embedding.")
PRIOR_SETTINGS = {
    **{"cfg_scale": 3.75, "cfg_schedule": "step", "cfg_window_start": 0.25, "cfg_window_end": 1.0, "cfg_num_steps": 0},
    **{"cfg_interval": -1, "temperature": 1.0, "top_k": 0, "top_p": 0.95, "min_p": 0.0},
}
# option -> the value that all published weights have
FIXED = {
    "latent_hierarchy": True,
    "learnable_latent_tokens": False,
    "learnable_dec_image_tokens": True,
    "vae_encoder": True,
}


def tokenizer_config_fields(config: dict[str, Any]) -> dict[str, Any]:
    """
    Fields of our configuration for the authors' tree.

    Raises:
        ConversionError: for options that no published checkpoint uses.
    """
    vq, fixed = config["model"]["vq_model"], config.get("fixture_overrides", {})
    for name, value in FIXED.items():
        if vq.get(name, value) != value:
            raise ConversionError(f"No published ResTok has {name}={vq[name]}: it is not implemented.")
    sizes, cnn = {**VIT_SIZES, **fixed.get("vit_sizes", {})}, {**PIXEL_CNN, **fixed.get("pixel_cnn", {})}
    fields = {
        "image_size": config["dataset"]["preprocessing"]["crop_size"],
        "num_channels": cnn.get("num_channels", 3),
        "pixel_hidden_channels": cnn["hidden_channels"],
        "pixel_channel_mult": tuple(cnn["channel_mult"]),
        "pixel_num_res_blocks": cnn["num_res_blocks"],
        "pixel_z_channels": cnn["z_channels"],
        "pixel_dropout": float(cnn.get("dropout", 0.0)),
        "num_latent_tokens": vq["num_latent_tokens"],
        "num_stages": vq.get("hierarchy_stages", 4) if vq.get("merge_tokens", True) else 1,
        "reduction_ratio": float(vq.get("reduction_ratio", 0.5)),
        "residual_image_tokens": vq.get("residual_image_tokens", True),
        "residual_latent_tokens": vq.get("residual_latent_tokens", True),
        "per_level_projection": vq.get("multi_quant", True),
        "scrambled_latents": vq.get("is_legacy", True),
        "codebook_size": vq["codebook_size"],
        "token_size": vq["token_size"],
        "use_l2_norm": vq.get("use_l2_norm", True),
        "commitment_cost": float(vq.get("commitment_cost", 0.25)),
        "entropy_loss_ratio": float(vq.get("entropy_loss_ratio", 0.0)),
        "rope_theta": float(vq.get("rope_base_len", 10000)),
        "nested_dropout": vq.get("drop_latent_tokens", True),
        "min_tokens": vq.get("num_min_tokens", 4),
    }
    for half, short in (("encoder", "enc"), ("decoder", "dec")):
        name = vq[f"vit_{short}_model_size"]
        if name not in sizes:
            raise ConversionError(f"Unknown transformer size {name!r}; known: {', '.join(sizes)}.")
        fields[f"{half}_hidden_size"] = sizes[name]["width"]
        fields[f"{half}_num_layers"], fields[f"{half}_num_heads"] = sizes[name]["layers"], sizes[name]["heads"]
    return fields


def tokenizer_plan(config: dict[str, Any]) -> Plan:
    """The plan of the tokenizer."""
    from ..modeling.restok.configuration_restok import ResTokConfig
    from ..modeling.restok.modeling_restok import ResTokModel

    ours = ResTokConfig(**tokenizer_config_fields(config))
    renames = [*TOKENIZER_RENAMES, *VQGAN_RENAMES, *up_renames("pixel_decoder", len(ours.pixel_channel_mult))]
    return Plan({"image_tokenizer": Part(ResTokModel, ours)}, renames, TOKENIZER_DROPS, _surgery)


def _surgery(state: dict[str, Any]) -> dict[str, Any]:
    """Splits the fused projections, stacks the lists of level embeddings, flattens 1x1 convolutions."""
    import torch

    from ..modeling.layers.separate_attention import split_fused_qkv

    state, stacks = split_fused_qkv(state), {}
    for name in list(state):
        prefix, _, number = name.rpartition(".")
        if prefix.endswith("level_embedding") and number.isdigit():
            stacks.setdefault(prefix, {})[int(number)] = state.pop(name)
        elif name.endswith("mask_token"):
            state[name] = state[name].flatten()
        elif name in ("encoder.embed.weight", "decoder.proj.weight") or name.startswith("encoder.proj.levels."):
            state[name] = state[name].flatten(1) if name.endswith("weight") else state[name]
    for name, rows in stacks.items():
        state[name] = torch.cat([rows[i] for i in sorted(rows)])
    return state


def prior_plan(config: dict[str, Any]) -> Plan:
    """The plan of the hierarchical prior: LlamaGen's `ModelArgs` with `ar_token_num` and `spe_token_num`."""
    from ..modeling.restok.configuration_restok_prior import ResTokPriorConfig
    from ..modeling.restok.modeling_restok_prior import ResTokPrior

    special = {"num_causal_tokens": config["ar_token_num"], "num_special_tokens": config["spe_token_num"]}
    ours = ResTokPriorConfig(**prior_config_fields(config), **special)
    renames = [(r"^_orig_mod\.", ""), *PRIOR_RENAMES, SPECIAL_RENAME]
    return Plan({"prior": Part(ResTokPrior, ours, PRIOR_SETTINGS)}, renames, PRIOR_DROPS)


class ResTokAdapter(Adapter):
    """ResTok's tokenizer and prior."""

    system = "restok"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """The tree of the tokenizer, or the prior's `ModelArgs`."""
        if {"dim", "n_layer", "ar_token_num", "spe_token_num"} <= set(config):
            return "ar_prior"
        model = config.get("model")
        vq = model.get("vq_model") if isinstance(model, dict) else None
        if isinstance(vq, dict) and {"hierarchy_stages", "latent_hierarchy"} <= set(vq):
            return "tokenizer"
        return None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """See the functions above."""
        plans = {"tokenizer": tokenizer_plan, "ar_prior": prior_plan}
        return plans[component](config) if component in plans else super().plan(component, config)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Shorter side resized (bicubic), centre crop, [0, 1]."""
        from ..modeling.image_processing_utils import ImageTokenizerProcessor

        if component != "tokenizer":
            return None
        return ImageTokenizerProcessor.for_size(config["dataset"]["preprocessing"]["crop_size"])


TOKENIZER = {
    "model": {
        "vq_model": {
            "codebook_size": 8192,
            "token_size": 8,
            "use_l2_norm": True,
            "commitment_cost": 0.25,
            "vit_enc_model_size": "large",
            "vit_dec_model_size": "large",
            "rope_base_len": 10000,
            "num_latent_tokens": 128,
            "num_min_tokens": 4,
            "merge_tokens": True,
            "hierarchy_stages": 4,
            "reduction_ratio": 0.5,
            "residual_image_tokens": True,
            "residual_latent_tokens": True,
            "multi_quant": True,
            "latent_hierarchy": True,
        }
    },
    "dataset": {"preprocessing": {"crop_size": 256}},
}
PRIOR = {
    **SIZES["L"],
    "vocab_size": 8192,
    "block_size": 128,
    "num_classes": 1000,
    "cls_token_num": 1,
    "model_type": "c2i",
    "ar_token_num": 4,
    "spe_token_num": 127,
}
ResTokAdapter.presets = {
    "llamagen_l_c2i_restok_l_128.r256_in1k": Preset(
        "ar_prior", PRIOR, "xushu-me/llamagen_l_c2i_restok_l_128.r256_in1k"
    ),
    "restok_l_128.r256_in1k": Preset("tokenizer", TOKENIZER, "xushu-me/restok_l_128.r256_in1k"),
}

ADAPTER = ResTokAdapter()
