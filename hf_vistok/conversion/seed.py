"""Original checkpoints of SEED: the tokenizer's pickle, and the diffusers components of its unCLIP decoder."""

from typing import Any

import torch

from .adapter import Adapter, ConversionError, Part, Plan, Preset

RENAMES = [
    (r"^visual_encoder\.", "vision_encoder."),
    (r"^vision_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed."),
    (r"^vision_encoder\.cls_token$", "vision_encoder.class_token"),
    (r"^vision_encoder\.pos_embed$", "vision_encoder.position_embedding"),
    (r"^vision_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^ln_vision\.", "vision_norm."),
    (r"^Reverse_Qformer\.bert\.", "reverse_qformer."),
    (r"^Qformer\.bert\.", "qformer."),
    (r"qformer\.embeddings\.LayerNorm\.", "qformer.norm."),
    (r"qformer\.encoder\.layer\.", "qformer.layers."),
    (r"\.attention\.self\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.output\.LayerNorm\.", ".norm1."),
    (r"\.crossattention\.self\.(q|k|v)\w+\.", r".cross_attn.\1."),
    (r"\.crossattention\.output\.dense\.", ".cross_attn.proj."),
    (r"\.crossattention\.output\.LayerNorm\.", ".norm2."),
    (r"\.intermediate_query\.dense\.", ".fc1."),
    (r"\.output_query\.dense\.", ".fc2."),
    (r"\.output_query\.LayerNorm\.", ".norm3."),
    (r"^reverse_tokens$", "reverse_token"),
    (r"^encode_task_layer\.", "proj_in."),
    (r"^decode_task_layer\.", "proj_out."),
    (r"^blocks\.", "features.layers."),
    (r"^pos_embed$", "features.position_embedding"),
    (r"^blocks_image\.", "image.layers."),
    (r"^pos_embed_image$", "image.position_embedding"),
    (r"^distill_image_proj\.", "head."),
]
DROPS = {
    r"(Reverse_)?Qformer\.bert\.embeddings\.position_ids": "a table of 0, 1, 2, ... that nothing reads",
    r"Reverse_Qformer\..*\.attention\.self\.(query|key)\.(weight|bias)": "one query's self-attention has one weight, "
    "which is 1: zeros here",
}
UNCLIP_DROPS = {r"vae\.(encoder|quant_conv)\..*": "the decoder of embeddings never encodes pixels"}
BERT_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
}
VIT_G = {"patch_size": 14, "embed_dim": 1408, "depth": 39, "num_heads": 16, "mlp_ratio": 4.3637}
CAUSAL_COUNT = 32  # the authors mask self-attention only where there are exactly so many queries


def seed_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the authors' arguments."""
    vit = {**VIT_G, **(config.get("vision_config") or {})}
    bert = {**BERT_BASE, **(config.get("bert_config") or {})}
    queries = config.get("num_query_token", 32)
    return {
        "image_size": config.get("img_size", 224),
        "has_vision_encoder": config.get("vit_model", "eva_clip_g") is not None,
        "vision_hidden_size": vit["embed_dim"],
        "vision_num_layers": vit["depth"],
        "vision_num_heads": vit["num_heads"],
        "vision_mlp_ratio": float(vit["mlp_ratio"]),
        "vision_patch_size": vit["patch_size"],
        "vision_layer_norm_eps": float(vit.get("layer_norm_eps", 1e-6)),
        **{name: bert[name] for name in BERT_BASE},
        "cross_attention_every": config.get("cross_attention_freq", 2),
        "num_query_tokens": queries,
        "causal_queries": queries == CAUSAL_COUNT,
        "codebook_size": config.get("n_embed", 8192),
        "token_size": config.get("codebook_embed_dim", 32),
        "decode_num_layers": config.get("decode_depth", 4),
        "decode_num_heads": config.get("num_heads_of_decoder_blocks", 12),
        "feature_branch": config.get("recon_s", True),
        "image_branch": config.get("blocks_for_image", True),
        "embeds_from_features": config.get("use_recon_s_for_image", False),
        "head": "qformer" if config.get("use_qformer_image", False) else "mlp",
        "image_embed_dim": config.get("image_features_dim", 1024),
    }


