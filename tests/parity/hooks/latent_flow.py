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
