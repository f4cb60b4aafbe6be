"""Original checkpoints of UniTok: the tokenizer with its text tower, and LlamaGen-like priors of several codebooks."""

import re
from typing import Any

from .adapter import Adapter, ConversionError, Part, Plan, Preset, State
from .llamagen import PRIOR_DROPS, PRIOR_RENAMES, prior_config_fields, prior_settings

# what a model name stands for: widths of the two stages and of the ViT, blocks of the stages, ...
VITAMIN = {
    "vitamin_large": {
        "dims": (160, 320, 1024),
        "conv_depths": (2, 4),
        "stem": 160,
        "depth": 31,
        "heads": 16,
        "dec_depths": (4, 2),
    },
}
PROJECTIONS = {"attn": "attention", "linear": "linear"}
CONVOLUTIONS = [
    (
        r"^encoder\.patch_embed\.backbone\.pool\.(norm|proj)\.",
        lambda m: f"encoder.pool_{m[1].replace('proj', 'conv')}.",
    ),
    (r"^encoder\.patch_embed\.backbone\.", "encoder."),
    (r"^encoder\.stem\.norm1\.", "encoder.stem.norm."),
    (r"^encoder\.pos_embed$", "encoder.position_embedding"),
    (r"^(encoder|decoder)\.blocks\.", r"\1.layers."),
    (r"^decoder\.up_conv(\d)\.", lambda m: f"decoder.upsampler.upsample.{int(m[1]) - 1}."),
    (r"\.conv1\.conv\.", ".conv1."),
    (r"^(decoder\.upsampler\.upsample\.3)\.norm1\.", r"\1.norm."),
    (r"\.(shortcut|up)\.(conv|expand)\.", r".\1."),
    (r"\.pre_norm\.", ".norm."),
    (r"\.conv1_1x1\.", ".expand."),
    (r"\.conv2_kxk\.", ".depthwise."),
    (r"\.conv3_1x1\.", ".project."),
]
TEXT = [
    (r"^text_encoder\.(token_embedding)\.", r"text_encoder.text_model.embeddings.\1."),
    (r"^text_encoder\.positional_embedding$", "text_encoder.text_model.embeddings.position_embedding.weight"),
    (r"^text_encoder\.ln_final\.", "text_encoder.text_model.final_layer_norm."),
    (r"^text_encoder\.text_projection$", "text_encoder.text_projection.weight"),
    (r"^text_encoder\.transformer\.resblocks\.", "text_encoder.text_model.encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.(in_proj_|out_proj\.)", r".self_attn.\1"),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
]
RENAMES = [(r"^quantizer\.codebooks\.(\d+)\.codebook\.", r"quantizers.\1.embedding."), *CONVOLUTIONS, *TEXT]
DROPS = {
    r"quantizer\.codebooks\.\d+\.vocab_usage": "running code usage, a figure of training",
    r"(post_)?quant_proj\.attn\.zero_k_bias": "a constant of zeros: keys have no bias",
}


def unitok_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the authors' arguments."""
    if config.get("num_query"):
        raise ConversionError("num_query: no published checkpoint has query tokens.")
    shape = {**VITAMIN.get(config["model"], {}), **config.get("fixture_overrides", {}).get("vitamin", {})}
    books = config["num_codebooks"]
    return {
        "image_size": config.get("img_size", 256),
        "stem_width": shape["stem"],
        "conv_widths": tuple(shape["dims"][:2]),
        "encoder_stage_depths": tuple(shape["conv_depths"]),
        "decoder_stage_depths": tuple(shape["dec_depths"]),
        "hidden_size": shape["dims"][2],
        "num_hidden_layers": shape["depth"],
        "num_attention_heads": shape["heads"],
        "num_codebooks": books,
        "codebook_size": config["vocab_size"] // books,
        "latent_width": config["vocab_width"],
        "commitment_cost": float(config.get("vq_beta", 0.25)),
        "projection": PROJECTIONS[config["quant_proj"]],
        "embed_dim": config.get("embed_dim", 768),
    }


