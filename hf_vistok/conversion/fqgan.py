"""Original checkpoints of FQGAN: tokenizers, and the FAR priors."""

from typing import Any

from .adapter import Adapter, ConversionError, Part, Plan, Preset
from .llamagen import PRIOR_RENAMES, prior_config_fields, prior_settings

# the names of the codebooks in the order of our ids, and of their feature predictors
CODEBOOKS = {"dual": ("vis", "sem"), "triple": ("vis", "sem_mid", "sem_high")}
ADAPTERS = {
    "vis": "visual_head",
    "sem": "semantic_head",
    "sem_mid": "semantic_head_mid",
    "sem_high": "semantic_head_high",
}
PREDICTORS = {"dual": ("feat_pred_head",), "triple": ("mid_sem_feat_pred", "high_sem_feat_pred")}
FEATURE_SIZES = {"dual": (1024,), "triple": (384, 768)}
BLOCKS = [
    (r"\.transformer\.(\d+)\.", r".layers.\1."),
    (r"\.positional_embedding$", ".position_embedding"),
    (r"\.ln_pre\.", ".norm_pre."),
    (r"\.ln_post\.", ".norm_post."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.in_proj_(weight|bias)$", r".qkv.\1"),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.c_fc\.", ".fc1."),
    (r"\.c_proj\.", ".fc2."),
]


def tokenizer_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration."""
    fixed, kind = config.get("fixture_overrides", {}), config["kind"]
    heads = fixed.get("heads", 8)
    count = len(CODEBOOKS[kind])
    sizes = tuple(fixed.get("feat_dims", FEATURE_SIZES[kind]))[: count - 1]
    return {
        "image_size": fixed.get("image_size", 256),
        "hidden_channels": fixed.get("ch", 128),
        "num_res_blocks": fixed.get("num_res_blocks", 2),
        "norm_num_groups": fixed.get("norm_num_groups", 32),
        "encoder_channel_mult": tuple(config["encoder_ch_mult"]),
        "decoder_channel_mult": tuple(config["decoder_ch_mult"]),
        "z_channels": config.get("z_channels", 256),
        "codebook_size": config.get("codebook_size", 16384),
        "codebook_dim": config.get("codebook_embed_dim", 8),
        "commitment_cost": float(config.get("commit_loss_beta", 0.25)),
        "entropy_loss_ratio": float(config.get("entropy_loss_ratio", 0.0)),
        "disentangle_weight": float(config.get("disentanglement_ratio", 0.1)),
        "num_codebooks": count,
        "adapter_hidden_size": fixed.get("adapter_width", 512),
        "adapter_num_layers": fixed.get("adapter_layers", 6),
        "adapter_num_heads": heads,
        "feature_sizes": sizes if config.get("with_clip_supervision", True) else (),
        "feature_num_layers": fixed.get("feat_pred_layers", 3),
        "feature_num_heads": heads,
    }


def tokenizer_renames(kind: str) -> list[tuple[str, str]]:
    """Names of heads, quantizers and feature predictors; their order in `ids` is the table's."""
    from ..modeling.layers.conv_codec_taming import TAMING_RENAMES

    renames = []
    for i, name in enumerate(CODEBOOKS[kind]):
        renames += [
            (rf"^encoder\.{ADAPTERS[name]}\.0\.", f"heads.{i}.adapter."),
            (rf"^encoder\.(norm_out|conv_out)_{name}\.", rf"heads.{i}.\1."),
            (rf"^quant_conv_{name}\.", f"heads.{i}.quant_conv."),
            (rf"^quantize_{name}\.", f"quantizers.{i}."),
        ]
    for i, name in enumerate(PREDICTORS[kind]):
        renames += [
            (rf"^{name}\.upscale\.", f"feature_predictors.{i}.upscale."),
            (rf"^{name}\.", f"feature_predictors.{i}.blocks."),
        ]
    return [*renames, *BLOCKS, *TAMING_RENAMES]


FAR_RENAMES = [
    (r"^tok_embeddings_(\d+)\.", lambda match: f"token_embedding.tables.{int(match[1]) - 1}."),
    (r"^aggregation_layer\.", "token_embedding.proj."),
    (r"^output_(\d+)\.", lambda match: f"lm_head.projections.{int(match[1]) - 1}."),
    (r"^ar_head\.", "lm_head.layers."),
    *PRIOR_RENAMES,
]


def prior_plan(config: dict[str, Any]) -> Plan:
    """The plan of a FAR prior: LlamaGen's options, and those of the inner head."""
    from ..modeling.fqgan.configuration_far import FARPriorConfig
    from ..modeling.fqgan.modeling_far import FARPrior

    ours = FARPriorConfig(
        **prior_config_fields(config),
        num_codebooks=len(CODEBOOKS[config["kind"]]),
        num_head_layers=config["ar_n_layer"],
    )
    drops = {r"freqs_cis": "a table of rotary positions that some files stored; computed here"}
    return Plan({"prior": Part(FARPrior, ours, prior_settings("class"))}, FAR_RENAMES, drops)


class FQGANAdapter(Adapter):
    """FQGAN with two or three codebooks."""

    system = "fqgan"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """A VQ configuration with `kind`, or FAR's with the number of inner blocks."""
        if config.get("kind") not in CODEBOOKS:
            return None
        return "tokenizer" if "encoder_ch_mult" in config else "ar_prior" if "ar_n_layer" in config else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """See the functions above."""
        if component == "ar_prior":
            return prior_plan(config)
        if component != "tokenizer":
            return super().plan(component, config)
        if config["kind"] not in CODEBOOKS:
            raise ConversionError(f"Unknown kind {config['kind']!r}; known: {', '.join(CODEBOOKS)}.")
        from ..modeling.fqgan.configuration_fqgan import FQGANConfig
        from ..modeling.fqgan.modeling_fqgan import FQGANModel

        part = Part(FQGANModel, FQGANConfig(**tokenizer_fields(config)))
        drops = {r"quantize_\w+\.codebook_used": "the last ids of training, kept for a usage figure"}
        return Plan({"image_tokenizer": part}, tokenizer_renames(config["kind"]), drops)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """ADM's centre crop, [-1, 1]."""
        from ..modeling.image_processing_adm import AdmCropProcessor

        if component != "tokenizer":
            return None
        return AdmCropProcessor.for_size(config.get("fixture_overrides", {}).get("image_size", 256), (-1.0, 1.0))


def _preset(kind: str, factor: int) -> Preset:
    mult = [1, 1, 2, 2, 4] if factor == 16 else [1, 2, 2, 4]
    config = {
        "vq_model": f"VQ-{factor}",
        "kind": kind,
        "codebook_size": 16384,
        "codebook_embed_dim": 8,
        "encoder_ch_mult": mult,
        "decoder_ch_mult": mult,
        "z_channels": 256,
        "with_clip_supervision": True,
        "with_disentanglement": True,
        "disentanglement_ratio": 0.1,
        "commit_loss_beta": 0.25,
        "entropy_loss_ratio": 0.03,
    }
    return Preset("tokenizer", config, "ZechenBai/FQGAN", f"fqgan_{kind}_ds{factor}.pt")


FQGANAdapter.presets = {f"fqgan_{kind}_ds{f}": _preset(kind, f) for kind in CODEBOOKS for f in (16, 8)}

ADAPTER = FQGANAdapter()
