"""Original checkpoints of RAR: raw state dicts, whose configuration is in the authors' README."""

from typing import Any

from .adapter import Adapter, Part, Plan, Preset

RENAMES = [
    (r"^embeddings\.", "embedding."),
    (r"^cls_token$", "start_token"),
    (r"^pos_embed$", "position_embedding"),
    (r"^target_aware_pos_embed$", "target_embedding"),
    (r"^timesteps_embeddings$", "timestep_embedding"),
    (r"^blocks\.", "layers."),
    (r"^adaln_before_head\.adaLN_modulation\.1\.", "head_modulation.linear."),
    (r"\.adaLN_modulation\.1\.", ".modulation.linear."),
]
DROPS = {r"attn_mask": "a table of the causal mask that some files store"}
TABLES = ("start_token", "position_embedding", "target_embedding", "timestep_embedding")


def prior_plan(config: dict[str, Any]) -> Plan:
    """The plan of a prior: `model.generator` and `model.vq_model` of the authors' YAML."""
    from ..modeling.rar.configuration_rar import RARConfig
    from ..modeling.rar.modeling_rar import RARPrior

    generator, vq = config["model"]["generator"], config["model"]["vq_model"]
    ours = RARConfig(
        codebook_size=vq["codebook_size"],
        num_image_tokens=generator["image_seq_len"],
        num_classes=generator["condition_num_classes"],
        hidden_size=generator["hidden_size"],
        num_hidden_layers=generator["num_hidden_layers"],
        num_attention_heads=generator["num_attention_heads"],
        intermediate_size=generator["intermediate_size"],
        hidden_dropout=float(generator.get("dropout", 0.1)),
        attention_dropout=float(generator.get("attn_drop", 0.1)),
        condition_dropout=float(generator.get("class_label_dropout", 0.1)),
    )
    settings = {
        "cfg_scale": float(generator.get("guidance_scale", 16.0)),
        "cfg_power": float(generator.get("guidance_scale_pow", 2.75)),
        "temperature": float(generator.get("randomize_temperature", 1.0)),
        **{"cfg_interval": -1, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    }
    return Plan({"prior": Part(RARPrior, ours, settings)}, RENAMES, DROPS, _drop_batch_axes)


def _drop_batch_axes(state: dict[str, Any]) -> dict[str, Any]:
    for name in TABLES:
        if name in state:
            state[name] = state[name].flatten() if name == "start_token" else state[name].flatten(0, 1)
    return state


class RARAdapter(Adapter):
    """RAR's priors; they write ids of MaskGIT-VQGAN (TiTok's family)."""

    system = "rar"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """The YAML, whose generator has no `model_type`."""
        model = config.get("model")
        generator = model.get("generator") if isinstance(model, dict) else None
        ours = isinstance(generator, dict) and "condition_num_classes" in generator
        return "ar_prior" if ours and "model_type" not in generator else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """See the function above."""
        return prior_plan(config) if component == "ar_prior" else super().plan(component, config)


def _preset(size: str, width: int, layers: int, hidden: int, *sampling: float) -> tuple[str, Preset]:
    temperature, scale, power = sampling
    generator = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "intermediate_size": hidden,
        "image_seq_len": 256,
        "condition_num_classes": 1000,
        "randomize_temperature": temperature,
        "guidance_scale": scale,
        "guidance_scale_pow": power,
    }
    config = {"model": {"vq_model": {"codebook_size": 1024, "num_latent_tokens": 256}, "generator": generator}}
    return f"rar_{size}", Preset("ar_prior", config, "yucornetto/RAR", f"rar_{size}.bin")


RARAdapter.presets = dict(
    [
        _preset("b", 768, 24, 3072, 1.0, 16.0, 2.75),
        _preset("l", 1024, 24, 4096, 1.02, 15.5, 2.5),
        _preset("xl", 1280, 32, 5120, 1.02, 6.9, 1.5),
        _preset("xxl", 1408, 40, 6144, 1.02, 8.0, 1.2),
    ]
)

ADAPTER = RARAdapter()
