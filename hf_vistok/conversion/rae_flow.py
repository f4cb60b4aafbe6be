"""The `stage_2` blocks of RAE and its descendants: DiT-DH and LightningDiT on a representation's latents."""

import math
import re
from typing import Any

from .adapter import ConversionError, Plan
from .latent_flow import dialect, flow_plan, label_fields, trunk_fields

TARGETS = {"DiTwDDTHead": "wide", "LightningDiT": "lightning"}
WIDE_DEFAULTS = {"use_swiglu": True, "use_rope": True, "use_rmsnorm": True}
LIGHTNING_INTERVAL_SCALE = 1.42  # the authors' autoguidance where an interval switches the chosen scale off
BASE_SIZE = 4096


def is_flow(config: dict[str, Any]) -> bool:
    """Whether a configuration has RAE's `stage_2`."""
    stage = config.get("stage_2")
    return isinstance(stage, dict) and str(stage.get("target", "")).rsplit(".", 1)[-1] in TARGETS


def dashed_lightning(config: dict[str, Any]) -> bool:
    """Whether a configuration is of RPiAE's kind: LightningDiT with `t-min` and `t-max`, which its sampler reads."""
    stage, limits = config.get("stage_2") or {}, config.get("guidance") or {}
    return str(stage.get("target", "")).endswith("LightningDiT") and bool({"t-min", "t-max"} & set(limits))


def network_fields(stage: dict[str, Any]) -> dict[str, Any]:
    """The network's part of our configuration, for a `{"target": ..., "params": ...}`."""
    kind = TARGETS.get(str(stage.get("target", "")).rsplit(".", 1)[-1])
    if kind is None:
        raise ConversionError(f"Unknown generator {stage.get('target')!r}; known: {', '.join(TARGETS)}.")
    params = {**(WIDE_DEFAULTS if kind == "wide" else {}), **stage["params"]}
    if isinstance(params["hidden_size"], (list, tuple)) != (kind == "wide"):
        raise ConversionError(f"hidden_size of a {stage['target']} cannot be {params['hidden_size']}.")
    gaussian = kind == "wide" or params.get("use_gembed", True)
    return {
        "sample_size": params["input_size"],
        "in_channels": params["in_channels"],
        **dialect(params),
        **trunk_fields(params),
        **label_fields(params.get("class_dropout_prob", 0.1)),
        "time_embedding": "fourier" if gaussian else "sinusoid",
        "position_embedding": params.get("use_pos_embed", True) if kind == "wide" else True,
        "learn_sigma": params.get("learn_sigma", False),
    }


def time_shift(params: dict[str, Any], misc: dict[str, Any]) -> float:
    """The shift of times: the root of the latents' size over a base size (section 4.2)."""
    size = math.prod(misc.get("latent_size") or (params["in_channels"], params["input_size"], params["input_size"]))
    return math.sqrt(misc.get("time_dist_shift_dim", size) / misc.get("time_dist_shift_base", BASE_SIZE))


def sampler_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Times and integrator; the count of points is the authors'."""
    sampler, transport = config.get("sampler") or {}, (config.get("transport") or {}).get("params") or {}
    params, kind = sampler.get("params") or {}, transport.get("time_dist_type", "uniform")
    if transport.get("path_type", "Linear") != "Linear" or transport.get("prediction", "velocity") != "velocity":
        raise ConversionError("Only linear paths with velocity prediction are published.")
    if kind != "uniform" and not re.fullmatch(r"logit-normal_0(\.0*)?_1(\.0*)?", kind):
        raise ConversionError(f"Unknown time_dist_type {kind!r}; known: uniform, logit-normal_0_1.")
    method = str(params.get("sampling_method", "euler")).lower()
    if str(sampler.get("mode", "ODE")).upper() == "SDE":
        method = {"euler": "sde", "heun": "sde_heun"}.get(method, method)
    return {
        "noise_time": 1,
        "grid": "rae",
        "sampler": method,
        "num_inference_steps": params.get("num_steps", 50),
        "training_sampling": "uniform" if kind == "uniform" else "logit_normal",
    }


def guidance_fields(config: dict[str, Any], dashed: bool) -> dict[str, Any]:
    """
    Kind, weight and times of guidance.

    Args:
        config: with a `guidance` block, or without one.
        dashed: whether `t-min` and `t-max` count too. Files of RAE have them, and its sampler reads `t_min`, `t_max`.
    """
    given = config.get("guidance") or {}
    lightning = TARGETS[config["stage_2"]["target"].rsplit(".", 1)[-1]] == "lightning"
    kind, limits = given.get("method", "cfg"), []
    for name, default in (("min", 0.0), ("max", 1.0)):
        value = given.get(f"t_{name}", given.get(f"t-{name}", default) if dashed else default)
        limits.append(float(value))
    # kept for DiT-DH even from 0 to 1: its shifted times may begin an ulp above 1, and are not guided there
    everywhere = lightning and (limits == [0.0, 1.0] or limits[0] == limits[1])
    fields = {
        "guidance": kind,
        "guidance_scale": float(given.get("scale", 1.0)),
        "guidance_intervals": [] if everywhere else [limits],
        # LightningDiT's class switches guidance off inside of an interval, DiT-DH's on
        "guidance_active": "outside" if lightning else "inside",
    }
    if lightning and kind == "autoguidance":
        fields["interval_scale"] = LIGHTNING_INTERVAL_SCALE
    return fields


def stage_fields(config: dict[str, Any], dashed: bool = False) -> dict[str, Any]:
    """Fields of our configuration for the authors' blocks."""
    params = config["stage_2"]["params"]
    return {
        **network_fields(config["stage_2"]),
        **sampler_fields(config),
        **guidance_fields(config, dashed),
        "time_shift": time_shift(params, config.get("misc") or {}),
    }


def stage_plan(config: dict[str, Any], dashed: bool = False) -> Plan:
    """The generator, and the weaker one that guides it where the checkpoint holds both."""
    fields, weak = stage_fields(config, dashed), (config.get("guidance") or {}).get("guidance_model")
    if weak is None:
        return flow_plan(fields)
    alone = {"guidance": "cfg", "guidance_scale": 1.0, "guidance_intervals": [], "interval_scale": 1.0}
    return flow_plan(fields, {**fields, **network_fields(weak), **alone})


def stage_config(target: str, params: dict[str, Any], guidance: dict[str, Any], **sampler: Any) -> dict[str, Any]:
    """A published generator's configuration in the authors' shape."""
    size = (params["in_channels"], params["input_size"], params["input_size"])
    return {
        "stage_2": {"target": target, "params": params},
        "transport": {
            "params": {"path_type": "Linear", "prediction": "velocity", "time_dist_type": "logit-normal_0_1"}
        },
        "sampler": {"mode": "ODE", "params": {"sampling_method": "euler", "num_steps": 50, **sampler}},
        "guidance": guidance,
        "misc": {
            "latent_size": list(size),
            "num_classes": 1000,
            "time_dist_shift_dim": math.prod(size),
            "time_dist_shift_base": BASE_SIZE,
        },
    }
