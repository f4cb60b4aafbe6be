"""Original checkpoints of LlamaGen: the VQ tokenizers and the class- and text-conditional priors."""

from typing import Any

from .adapter import Adapter, Part, Plan, Preset

PRIOR_RENAMES = [
    (r"^cls_embedding\.embedding_table\.", "class_embedding."),
    (r"^cls_embedding\.cap_proj\.", "caption_embedding."),
    (r"^cls_embedding\.uncond_embedding$", "caption_embedding.null_caption"),
    (r"^tok_embeddings\.", "token_embedding."),
    (r"^output\.", "lm_head."),
    (r"\.attention\.wqkv\.", ".attn.qkv."),
    (r"\.attention\.wo\.", ".attn.proj."),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.ffn_norm\.", ".norm2."),
    (r"\.feed_forward\.", ".mlp."),
]
PRIOR_DROPS = {r"freqs_cis": "a table of rotary positions that some files stored; computed here"}
VQ_DROPS = {r"quantize\.codebook_used": "the last 65,536 ids of training, kept for a usage figure"}


def vq_config_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the flat one of the authors' Hub folder; what it lacks is the code's default."""
    fixed = config.get("fixture_overrides", {})
    size = config.get("image_size", 256)
    return {
        "image_size": size if isinstance(size, int) else min(size),
        "hidden_channels": fixed.get("ch", config.get("ch", 128)),
        "encoder_channel_mult": tuple(config.get("encoder_ch_mult", (1, 1, 2, 2, 4))),
        "decoder_channel_mult": tuple(config.get("decoder_ch_mult", (1, 1, 2, 2, 4))),
        "num_res_blocks": fixed.get("num_res_blocks", 2),
        "norm_num_groups": fixed.get("norm_num_groups", 32),
        "z_channels": config.get("z_channels", 256),
        "codebook_size": config.get("codebook_size", 16384),
        "codebook_dim": config.get("codebook_embed_dim", 8),
        "codebook_l2_norm": config.get("codebook_l2_norm", True),
        "commitment_cost": float(config.get("commit_loss_beta", 0.25)),
        "entropy_loss_ratio": float(config.get("entropy_loss_ratio", 0.0)),
        "dropout": float(config.get("dropout_p", 0.0)),
    }


def prior_config_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the authors' `ModelArgs`."""
    text = config.get("model_type", "c2i") == "t2i"
    dim = config["dim"]
    fields = {
        "condition": "text" if text else "class",
        "num_classes": 0 if text else config.get("num_classes", 1000),
        "num_condition_tokens": config.get("cls_token_num", 120 if text else 1),
        "caption_dim": config.get("caption_dim", 2048),
        "codebook_size": config.get("vocab_size", 16384),
        "num_image_tokens": config.get("block_size", 256),
        "hidden_size": dim,
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": config["n_head"],
        "num_key_value_heads": config.get("n_kv_head"),
        "multiple_of": config.get("multiple_of", 256),
        "ffn_ratio": 4.0 * (config.get("ffn_dim_multiplier") or 1.0),
        "rope_theta": float(config.get("rope_base", 10000)),
        "rms_norm_eps": float(config.get("norm_eps", 1e-5)),
        "token_dropout": float(config.get("token_dropout_p", 0.1)),
        "attention_dropout": float(config.get("attn_dropout_p", 0.0)),
        "residual_dropout": float(config.get("resid_dropout_p", 0.1)),
        "ffn_dropout": float(config.get("ffn_dropout_p", 0.1)),
        "condition_dropout": float(config.get("class_dropout_prob", 0.1)),
        "initializer_range": float(config.get("initializer_range", 0.02)),
    }
    return fields


class LlamaGenAdapter(Adapter):
    """LlamaGen's tokenizers and priors."""

    system = "llamagen"
    # the optimizer's file of fine-tuning holds several state dicts; DeepSpeed writes "module"
    wrappers = ("ema", "model", "module", "state_dict")

    def recognise(self, config: dict[str, Any]) -> str | None:
        """The flat configuration of FoundationVision/vq-ds16-c2i, or `ModelArgs`."""
        if {"encoder_ch_mult", "codebook_embed_dim", "codebook_l2_norm", "codebook_show_usage"} <= set(config):
            return "tokenizer" if set(config) <= VQ_KEYS else None
        if {"dim", "n_layer", "n_head", "cls_token_num"} <= set(config) and set(config) <= PRIOR_KEYS:
            return "ar_prior"
        return None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """See the functions above."""
        if component == "tokenizer":
            from ..modeling.layers.conv_codec_taming import TAMING_RENAMES
            from ..modeling.llamagen.configuration_llamagen import LlamaGenVQConfig
            from ..modeling.llamagen.modeling_llamagen import LlamaGenVQModel

            part = Part(LlamaGenVQModel, LlamaGenVQConfig(**vq_config_fields(config)))
            return Plan({"image_tokenizer": part}, TAMING_RENAMES, VQ_DROPS)
        if component == "ar_prior":
            from ..modeling.llamagen.configuration_llamagen_prior import LlamaGenPriorConfig
            from ..modeling.llamagen.modeling_llamagen_prior import LlamaGenPrior

            ours = LlamaGenPriorConfig(**prior_config_fields(config))
            part = Part(LlamaGenPrior, ours, prior_settings(ours.condition))
            return Plan({"prior": part}, PRIOR_RENAMES, PRIOR_DROPS)
        return super().plan(component, config)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """ADM's centre crop, [-1, 1]."""
        from ..modeling.image_processing_adm import AdmCropProcessor

        if component != "tokenizer":
            return None
        return AdmCropProcessor.for_size(vq_config_fields(config)["image_size"], (-1.0, 1.0))


