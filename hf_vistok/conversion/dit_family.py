"""Original checkpoints of DiT, SiT and LightningDiT: one transformer, three samplers."""

from typing import Any

from .adapter import Adapter, Plan, Preset
from .latent_flow import SIZES, dialect, flow_plan, label_fields, trunk_fields

SD_VAE_SCALE = 0.18215


def lightning_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields for LightningDiT's `model` and `sample` blocks."""
    params, sample, data = config["model"], config.get("sample", {}), config.get("data", {})
    start = float(sample.get("cfg_interval_start", 0.0))
    return {
        "sample_size": params["input_size"],
        "in_channels": params["in_channels"],
        **dialect(params),
        **trunk_fields(params),
        **label_fields(params.get("class_dropout_prob", 0.1)),
        "noise_time": 0,
        "grid": "points",
        "sampler": "euler",
        "time_shift": float(sample.get("timestep_shift", 1.0) or 1.0),
        "num_inference_steps": sample.get("num_sampling_steps", 250),
        "guidance_scale": float(sample.get("cfg_scale", 1.0)),
        "guidance_channels": 3,
        "guidance_active": "outside",
        "guidance_intervals": [[0.0, start]] if start > 0 else [],
        "latent_norm": "channel",
        "latents_scale": float(data.get("latent_multiplier", 1.0)),
        "training_sampling": "logit_normal",
        "loss_weights": {"cosine_loss": 1.0},
    }


def dit_fields(config: dict[str, Any]) -> dict[str, Any]:
    """
    Fields for the arguments of DiT and SiT. They are the same, and so are the tensors: the key `family` ("dit") says
    that the network predicts noise; `LatentFlowTransformer.set_prediction` says it later.
    """
    sampling = {"prediction": "velocity", "sampler": "dopri5", "num_inference_steps": 50}
    if config.get("family", "sit") == "dit":
        sampling = {"prediction": "epsilon", "sampler": "ddpm", "num_inference_steps": 250}
    return {
        "sample_size": config["input_size"],
        "in_channels": config["in_channels"],
        "mlp_ratio": float(config.get("mlp_ratio", 4.0)),
        "num_classes": config.get("num_classes", 1000),
        "qk_norm": None,
        **trunk_fields(config),
        **label_fields(config.get("class_dropout_prob", 0.1)),
        "learn_sigma": config.get("learn_sigma", True),
        "noise_time": 0,
        "grid": "points",
        "guidance_channels": 3,
        "guidance_scale": float(config.get("cfg_scale", 1.0)),
        "latent_norm": "scale",
        "latents_scale": SD_VAE_SCALE,
        **sampling,
    }


class DiTFamilyAdapter(Adapter):
    """Flat arguments of DiT and SiT, and LightningDiT's YAML."""

    system = "dit_family"
    weight_files = ("model.safetensors", "model.pt")

    def recognise(self, config: dict[str, Any]) -> str | None:
        """LightningDiT's blocks, or the flat arguments of a DiT."""
        model = config.get("model")
        lightning = isinstance(model, dict) and {"use_swiglu", "use_rope", "in_channels"} <= set(model)
        flat = {"input_size", "in_channels", "hidden_size", "depth", "learn_sigma"} <= set(config)
        return "flow_generator" if lightning or flat else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """A table of names."""
        if component != "flow_generator":
            return super().plan(component, config)
        lightning = isinstance(config.get("model"), dict)
        return flow_plan(lightning_fields(config) if lightning else dit_fields(config))


def flat_config(family: str, size: str, patch: int, latent: int) -> dict[str, Any]:
    """A published DiT's or SiT's arguments."""
    width, depth, heads = SIZES[size]
    return {
        "family": family,
        "input_size": latent,
        "patch_size": patch,
        "in_channels": 4,
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": 4.0,
        "class_dropout_prob": 0.1,
        "num_classes": 1000,
        "learn_sigma": True,
        "cfg_scale": 1.5,
    }


def lightning_config(size: str, scale: float) -> dict[str, Any]:
    """A published LightningDiT's configuration, as the authors write it."""
    width, depth, heads = SIZES[size]
    model = {
        "input_size": 16,
        "patch_size": 1,
        "in_channels": 32,
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads,
        "num_classes": 1000,
        "use_qknorm": False,
        "use_swiglu": True,
        "use_rope": True,
        "use_rmsnorm": True,
        "wo_shift": False,
    }
    sample = {
        "num_sampling_steps": 250,
        "timestep_shift": 0.3,
        "cfg_interval_start": 0.125,
        "cfg_scale": scale,
    }
    return {"model": model, "sample": sample, "data": {"latent_multiplier": 1.0}}


LIGHTNING = "hustvl/lightningdit-xl-imagenet256-{}ep"
DiTFamilyAdapter.presets = {
    "DiT-XL-2-256x256": Preset("flow_generator", flat_config("dit", "XL", 2, 32), None, "DiT-XL-2-256x256.pt"),
    "DiT-XL-2-512x512": Preset("flow_generator", flat_config("dit", "XL", 2, 64), None, "DiT-XL-2-512x512.pt"),
    "SiT-XL-2-256x256": Preset(
        "flow_generator", flat_config("sit", "XL", 2, 32), "nyu-visionx/SiT-collections", "SiT-XL-2-256x256.pt"
    ),
    "LightningDiT-XL-1_vavae_f16d32": Preset(
        "flow_generator", lightning_config("XL", 6.7), LIGHTNING.format(800), "lightningdit-xl-imagenet256-800ep.pt"
    ),
    "LightningDiT-XL-1_vavae_f16d32_64ep": Preset(
        "flow_generator", lightning_config("XL", 10.0), LIGHTNING.format(64), "lightningdit-xl-imagenet256-64ep.pt"
    ),
}

ADAPTER = DiTFamilyAdapter()
