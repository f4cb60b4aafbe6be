"""Original checkpoints of KARL: pickles without a configuration, so presets; tensors under `ema`."""

from typing import Any

from .adapter import Adapter, ConversionError, Part, Plan, Preset
from .titok import VQGAN_RENAMES, up_renames

SIZES = {"karl_small": (1024, 8, 8)}  # "small" has the width that TiTok's tables call large
RENAMES = [
    (r"^encoder_positional_embedding$", "encoder.position_embedding"),
    (r"^decoder_positional_embedding$", "image_decoder.position_embedding"),
    (r"^decoder_mask_token$", "image_decoder.mask_token"),
    (r"^decoder_latent_tokens_timestep_embed$", "image_decoder.latent_position_embedding"),
    (r"^rec_loss_embeddings$", "encoder.error_embedding.weight"),
    (r"^encoder_ln_pre\.", "encoder.norm_pre."),
    (r"^encoder_ln_post_halt\.", "norm_halt."),
    (r"^encoder_ln_post\.", "norm_post."),
    (r"^pre_quantizer_mlp\.", "proj."),
    (r"^halting_mlp\.", "halting_head."),
    (r"^decoder_embed\.", "image_decoder.embed."),
    (r"^patch_embed\.", "encoder.patch_embed."),
    (r"^(encoder|decoder)\.transformer\.", r"\1.layers."),
    (r"^latent_tokens$", "encoder.latent_tokens"),
    (r"\.ln_pre\.", ".norm_pre."),
    (r"\.ln_post\.", ".norm_post."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.in_proj_(weight|bias)$", r".qkv.\1"),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.c_fc\.", ".fc1."),
    (r"\.c_proj\.", ".fc2."),
    (r"^decoder\.ffn\.", "image_decoder.head."),
    (r"^decoder\.", "image_decoder."),
]
VQGAN_BASE = [
    (r"^base_tokenizer\.vqgan\.quantize\.embedding\.", "base.codebook."),
    (r"^base_tokenizer\.vqgan\.", "base."),
    (r"^(base\.\w+)\.mid\.block_1\.", r"\1.mid.0."),
    (r"^(base\.\w+)\.mid\.block_2\.", r"\1.mid.1."),
    (r"\.upsample\.conv\.", ".upsample_conv."),
    *VQGAN_RENAMES,
]
VAE_BASE = [
    (r"^base_tokenizer\.vae\.", "base."),
    (r"^(base\.encoder\.down\.\d+)\.block\.", r"\1.blocks."),
    (r"^(base\.encoder\.down\.\d+)\.attn\.", r"\1.attentions."),
    (r"^base\.encoder\.down\.(\d+)\.downsample\.conv\.", r"base.encoder.downsample.\1."),
    (r"\.mid\.block_(\d)\.", r".mid.block\1."),
    (r"\.mid\.attn_1\.", ".mid.attention."),
    (r"nin_shortcut", "shortcut"),
]


def vae_up_renames(levels: int) -> list[tuple[str, str]]:
    """The authors number the decoder's levels from fine to coarse, we in the order in which they run."""
    renames = []
    for level in range(levels):
        ours = levels - 1 - level
        renames += [
            (rf"^base\.decoder\.up\.{level}\.block\.", f"base.decoder.UP.{ours}.blocks."),
            (rf"^base\.decoder\.up\.{level}\.attn\.", f"base.decoder.UP.{ours}.attentions."),
            (rf"^base\.decoder\.up\.{level}\.upsample\.conv\.", f"base.decoder.upsample.{ours}."),
        ]
    return [*renames, (r"^base\.decoder\.UP\.", "base.decoder.up.")]


