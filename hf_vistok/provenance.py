"""Where a checkpoint comes from, as a file beside it: the original or the recipe, the data, the commit of the code."""

import json
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROVENANCE = "provenance.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def own_version() -> str:
    """Version of the package."""
    try:
        return version("hf_vistok")
    except PackageNotFoundError:
        return "unknown"


def own_commit() -> str | None:
    """Commit of the working copy that the package runs from, with "+" where files are changed; None elsewhere."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    run = {"cwd": root, "capture_output": True, "text": True}
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **run).stdout.strip()
    except OSError:
        return None
    return f"{commit}{'+' if changed else ''}" if commit else None


def conversion_provenance(source: str, options: dict[str, Any], family: str) -> dict[str, Any]:
    """
    What `hf-vistok convert` notes: the original, as far as it is a public name, and what read it.

    A local path says more about the machine than about the checkpoint: only its last part is kept.
    """
    public = HUB_ID.fullmatch(source) is not None and not Path(source).exists()
    told = {"source": source if public else Path(source).name, "family": family}
    told.update({name: str(value) for name, value in options.items() if name in ("filename", "preset", "revision")})
    if public:
        told["base_model"] = source
    return {**told, "written_by": f"hf_vistok {own_version()}"}


def training_provenance(state: dict[str, Any]) -> dict[str, Any]:
    """What an export of a training run notes: recipe, step, data, commit of the code."""
    recipe = state.get("recipe", {})
    data = recipe.get("data") or {}
    model = recipe.get("model") or {}
    told = {
        "recipe": recipe.get("name"),
        "step": state.get("step"),
        "seed": recipe.get("seed"),
        "data": {"kind": data.get("kind"), "split": data.get("split"), "styles": data.get("styles")},
        "datasets": [data["path"]] if data.get("kind") == "hub" else [],
        "base_model": model.get("init_from"),
        "commit": own_commit(),
        "written_by": f"hf_vistok {own_version()}",
        "settings": recipe,
    }
    return {name: value for name, value in told.items() if value not in (None, [], {})}


def write_provenance(folder: Path, told: dict[str, Any]) -> None:
    """Writes `provenance.json`."""
    (folder / PROVENANCE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