def text_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The same for the text tower."""
    return {
        "text_hidden_size": config.get("text_width", 768),
        "text_num_layers": config.get("text_layers", 12),
        "text_num_heads": config.get("text_heads", 12),
        "text_vocab_size": config.get("text_vocab_size", 49408),
        "text_context_length": config.get("text_context_length", 77),
    }


def unitok_surgery(state: State) -> State:
    """Fused q, k, v of the projections and of the text tower as layers of their own; vectors without empty axes."""
    from ..modeling.layers.query_block import split_packed_projections
    from ..modeling.layers.separate_attention import split_fused_qkv

    projections = {name: state.pop(name) for name in list(state) if "quant_proj.attn." in name}
    tower = {name: state.pop(name) for name in list(state) if name.startswith("text_encoder.")}
    state |= split_fused_qkv(projections)
    for name, tensor in split_packed_projections(tower).items():
        state[re.sub(r"\.self_attn\.([qkv])\.", r".self_attn.\1_proj.", name)] = tensor
    state["encoder.position_embedding"] = state["encoder.position_embedding"].flatten()
    if "text_encoder.text_projection.weight" in state:
        state["text_encoder.text_projection.weight"] = state["text_encoder.text_projection.weight"].t()
    return state


EMBEDDERS = {"sum": "sum", "custom": "codes"}
MULTI_CODE_RENAMES = [
    (r"^tok_embeddings\.quantizer\.codebooks\.(\d+)\.codebook\.", r"token_embedding.tables.\1."),
    (r"^tok_embeddings\.mm_projector\.0\.", "token_embedding.norm."),
    (r"^tok_embeddings\.mm_projector\.1\.", "token_embedding.fc1."),
    (r"^tok_embeddings\.mm_projector\.3\.", "token_embedding.fc2."),
    (r"^(tok_embeddings|output)\.codebooks\.", r"\1.tables."),
    *PRIOR_RENAMES,
]
MULTI_CODE_DROPS = {
    **PRIOR_DROPS,
    r"tok_embeddings\.quantizer\.codebooks\.\d+\.vocab_usage": "running code usage, a figure of training",
    r"tok_embeddings\.post_quant_proj\.attn\.zero_k_bias": "a constant of zeros: keys have no bias",
}


def prior_plan(config: dict[str, Any]) -> Plan:
    """
    The plan of a prior: LlamaGen's options, and those of several ids at a position.

    `token_embedder` is our addition to the authors' arguments, which do not say it: "sum" (published) or "custom".
    """
    from ..modeling.unitok.configuration_unitok_prior import UniTokPriorConfig
    from ..modeling.unitok.modeling_unitok_prior import UniTokPrior

    books = config["num_codebooks"]
    fields = prior_config_fields(config) | {"codebook_size": config["vocab_size"] // books}
    ours = UniTokPriorConfig(
        **fields,
        num_codebooks=books,
        num_head_layers=config.get("n_output_layer", 1),
        id_embedding=EMBEDDERS[config.get("token_embedder", "sum")],
    )
    part = Part(UniTokPrior, ours, prior_settings("class"))
    return Plan({"prior": part}, MULTI_CODE_RENAMES, MULTI_CODE_DROPS, prior_surgery)


def prior_surgery(state: State) -> State:
    """The fused q, k, v of the embedding's projection as layers of their own."""
    from ..modeling.layers.separate_attention import split_fused_qkv

    projection = {name: state.pop(name) for name in list(state) if ".post_quant_proj.attn." in name}
    return state | split_fused_qkv(projection)


class UniTokAdapter(Adapter):
    """UniTok's tokenizer, and priors on its ids."""

    system = "unitok"
    wrappers = ("trainer.unitok", "unitok", *Adapter.wrappers)

    def recognise(self, config: dict[str, Any]) -> str | None:
        """The training arguments that lie beside the weights (MedITok's have one more), or a prior's `ModelArgs`."""
        if {"dim", "n_layer", "num_codebooks", "n_output_layer"} <= set(config):
            return "ar_prior"
        ours = {"num_codebooks", "vocab_width", "quant_proj", "vocab_size"} <= set(config)
        return "tokenizer" if ours and "drop_alignment" not in config else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """See the functions above. `causal_projection` is our addition, for the first checkpoint."""
        if component == "ar_prior":
            return prior_plan(config)
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.unitok.configuration_unitok import UniTokConfig
        from ..modeling.unitok.modeling_unitok import UniTokModel

        causal = bool(config.get("causal_projection", False))
        ours = UniTokConfig(**unitok_fields(config), **text_fields(config), causal_projection=causal)
        return Plan({"image_tokenizer": Part(UniTokModel, ours)}, RENAMES, DROPS, unitok_surgery)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Shorter side resized, centre crop, [-1, 1]."""
        from ..modeling.image_processing_utils import ImageTokenizerProcessor

        if component != "tokenizer":
            return None
        return ImageTokenizerProcessor.for_size(config.get("img_size", 256), (-1.0, 1.0))


LARGE = {
    "model": "vitamin_large",
    "num_query": 0,
    "img_size": 256,
    "quant_proj": "attn",
    "vocab_size": 32768,
    "vocab_width": 64,
    "vq_beta": 0.25,
    "num_codebooks": 8,
    "embed_dim": 768,
}
UniTokAdapter.presets = {
    "unitok_tokenizer": Preset("tokenizer", LARGE, "FoundationVision/unitok_tokenizer", "unitok_tokenizer.pth")
}

ADAPTER = UniTokAdapter()
