"""Original checkpoints of TiTok, its masked priors, and MaskGIT-VQGAN."""

from typing import Any

from .adapter import Adapter, ConversionError, Part, Plan, Preset

SIZES = {
    "small": {"width": 512, "num_layers": 8, "num_heads": 8},
    "base": {"width": 768, "num_layers": 12, "num_heads": 12},
    "large": {"width": 1024, "num_layers": 24, "num_heads": 16},
}
PIXEL_DECODER = {
    "channel_mult": [1, 1, 2, 2, 4],
    "hidden_channels": 128,
    "num_res_blocks": 2,
    "z_channels": 256,
    "dropout": 0.0,
    "codebook_size": 1024,
}
VQGAN_RENAMES = [
    (r"nin_shortcut", "shortcut"),
    (r"encoder\.down\.(\d+)\.block\.", r"encoder.down.\1."),
]
VIT_RENAMES = [
    (r"^(encoder|decoder)\.transformer\.", r"\1.layers."),
    (r"^latent_tokens$", "encoder.latent_tokens"),
    (r"\.positional_embedding$", ".position_embedding"),
    (r"\.latent_token_positional_embedding$", ".latent_position_embedding"),
    (r"\.ln_pre\.", ".norm_pre."),
    (r"\.ln_post\.", ".norm_post."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.in_proj_(weight|bias)$", r".qkv.\1"),
    (r"\.out_proj\.", ".proj."),
    (r"\.c_fc\.", ".fc1."),
    (r"\.c_proj\.", ".fc2."),
    (r"^encoder\.conv_out\.", "encoder.proj."),
    (r"^decoder\.decoder_embed\.", "decoder.embed."),
    (r"^decoder\.conv_out\.", "conv_out."),
    (r"^pixel_quantize\.embedding\.", "pixel_codebook."),
]
TRAINING_BUFFERS = {r"quantize\.embed_prob": "running code usage, read in training alone (clustering_vq)"}
BERT_RENAMES = [(r"^model\.lm_head\.", "lm_head."), (r"^model\.(embeddings|encoder)\.", r"model.bert.\1.")]
UVIT_RENAMES = [
    (r"^(in_blocks|out_blocks|mid_block|norm|embeddings)\.", r"model.\1."),
    (r"^model\.out_blocks\.(\d+)\.skip_linear\.", r"model.skip_linears.\1."),
    (r"^pos_embed$", "model.position_embedding"),
]


def vit_sizes(config: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Named transformer sizes: the published ones, and those of `fixture_overrides`."""
    return {**SIZES, **config.get("fixture_overrides", {}).get("model_sizes", {})}


def titok_config_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the authors' `config.json`."""
    vq, sizes = config["model"]["vq_model"], vit_sizes(config)
    encoder, decoder = (_size(sizes, vq[f"vit_{part}_model_size"]) for part in ("enc", "dec"))
    pixel = {**PIXEL_DECODER, **config.get("fixture_overrides", {}).get("pixel_decoder", {})}
    quantizer = "kl" if vq.get("quantize_mode", "vq") == "vae" else "vq"
    legacy, finetuned = vq.get("is_legacy", True), vq.get("finetune_decoder", True)
    if finetuned and not legacy:
        raise ConversionError("finetune_decoder=True needs is_legacy=True: one-stage models have no pixel decoder.")
    fields = {
        "image_size": config["dataset"]["preprocessing"]["crop_size"],
        "num_latent_tokens": vq["num_latent_tokens"],
        "token_size": vq["token_size"],
        "quantizer": quantizer,
        "pixel_head": "patch" if not legacy else ("vqgan" if finetuned else "proxy"),
        "scrambled_latents": legacy,
        "encoder_patch_size": vq["vit_enc_patch_size"],
        "encoder_hidden_size": encoder["width"],
        "encoder_num_layers": encoder["num_layers"],
        "encoder_num_heads": encoder["num_heads"],
        "decoder_patch_size": vq["vit_dec_patch_size"],
        "decoder_hidden_size": decoder["width"],
        "decoder_num_layers": decoder["num_layers"],
        "decoder_num_heads": decoder["num_heads"],
        "proxy_codebook_size": pixel["codebook_size"],
        "proxy_channels": pixel["z_channels"],
        "pixel_hidden_channels": pixel["hidden_channels"],
        "pixel_channel_mult": tuple(pixel["channel_mult"]),
        "pixel_num_res_blocks": pixel["num_res_blocks"],
        "pixel_dropout": pixel["dropout"],
    }
    if quantizer == "vq":
        fields |= {
            "codebook_size": vq["codebook_size"],
            "use_l2_norm": vq.get("use_l2_norm", False),
            "commitment_cost": vq.get("commitment_cost", 0.25),
        }
    return fields


def _size(sizes: dict[str, dict[str, int]], name: str) -> dict[str, int]:
    if name not in sizes:
        raise ConversionError(f"Unknown transformer size {name!r}; known: {', '.join(sizes)}.")
    return sizes[name]


def titok_plan(model: type, model_config: Any, drops: dict[str, str] | None = None) -> Plan:
    """The plan of a TiTok-shaped tokenizer: names, 1x1 convolutions that are linear layers here, the pixel decoder."""
    levels = len(model_config.pixel_channel_mult)
    patch_head = model_config.pixel_head == "patch"
    heads = [(r"^decoder\.ffn\.0\.", "decoder.head." if patch_head else "decoder.head.0.")]
    heads += [] if patch_head else [(r"^decoder\.ffn\.2\.", "decoder.head.2.")]
    return Plan(
        parts={"image_tokenizer": Part(model, model_config)},
        renames=[*VIT_RENAMES, *heads, *VQGAN_RENAMES, *up_renames("pixel_decoder", levels)],
        drops={**TRAINING_BUFFERS, **(drops or {})},
        surgery=_flatten_1x1,
    )


def up_renames(prefix: str, levels: int) -> list[tuple[str, str]]:
    """The authors number the decoder's levels from fine to coarse, we in the order in which they run."""
    renames = []
    for level in range(levels):
        ours = levels - 1 - level
        renames.append((rf"^{prefix}\.up\.{level}\.block\.", f"{prefix}.UP.{ours}."))
        renames.append((rf"^{prefix}\.up\.{level}\.upsample_conv\.", f"{prefix}.upsample.{ours}."))
    return [*renames, (rf"^{prefix}\.UP\.", f"{prefix}.up.")]


def _flatten_1x1(state: dict[str, Any]) -> dict[str, Any]:
    for name in ("encoder.proj.weight", "decoder.head.weight", "decoder.head.0.weight", "decoder.head.2.weight"):
        if name in state:
            state[name] = state[name].flatten(1)
    return state


def vqgan_plan(config: dict[str, Any]) -> Plan:
    """The plan of MaskGIT-VQGAN by itself; its configuration is flat."""
    from ..modeling.maskgit_vqgan.configuration_maskgit_vqgan import MaskGitVQGANConfig
    from ..modeling.maskgit_vqgan.modeling_maskgit_vqgan import MaskGitVQGANModel

    ours = MaskGitVQGANConfig(
        image_size=config.get("resolution", 256),
        num_channels=config.get("num_channels", 3),
        hidden_channels=config["hidden_channels"],
        channel_mult=tuple(config["channel_mult"]),
        num_res_blocks=config["num_res_blocks"],
        latent_channels=config["z_channels"],
        codebook_size=config.get("codebook_size", 1024),
        dropout=float(config.get("dropout", 0.0)),
    )
    renames = [*VQGAN_RENAMES, *up_renames("decoder", len(ours.channel_mult))]
    return Plan({"image_tokenizer": Part(MaskGitVQGANModel, ours)}, renames)


def prior_plan(config: dict[str, Any]) -> Plan:
    """The plan of a masked prior: `model.generator` of the authors' configuration."""
    from ..modeling.maskgit.configuration_maskgit import MaskGitPriorConfig
    from ..modeling.maskgit.modeling_maskgit import MaskGitPrior

    generator, vq = config["model"]["generator"], config["model"]["vq_model"]
    kinds = {"vit": "bert", "uvit": "uvit"}
    kind = kinds.get(str(generator["model_type"]).lower())
    if kind is None:
        raise ConversionError(f"Unknown generator {generator['model_type']!r}; known: ViT, UViT.")
    ours = MaskGitPriorConfig(
        architecture=kind,
        codebook_size=vq["codebook_size"],
        num_image_tokens=generator["image_seq_len"],
        num_classes=generator["condition_num_classes"],
        hidden_size=generator["hidden_size"],
        num_hidden_layers=generator["num_hidden_layers"],
        num_attention_heads=generator["num_attention_heads"],
        intermediate_size=generator["intermediate_size"],
        hidden_dropout=float(generator.get("dropout", 0.1)),
        attention_dropout=float(generator.get("attn_drop", 0.1)),
        class_dropout=float(generator.get("class_label_dropout", 0.1)),
    )
    drops = {r"model\.embeddings\.position_ids": "a table of 0, 1, 2, ... that older checkpoints stored"}
    return Plan(
        {"prior": Part(MaskGitPrior, ours, prior_settings(generator))},
        BERT_RENAMES if kind == "bert" else UVIT_RENAMES,
        drops if kind == "bert" else {},
        None if kind == "bert" else _drop_batch_axis,
    )


def _drop_batch_axis(state: dict[str, Any]) -> dict[str, Any]:
    if "model.position_embedding" in state:
        state["model.position_embedding"] = state["model.position_embedding"][0]
    return state


def prior_settings(generator: dict[str, Any]) -> dict[str, Any]:
    """Published sampling settings. Logits are annealed in the authors' evaluation, whatever the configuration says."""
    return {
        "num_inference_steps": generator.get("num_steps", 8),
        "cfg_scale": float(generator.get("guidance_scale", 4.5)),
        "cfg_schedule": generator.get("guidance_decay", "constant"),
        "cfg_power": float(generator.get("guidance_scale_pow", 3.0)),
        "choice_temperature": float(generator.get("randomize_temperature", 1.0)),
        "anneal_logits": True,
    }


class TiTokAdapter(Adapter):
    """TiTok in its three modes, its priors, and MaskGIT-VQGAN."""

    system = "titok"
    is_base = True

    def recognise(self, config: dict[str, Any]) -> str | None:
        """TiTok's nested configuration, or the flat one of MaskGIT-VQGAN."""
        model = config.get("model")
        if isinstance(model, dict):
            if isinstance(model.get("generator"), dict) and "condition_num_classes" in model["generator"]:
                return "masked_prior"
            vq = model.get("vq_model")
            if isinstance(vq, dict) and "num_latent_tokens" in vq and "type" not in model:
                return "tokenizer" if "vit_enc_model_size" in vq else None
        return "tokenizer" if is_vqgan_config(config) else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """See the functions above."""
        if component == "masked_prior":
            return prior_plan(config)
        if component != "tokenizer":
            return super().plan(component, config)
        if is_vqgan_config(config):
            return vqgan_plan(config)
        from ..modeling.titok.configuration_titok import TiTokConfig
        from ..modeling.titok.modeling_titok import TiTokModel

        return titok_plan(TiTokModel, TiTokConfig(**titok_config_fields(config)))

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Shorter side resized (bicubic), centre crop, [0, 1]."""
        from ..modeling.image_processing_utils import ImageTokenizerProcessor

        if component != "tokenizer":
            return None
        vqgan = is_vqgan_config(config)
        size = config.get("resolution", 256) if vqgan else config["dataset"]["preprocessing"]["crop_size"]
        return ImageTokenizerProcessor.for_size(size)


def is_vqgan_config(config: dict[str, Any]) -> bool:
    """Whether this is the flat configuration of MaskGIT-VQGAN."""
    return {"channel_mult", "hidden_channels", "z_channels", "num_res_blocks"} <= set(config)


def tokenizer_config(encoder: str, decoder: str, tokens: int, **quantizer: Any) -> dict[str, Any]:
    """A tokenizer's configuration as the authors write it."""
    return {
        "model": {
            "vq_model": {
                "vit_enc_model_size": encoder,
                "vit_dec_model_size": decoder,
                "vit_enc_patch_size": 16,
                "vit_dec_patch_size": 16,
                "num_latent_tokens": tokens,
                **quantizer,
            }
        },
        "dataset": {"preprocessing": {"crop_size": 256}},
    }


def generator_config(kind: str, tokens: int, **sampling: Any) -> dict[str, Any]:
    """A masked prior's configuration as the authors write it."""
    shapes = {"ViT": (768, 24, 3072), "UViT": (1024, 20, 4096)}
    width, layers, hidden = shapes[kind]
    generator = {
        "model_type": kind,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "intermediate_size": hidden,
        "image_seq_len": tokens,
        "condition_num_classes": 1000,
        **sampling,
    }
    return {"model": {"vq_model": {"codebook_size": 4096, "num_latent_tokens": tokens}, "generator": generator}}


TWO_STAGE = {"codebook_size": 4096, "token_size": 12, "use_l2_norm": True, "commitment_cost": 0.25}
VQ8K = {"codebook_size": 8192, "token_size": 64, "use_l2_norm": False, "commitment_cost": 0.25}
ONE_STAGE = {"finetune_decoder": False, "is_legacy": False}
KL16 = {"quantize_mode": "vae", "token_size": 16, **ONE_STAGE}


def _published(name: str, component: str, config: dict[str, Any]) -> tuple[str, Preset]:
    return name, Preset(component, config, repo=f"yucornetto/{name}")


TiTokAdapter.presets = dict(
    [
        _published(f"tokenizer_titok_{name}_imagenet", "tokenizer", tokenizer_config(*sizes, **quantizer))
        for name, sizes, quantizer in (
            ("l32", ("large", "large", 32), TWO_STAGE),
            ("b64", ("base", "base", 64), TWO_STAGE),
            ("s128", ("small", "small", 128), TWO_STAGE),
            ("bl64_vq8k", ("base", "large", 64), {**VQ8K, **ONE_STAGE}),
            ("bl128_vq8k", ("base", "large", 128), {**VQ8K, **ONE_STAGE}),
            ("sl256_vq8k", ("small", "large", 256), {**VQ8K, **ONE_STAGE}),
            ("ll32_vae_c16", ("large", "large", 32), KL16),
            ("bl64_vae_c16", ("base", "large", 64), KL16),
            ("bl128_vae_c16", ("base", "large", 128), KL16),
        )
    ]
    + [
        _published(f"generator_titok_{name}_imagenet", "masked_prior", generator_config(kind, tokens, **sampling))
        for name, kind, tokens, sampling in (
            (
                "l32",
                "ViT",
                32,
                {"num_steps": 8, "guidance_scale": 4.5, "guidance_decay": "linear", "randomize_temperature": 9.5},
            ),
            (
                "b64",
                "ViT",
                64,
                {"num_steps": 8, "guidance_scale": 3.0, "guidance_decay": "linear", "randomize_temperature": 11.0},
            ),
            (
                "s128",
                "UViT",
                128,
                {
                    "num_steps": 64,
                    "guidance_scale": 6.9,
                    "guidance_decay": "power-cosine",
                    "randomize_temperature": 2.8,
                },
            ),
        )
    ],
    **{
        "maskgit-vqgan-imagenet-f16-256": Preset(
            "tokenizer", PIXEL_DECODER, "fun-research/TiTok", "maskgit-vqgan-imagenet-f16-256.bin"
        )
    },
)

ADAPTER = TiTokAdapter()
