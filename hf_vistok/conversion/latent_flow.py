"""What the adapters of class-conditional latent transformers share: names, sizes and dialects."""

from typing import Any

import torch

from .adapter import ConversionError, Part, Plan, State

SIZES = {  # width, layers, heads (the papers' S to XL, and LightningDiT's larger ones)
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24),
    "1p6B": (1792, 28, 28),
}
WEAK = "__auto_guidance__."
RENAMES = [
    (r"^module\.", ""),
    (r"^__auto_guidance__\.", "weak_transformer/"),
    (r"(^|/)x_embedder\.proj\.", r"\1patch_embed."),
    (r"(^|/)pos_embed$", r"\1position_table"),
    (r"(^|/)t_embedder\.W$", r"\1time_embed.frequencies"),
    (r"(^|/)t_embedder\.mlp\.0\.", r"\1time_embed.fc1."),
    (r"(^|/)t_embedder\.mlp\.2\.", r"\1time_embed.fc2."),
    (r"(^|/)y_embedder\.embedding_table\.", r"\1class_embed."),
    (r"(^|/)final_layer\.norm_final\.", r"\1head.norm."),
    (r"(^|/)final_layer\.linear\.", r"\1head.proj."),
    (r"(^|/)final_layer\.", r"\1head."),
    (r"(^|/)blocks\.", r"\1layers."),
    (r"(^|/)bn\.", r"\1latent_bn."),
    (r"\.adaLN_modulation\.1\.", ".modulation.linear."),
]
DROPS = {
    r"(module\.|__auto_guidance__\.)?(enc_|dec_)?feat_rope\.freqs_(cos|sin)": (
        "rotary tables of one resolution, computed here"
    ),
}


def dialect(params: dict[str, Any]) -> dict[str, Any]:
    """Fields for the switches that LightningDiT and DiT-DH share; what a switch's absence means is theirs."""
    rms = params.get("use_rmsnorm", False)
    return {
        "norm": "rms" if rms else "layer",
        "mlp": "swiglu" if params.get("use_swiglu", False) else "gelu",
        "qk_norm": ("rms" if rms else "layer") if params.get("use_qknorm", False) else None,
        "rotary": params.get("use_rope", False),
        "modulation_shift": not params.get("wo_shift", False),
        "mlp_ratio": float(params.get("mlp_ratio", 4.0)),
        "num_classes": params.get("num_classes", 1000),
    }


def label_fields(dropout: float) -> dict[str, Any]:
    """Fields of the class table: there is a null row only where training drops labels."""
    return {"class_dropout": float(dropout), "has_null_class": dropout > 0}


def trunk_fields(params: dict[str, Any]) -> dict[str, Any]:
    """Width, depth and heads; of a DiT-DH the pairs of both stages. Patches of one size only."""
    patch = params.get("patch_size", 1)
    sides = patch if isinstance(patch, (list, tuple)) else (patch, patch)
    if sides[0] != sides[-1]:
        raise ConversionError(f"Both stages must have one patch size, got {patch}.")
    fields = {"patch_size": sides[0]}
    names = ("hidden_size", "depth", "num_heads")
    if not isinstance(params["hidden_size"], (list, tuple)):
        return fields | dict(zip(("hidden_size", "num_layers", "num_heads"), (params[n] for n in names), strict=True))
    (width, wide), (depth, wide_depth) = params["hidden_size"], params["depth"]
    heads = params["num_heads"] if isinstance(params["num_heads"], (list, tuple)) else [params["num_heads"]] * 2
    return fields | {
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads[0],
        "head_hidden_size": wide,
        "head_num_layers": wide_depth,
        "head_num_heads": heads[1],
        "modulation_shift": True,  # the authors' switch fails there: a shift of None
    }


def flow_plan(fields: dict[str, Any], weak: dict[str, Any] | None = None) -> Plan:
    """A plan for a transformer, and for the weaker one of autoguidance where the checkpoint holds it."""
    from ..modeling.dit_family.modeling_dit_family import LatentFlowTransformer

    wide = {"transformer": fields.get("head_hidden_size") is not None}
    parts = {"transformer": Part(LatentFlowTransformer, fields)}
    if weak is not None:
        parts["weak_transformer"] = Part(LatentFlowTransformer, weak, optional=True)
        wide["weak_transformer"] = weak.get("head_hidden_size") is not None

    def surgery(state: State) -> State:
        depths = {"": fields["num_layers"]}
        if weak is not None:
            depths["weak_transformer/"] = weak["num_layers"]
        return _tables(_wide_heads(state, depths, wide))

    return Plan(parts, RENAMES, DROPS, surgery)


def _wide_heads(state: State, depths: dict[str, int], wide: dict[str, bool]) -> State:
    """DiT-DH numbers the blocks of both stages in one row, and embeds the latents twice."""
    found: State = {}
    for name, tensor in state.items():
        part, slash, rest = name.rpartition("/")
        if wide.get(part or "transformer"):
            rest = _wide_name(rest, depths[part + slash])
        found[part + slash + rest] = tensor
    return found


def _wide_name(name: str, depth: int) -> str:
    head, _, rest = name.partition(".")
    if head == "layers" and int(rest.split(".")[0]) >= depth:
        number, _, rest = rest.partition(".")
        return f"wide_head.layers.{int(number) - depth}.{rest}"
    if head == "patch_embed":
        return f"wide_head.{name}"
    if name.startswith("s_embedder.proj."):
        return name.replace("s_embedder.proj", "patch_embed")
    return name.replace("s_projector.", "wide_head.condition_proj.")


def _tables(state: State) -> State:
    """Position tables without their batch axis."""
    return {
        name: tensor[0] if name.endswith("position_table") and tensor.ndim == 3 else tensor
        for name, tensor in state.items()
    }


def with_table(plan: Plan) -> Plan:
    """A plan that computes the position table where the checkpoint does not hold it (files of parameters alone)."""
    inner = plan.surgery

    def surgery(state: State) -> State:
        from ..modeling.layers.positions import sincos_table

        state = inner(state)
        for part, settings in plan.parts.items():
            prefix = "" if part == "transformer" else f"{part}/"
            name, like = f"{prefix}position_table", state.get(f"{prefix}class_embed.weight")
            if name not in state and like is not None and settings.config.get("position_embedding", True):
                side = settings.config["sample_size"] // settings.config["patch_size"]
                table = sincos_table((side, side), settings.config["hidden_size"])
                state[name] = table.to(like.dtype) if not like.is_meta else torch.empty_like(table, device="meta")
        return state

    plan.surgery = surgery
    return plan