def _surgery(state: dict[str, Any]) -> dict[str, Any]:
    for name in [name for name in state if name.endswith(".attn.q_bias")]:
        value_name = name.replace("q_bias", "v_bias")
        query, value = state.pop(name), state.pop(value_name)
        state[name.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
    for name in [name for name in state if ".attn.value." in name]:
        value, parts = state.pop(name), []
        for part in ("query", "key"):
            other = state.pop(name.replace(".value.", f".{part}."), None)
            if other is None and not name.startswith("reverse_qformer."):
                raise ConversionError(f"The checkpoint has {name} and no {part}.")
            parts.append(torch.zeros_like(value) if other is None else other)
        state[name.replace(".value.", ".qkv.")] = torch.cat([*parts, value])
    for name in ("query_tokens", "reverse_token", *[name for name in state if name.endswith("position_embedding")]):
        if name in state:
            state[name] = state[name][0]
    return state


def unclip_plan(config: dict[str, Any]) -> Plan:
    """The components of diffusers' Stable unCLIP that draw an image embedding."""
    from diffusers import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import CLIPTextConfig, CLIPTextModel

    from ..modeling.layers.vae import AutoencoderKLDecoder

    models = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKLDecoder,
        "image_normalizer": StableUnCLIPImageNormalizer,
    }
    parts = {
        name: Part(model, {key: value for key, value in config[name].items() if not key.startswith("_")})
        for name, model in models.items()
    }
    text = {key: value for key, value in config["text_encoder"].items() if key != "model_type"}
    parts["text_encoder"] = Part(CLIPTextModel, CLIPTextConfig(**text))
    foreign = {f"{name}.": f"{name}/" for name in parts}
    foreign = {"text_encoder.text_model.": "text_encoder/", **foreign}
    return Plan(parts, drops=UNCLIP_DROPS, foreign=foreign)


class SeedAdapter(Adapter):
    """SEED-2's tokenizer (a pickle without a configuration: pass `preset=`) and its decoder."""

    system = "seed"
    config_files = ("config.json",)
    weight_files = ("seed_quantizer.pt",)

    def recognise(self, config: dict[str, Any]) -> str | None:
        """The arguments of the authors' class."""
        return "tokenizer" if {"codebook_embed_dim", "use_qformer_image"} <= set(config) else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """A table of names; fused attention layers."""
        if component == "diffusion_decoder":
            return unclip_plan(config)
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.seed.configuration_seed import SeedConfig
        from ..modeling.seed.modeling_seed import SeedModel

        return Plan({"image_tokenizer": Part(SeedModel, SeedConfig(**seed_fields(config)))}, RENAMES, DROPS, _surgery)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Squashed to a square (bicubic, no crop), CLIP's mean and standard deviation."""
        from ..modeling.image_processing_utils import ImageTokenizerProcessor
        from ..modeling.seed.configuration_seed import SeedConfig

        if component != "tokenizer":
            return None
        ours = SeedConfig(**seed_fields(config))
        square = {"height": ours.image_size, "width": ours.image_size}
        means = {"image_mean": list(ours.image_mean), "image_std": list(ours.image_std)}
        return ImageTokenizerProcessor.for_size(ours.image_size, size=square, do_center_crop=False, **means)


def tokenizer_config(**changes: Any) -> dict[str, Any]:
    """The arguments of the authors' class, with their defaults spelled out."""
    config = {
        "vit_model": "eva_clip_g",
        "img_size": 224,
        "num_query_token": 32,
        "cross_attention_freq": 2,
        "codebook_embed_dim": 32,
        "n_embed": 8192,
        "recon_s": True,
        "blocks_for_image": True,
        "decode_depth": 4,
        "use_recon_s_for_image": False,
        "use_qformer_image": False,
        "image_features_dim": 1024,
    }
    return {**config, **changes}


SeedAdapter.presets = {
    "AILab-CVC--seed-tokenizer-2--seed_quantizer.pt": Preset(
        "tokenizer", tokenizer_config(), "AILab-CVC/seed-tokenizer-2", "seed_quantizer.pt"
    ),
    # the training repository's default, of which no checkpoint is published
    "variant-reverse-qformer-without-visual-encoder(not-published)": Preset(
        "tokenizer", tokenizer_config(vit_model=None, use_qformer_image=True), unverified=True
    ),
}

ADAPTER = SeedAdapter()
