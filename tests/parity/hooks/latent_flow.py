"""What the hooks of latent flow generators share. Numbers of a run stand in meta.json's descriptions."""

import re

from ..harness import Case

NUMBER = r"(\d+(?:\.\d+)?)"


def described(case: Case, name: str, pattern: str) -> tuple[float, ...] | None:
    """Numbers that the description of a tensor names."""
    found = re.search(pattern, case.meta["tensors"].get(name, ""), re.I)
    return tuple(float(value) for value in found.groups()) if found else None


def scale_of(case: Case, name: str, default: float) -> float:
    """The guidance scale of a stored sample."""
    found = described(case, name, rf"(?:cfg|scale)\s+{NUMBER}")
    return found[0] if found else default


def limits_of(case: Case, name: str) -> tuple[float, float] | None:
    """The times of guidance, as "lo<=t<=hi" or "interval (lo,hi)"."""
    bare = r"(\d*\.?\d+)"
    return described(case, name, rf"{bare}\s*<=\s*t\s*<=\s*{bare}") or described(
        case, name, rf"interval \({bare},\s*{bare}\)"
    )


def velocity(case: Case):
    """The network at the stored point."""
    return case.model(case.inputs["x_t"], case.inputs["t"], case.inputs["y"]).sample


def sampled(case: Case, name: str, kind: str = "cfg", **settings):
    """A stored sample with guidance of a kind, at the weight and times of its description, else the published."""
    found = limits_of(case, name)
    weak = {"weak_model": case.parts.get("weak_transformer")} if kind == "autoguidance" else {}
    return case.model.sample_latents(
        case.inputs["noise"],
        case.inputs["y"],
        guidance=kind,
        guidance_scale=scale_of(case, name, case.model.config.guidance_scale),
        guidance_intervals=[found] if found else None,
        **weak,
        **settings,
    )
