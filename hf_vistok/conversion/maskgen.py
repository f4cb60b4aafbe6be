"""Original checkpoints of MaskGen, over ids and over continuous tokens."""

from typing import Any

import torch

from .adapter import Adapter, ConversionError, Part, Plan, Preset
from .clip_text import clip_text_part

SHARED = [
    (r"^(?:decoder_)?blocks\.", "trunk.blocks."),
    (r"^(?:decoder_)?norm\.", "trunk.norm."),
    (r"^(?:text_embed_proj|text_emb)\.", "text_proj."),
    (r"^(?:cond_pooled_proj|text_pooled_emb)\.", "pooled_proj."),
    (r"^(?:pos_embed|decoder_pos_embed_learned)$", "position_embedding"),
]
HEAD = [
    (r"^z_proj_ln\.", "latent_norm."),
    (r"^z_proj\.", "latent_proj."),
    (r"^diffusion_pos_embed_learned$", "diffusion_position_embedding"),
    (r"^diffloss\.net\.res_blocks\.", "head.blocks."),
    (r"^diffloss\.net\.final_layer\.linear\.", "head.output_proj."),
    (r"^diffloss\.net\.final_layer\.", "head."),
    (r"^diffloss\.net\.cond_embed\.", "head.condition_embed."),
    (r"^diffloss\.net\.", "head."),
    (r"\.in_ln\.", ".norm."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
    (r"\.time_embed\.mlp\.", ".time_embed."),
    (r"\.adaLN_modulation\.1\.", ".modulation.linear."),
]
POSITIONS = ("position_embedding", "diffusion_position_embedding")


def shared_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields that both configurations have."""
    vq, maskgen = config["model"]["vq_model"], config["model"]["maskgen"]
    return {
        "num_image_tokens": vq["num_latent_tokens"],
        "hidden_size": maskgen["decoder_embed_dim"],
        "num_hidden_layers": maskgen["decoder_depth"],
        "num_attention_heads": maskgen["decoder_num_heads"],
        "text_embed_dim": vq.get("text_embed_dim", 768),
        "micro_condition": maskgen.get("micro_condition", True),
        "micro_condition_dim": maskgen.get("micro_condition_embed_dim", 256),
        "text_dropout": float(maskgen.get("text_drop_prob", 0.1)),
    }


def published(maskgen: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Published sampling settings: the authors' key -> ours, as far as the configuration has them."""
    return {ours: maskgen[theirs] for theirs, ours in names.items() if maskgen.get(theirs) is not None}


def ids_plan(config: dict[str, Any]) -> Plan:
    """The plan of the generator over ids."""
    from ..modeling.maskgen.configuration_maskgen import MaskGenConfig
    from ..modeling.maskgen.modeling_maskgen import MaskGenPrior

    vq, maskgen = config["model"]["vq_model"], config["model"]["maskgen"]
    tied = maskgen.get("weight_tying", True)
    ours = MaskGenConfig(
        codebook_size=vq["codebook_size"],
        num_spare_rows=maskgen.get("condition_num_classes", 1000) + 1,
        tie_lm_head=tied,
        **shared_fields(config),
    )
    settings = published(
        maskgen,
        {
            "num_iter": "num_inference_steps",
            "cfg": "cfg_scale",
            "cfg_schedule": "cfg_schedule",
            "temperature": "choice_temperature",
        },
    )
    scores = {"micro_conditions": float(maskgen.get("sample_aesthetic_score", 6.0))}
    parts, foreign = clip_text_part(config, projection=True)
    return Plan(
        parts={"prior": Part(MaskGenPrior, ours, settings | scores), **parts},
        renames=SHARED,
        drops=unread(ours),
        surgery=_ids_surgery if tied else _drop_batch_axis,
        foreign=foreign,
    )


def kl_plan(config: dict[str, Any]) -> Plan:
    """The plan of the generator over continuous tokens."""
    from ..modeling.maskgen.configuration_maskgen_kl import MaskGenKLConfig
    from ..modeling.maskgen.modeling_maskgen_kl import MaskGenKLPrior

    vq, maskgen, losses = config["model"]["vq_model"], config["model"]["maskgen"], config["losses"]
    ours = MaskGenKLConfig(
        token_size=vq["token_size"],
        latents_scale=float(vq.get("scale_factor", 0.7525)),
        head_size=losses["diffloss_w"],
        head_num_blocks=losses["diffloss_d"],
        diffusion_batch_mul=losses.get("diffusion_batch_mul", 4),
        **shared_fields(config),
    )
    settings = published(
        maskgen,
        {
            "num_iter": "num_inference_steps",
            "cfg": "cfg_scale",
            "cfg_schedule": "cfg_schedule",
            "temperature": "head_temperature",
        },
    )
    settings |= {
        "num_head_steps": int(losses.get("num_sampling_steps", 100)),
        "micro_conditions": float(maskgen.get("sample_aesthetic_score", 6.0)),
    }
    parts, foreign = clip_text_part(config, projection=True)
    return Plan(
        parts={"prior": Part(MaskGenKLPrior, ours, settings), **parts},
        renames=[*SHARED, *HEAD],
        drops=unread(ours),
        surgery=_drop_batch_axis,
        foreign=foreign,
    )


def unread(config: Any) -> dict[str, str]:
    """What the network has and does not use."""
    last = config.num_hidden_layers - 1
    name = rf"(decoder_)?blocks\.{last}\.attn\.add_q_proj\.(weight|bias)"
    return {name: "queries of the last block's text, whose output is not read"}


def _drop_batch_axis(state: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor[0] if name in POSITIONS else tensor for name, tensor in state.items()}


def _ids_surgery(state: dict[str, Any]) -> dict[str, Any]:
    state = _drop_batch_axis(state)
    head, table = state.pop("lm_head.weight", None), state["embeddings.weight"]
    if head is not None and not head.is_meta and not torch.equal(head, table):
        raise ConversionError("lm_head.weight must equal embeddings.weight: these checkpoints tie them.")
    return state


class MaskGenAdapter(Adapter):
    """MaskGen; which of the two it is says the tokenizer's `quantize_mode`."""

    system = "maskgen"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """A nested configuration with `model.maskgen`."""
        model = config.get("model")
        return "masked_prior" if isinstance(model, dict) and isinstance(model.get("maskgen"), dict) else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """See the functions above."""
        if component != "masked_prior":
            return super().plan(component, config)
        continuous = config["model"]["vq_model"].get("quantize_mode", "vq") == "vae"
        return kl_plan(config) if continuous else ids_plan(config)


def generator_config(width: int, depth: int, vq: dict[str, Any], **maskgen: Any) -> dict[str, Any]:
    """A generator's configuration as the authors write it."""
    text = {"text_embed_dim": 768, "text_context_length": 77}
    shape = {"decoder_embed_dim": width, "decoder_depth": depth, "decoder_num_heads": 16}
    scores = {"micro_condition": True, "micro_condition_embed_dim": 256, "sample_aesthetic_score": 6.5}
    model = {"vq_model": {**vq, **text}, "maskgen": {**shape, **scores, "text_drop_prob": 0.1, **maskgen}}
    return {"model": model, "losses": {"diffloss_d": 8, "diffloss_w": width}}


VQ = {"quantize_mode": "vq", "codebook_size": 8192, "token_size": 64, "num_latent_tokens": 128}
KL = {"quantize_mode": "vae", "token_size": 16, "num_latent_tokens": 32, "scale_factor": 0.7525}
VQ_SAMPLING = {"cfg": 12.0, "num_iter": 16, "temperature": 2.0, "cfg_schedule": "cosine"}
KL_SAMPLING = {"cfg": 3.0, "num_iter": 32, "temperature": 1.0, "cfg_schedule": "linear"}

MaskGenAdapter.presets = {
    name: Preset("masked_prior", generator_config(width, depth, vq, **sampling), f"turkeyju/{name}")
    for name, width, depth, vq, sampling in (
        ("generator_maskgen_vq_l", 1024, 16, VQ, VQ_SAMPLING),
        ("generator_maskgen_vq_xl", 1280, 20, VQ, VQ_SAMPLING),
        ("generator_maskgen_kl_l", 1024, 16, KL, KL_SAMPLING),
        ("generator_maskgen_kl_xl", 1280, 20, KL, KL_SAMPLING),
    )
}

ADAPTER = MaskGenAdapter()