VQ_KEYS = {
    *("codebook_size", "codebook_embed_dim", "codebook_l2_norm", "codebook_show_usage", "commit_loss_beta"),
    *("entropy_loss_ratio", "encoder_ch_mult", "decoder_ch_mult", "z_channels", "dropout_p", "fixture_overrides"),
}
PRIOR_KEYS = {
    *("dim", "n_layer", "n_head", "n_kv_head", "multiple_of", "ffn_dim_multiplier", "rope_base", "norm_eps"),
    *("initializer_range", "token_dropout_p", "attn_dropout_p", "resid_dropout_p", "ffn_dropout_p", "drop_path_rate"),
    *("num_classes", "caption_dim", "class_dropout_prob", "model_type", "vocab_size", "cls_token_num", "block_size"),
    *("max_batch_size", "max_seq_len", "fixture_overrides"),
}


def prior_settings(condition: str) -> dict[str, Any]:
    """Sampling as published: guidance 2.0 (class), or 7.5 and top-k 1000 (text)."""
    common = {"cfg_interval": -1, "temperature": 1.0, "top_p": 1.0, "min_p": 0.0}
    if condition == "text":
        return {**common, "cfg_scale": 7.5, "top_k": 1000}
    return {**common, "cfg_scale": 2.0, "top_k": 0}


SIZES = {
    "B": {"n_layer": 12, "dim": 768, "n_head": 12},
    "L": {"n_layer": 24, "dim": 1024, "n_head": 16},
    "XL": {"n_layer": 36, "dim": 1280, "n_head": 20},
    "XXL": {"n_layer": 48, "dim": 1536, "n_head": 24},
    "3B": {"n_layer": 24, "dim": 3200, "n_head": 32},
}
VQ = {
    "codebook_size": 16384,
    "codebook_embed_dim": 8,
    "codebook_l2_norm": True,
    "codebook_show_usage": True,
    "commit_loss_beta": 0.25,
    "entropy_loss_ratio": 0.0,
    "z_channels": 256,
    "dropout_p": 0.0,
}


def _prior(size: str, pixels: int, text: bool = False) -> dict[str, Any]:
    condition = {"model_type": "t2i", "cls_token_num": 120, "caption_dim": 2048} if text else {"model_type": "c2i"}
    return {"vocab_size": 16384, "block_size": (pixels // 16) ** 2, "cls_token_num": 1, **SIZES[size], **condition}


def _vq(mult: list[int]) -> dict[str, Any]:
    return {**VQ, "encoder_ch_mult": mult, "decoder_ch_mult": mult}


DS16, DS8 = _vq([1, 1, 2, 2, 4]), _vq([1, 2, 2, 4])
CLASS_REPO, TEXT_REPO = "FoundationVision/LlamaGen", "peizesun/llamagen_t2i"
LlamaGenAdapter.presets = {
    "vq_ds16_c2i": Preset("tokenizer", DS16, CLASS_REPO, "vq_ds16_c2i.pt"),
    "vq_ds8_c2i": Preset("tokenizer", DS8, CLASS_REPO, "vq_ds8_c2i.pt"),
    "vq_ds16_t2i": Preset("tokenizer", DS16, TEXT_REPO, "vq_ds16_t2i.pt"),
    **{
        f"c2i_{size}_{pixels}": Preset("ar_prior", _prior(size, pixels), CLASS_REPO, f"c2i_{size}_{pixels}.pt")
        for size, pixels in (("B", 256), ("B", 384), ("L", 256), ("L", 384), ("XL", 384), ("XXL", 384), ("3B", 384))
    },
    **{
        f"t2i_XL_{stage}": Preset("ar_prior", _prior("XL", pixels, True), TEXT_REPO, f"t2i_XL_{stage}.pt")
        for stage, pixels in (("stage1_256", 256), ("stage2_512", 512))
    },
}

ADAPTER = LlamaGenAdapter()
