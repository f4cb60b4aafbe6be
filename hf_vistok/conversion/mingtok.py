"""Original checkpoints of MingTok-Vision, alone or inside Ming-UniVision."""

from typing import Any

from .adapter import Adapter, ConversionError, Part, Plan, Preset

RENAMES = [
    (r"^vision\.", ""),
    (r"^low_level_encoder\.", "encoder."),
    (r"^sem_to_pix\.", "pixel_decoder.proj_in."),
    (r"^encoder\.patch_embed\.proj\.", "encoder.patch_embed."),
    (r"^encoder\.cls_token$", "encoder.class_token"),
    (r"^encoder\.pos_embed$", "encoder.position_embedding"),
    (r"^encoder\.out_(norm|proj)\.", r"encoder.\1_out."),
    (r"^semantic_decoder\.in_proj\.", "semantic_decoder.proj_in."),
    (r"\.blocks\.0\.(\d+)\.", r".layers.\1."),
]
DROPS = {r"(model|linear_proj)\..*": "Ming-UniVision's language model: the tokenizer is the part under vision."}
MLPS = {"swiglufused": "swiglu", "swiglu": "swiglu", "mlp": "gelu"}


def _mlp(part: dict[str, Any]) -> str:
    name = part.get("ffn_layer", "mlp")
    if name not in MLPS:
        raise ConversionError(f"Unknown ffn_layer {name!r}; known: {', '.join(MLPS)}.")
    return MLPS[name]


def mingtok_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the authors' `config.json`."""
    encoder, semantic, pixel = (config[name] for name in ("low_level_encoder", "semantic_decoder", "pixel_decoder"))
    if semantic["patch_size"] != encoder["patch_size"] or semantic["in_dim"] != encoder["out_dim"]:
        raise ConversionError("The semantic decoder must have the encoder's patch_size, and its out_dim as in_dim.")
    return {
        "image_size": encoder["img_size"],
        "token_size": encoder["out_dim"],
        "latents_mean": float(config["mean"]),
        "latents_scale": float(config["scaling_factor"]),
        "encoder_patch_size": encoder["patch_size"],
        "encoder_hidden_size": encoder["embed_dim"],
        "encoder_num_layers": encoder["depth"],
        "encoder_mlp": _mlp(encoder),
        "semantic_hidden_size": semantic["embed_dim"],
        "semantic_num_layers": semantic["decoder_depth"],
        "semantic_mlp": _mlp(semantic),
        "pixel_patch_size": pixel["patch_size"],
        "pixel_hidden_size": pixel["embed_dim"],
        "pixel_num_layers": pixel["decoder_depth"],
        "pixel_mlp": _mlp(pixel),
    }


def _drop_batch_axis(state: dict[str, Any]) -> dict[str, Any]:
    name = "encoder.position_embedding"
    if name in state:
        state[name] = state[name][0]
    return state


class MingTokAdapter(Adapter):
    """MingTok-Vision."""

    system = "mingtok"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """The three parts by name."""
        parts = {"low_level_encoder", "semantic_decoder", "pixel_decoder"}
        return "tokenizer" if parts <= set(config) else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """A table of names."""
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.mingtok.configuration_mingtok import MingTokConfig
        from ..modeling.mingtok.modeling_mingtok import MingTokModel

        ours = MingTokConfig(**mingtok_fields(config))
        return Plan({"image_tokenizer": Part(MingTokModel, ours)}, RENAMES, DROPS, _drop_batch_axis)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Shorter side resized (bicubic), centre crop, [-1, 1]."""
        from ..modeling.image_processing_utils import ImageTokenizerProcessor

        size = config["low_level_encoder"]["img_size"] if component == "tokenizer" else None
        return ImageTokenizerProcessor.for_size(size, pixel_range=(-1.0, 1.0)) if size else None


PUBLISHED = {
    "low_level_encoder": {
        "img_size": 512,
        "patch_size": 32,
        "depth": 12,
        "embed_dim": 768,
        "ffn_layer": "swiglufused",
        "out_dim": 32,
    },
    "semantic_decoder": {
        "in_dim": 32,
        "patch_size": 32,
        "embed_dim": 1024,
        "decoder_depth": 24,
        "ffn_layer": "swiglufused",
    },
    "pixel_decoder": {"patch_size": 16, "decoder_depth": 24, "embed_dim": 1024},
    "scaling_factor": 8.09449291,
    "mean": 1.46817409,
    "model_type": "mingtok",
}
MingTokAdapter.presets = {
    "MingTok-Vision": Preset("tokenizer", PUBLISHED, "inclusionAI/MingTok-Vision"),
    # the whole unified model; what is taken of it is its tokenizer
    "Ming-UniVision-16B-A3B": Preset("tokenizer", PUBLISHED, "inclusionAI/Ming-UniVision-16B-A3B"),
}

ADAPTER = MingTokAdapter()