def base_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of the grid tokenizer inside."""
    base, fixed = config["base_tokenizer_config"], config.get("fixture_overrides", {})
    if config["base_tokenizer"] == "vqgan":
        inner = base["ddconfig"]
        return {
            "base": "vqgan",
            "base_channels": inner["ch"],
            "base_channel_mult": tuple(inner["ch_mult"]),
            "base_num_res_blocks": inner["num_res_blocks"],
            "base_latent_channels": base["embed_dim"],
            "base_codebook_size": base["n_embed"],
        }
    if config["base_tokenizer"] != "vae":
        raise ConversionError(f"Unknown base tokenizer {config['base_tokenizer']!r}; known: vqgan, vae.")
    mult = tuple(base["ch_mult"])
    return {
        "base": "vae",
        "base_channels": fixed.get("vae_base_channels", 128),
        "base_channel_mult": mult,
        "base_num_res_blocks": fixed.get("vae_num_res_blocks", 2),
        "base_latent_channels": base["embed_dim"],
        # attention where a picture of 256 pixels has 16 positions per side, whatever the picture's real size
        "base_attention": 256 >> (len(mult) - 1) == 16,
    }


def config_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration."""
    inner, fixed = config["karl_yaml"], config.get("fixture_overrides", {})
    width, layers, heads = SIZES.get(config["model"], (None, None, None))
    sizes = {
        f"{ours}_{name}": fixed.get(f"{ours}_{theirs}", default)
        for ours in ("encoder", "decoder")
        for name, theirs, default in (
            ("hidden_size", "width", width),
            ("num_layers", "layers", layers),
            ("num_heads", "heads", heads),
        )
    }
    if None in sizes.values():
        raise ConversionError(f"Unknown size {config['model']!r}; known: {', '.join(SIZES)}.")
    return {
        **sizes,
        **base_fields(config),
        "image_size": fixed.get("image_size", 256),
        "quantize": bool(config["quantize_latent"]),
        "codebook_size": inner["vq_codebook_size"],
        "token_size": inner["vq_token_dim"],
        "commitment_cost": float(inner.get("vq_commitment_cost", 0.25)),
        "use_l2_norm": inner.get("vq_use_l2_norm", True),
        "dynamic_halting": inner.get("dynamic_halting", True),
        "patch_size": inner.get("patch_size", 16),
        "max_grid": fixed.get("max_grid_tokens", 64),
    }


class KarlAdapter(Adapter):
    """KARL with either base tokenizer, discrete or continuous."""

    system = "karl"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """A configuration with the part `karl_yaml`."""
        return "tokenizer" if "karl_yaml" in config else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """Names of TiTok's transformers, and the base tokenizer's in its dialect."""
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.karl.configuration_karl import KarlConfig
        from ..modeling.karl.modeling_karl import KarlModel

        ours = KarlConfig(**config_fields(config))
        levels = len(ours.base_channel_mult)
        base = [*VQGAN_BASE, *up_renames("base.decoder", levels)]
        if ours.base == "vae":
            base = [*VAE_BASE, *vae_up_renames(levels)]
        drops = {r"gan_losses\..*": "discriminators and perceptual networks of the training"}
        # the transformers' rules would also see "encoder." and "decoder." inside the base tokenizer: it goes first
        return Plan({"image_tokenizer": Part(KarlModel, ours)}, [*base, *RENAMES], drops)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Shorter side resized (bicubic), centre crop, [0, 1]."""
        from ..modeling.image_processing_utils import ImageTokenizerProcessor

        return ImageTokenizerProcessor.for_size(config.get("fixture_overrides", {}).get("image_size", 256))


def _preset(base: str, quantize: bool) -> Preset:
    inner = {"vqgan": {"embed_dim": 256, "n_embed": 1024}, "vae": {"embed_dim": 16, "ch_mult": [1, 1, 2, 2, 4]}}[base]
    if base == "vqgan":
        inner["ddconfig"] = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2}
    vq = {"vq_codebook_size": 4096, "vq_token_dim": 12, "vq_commitment_cost": 0.25, "vq_use_l2_norm": True}
    config = {
        "model": "karl_small",
        "base_tokenizer": base,
        "quantize_latent": quantize,
        "karl_yaml": {**vq, "dynamic_halting": True, "patch_size": 16},
        "base_tokenizer_config": inner,
    }
    kind = "quantized" if quantize else "continuous"
    return Preset("tokenizer", config, filename=f"karl_small_{base}_{kind}_latents.pth")


KarlAdapter.presets = {
    f"karl_small_{base}_{kind}_latents": _preset(base, kind == "quantized")
    for base in ("vqgan", "vae")
    for kind in ("quantized", "continuous")
}

ADAPTER = KarlAdapter()
