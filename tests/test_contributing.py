"""CONTRIBUTING's table of layers says what is there: its blocks exist, its systems exist, no layer is forgotten."""

import importlib
import inspect
import re
from pathlib import Path

import hf_vistok

ROOT = Path(hf_vistok.__file__).parent.parent
LAYERS = {path.stem for path in (ROOT / "modeling" / "layers").glob("*.py")} - {"__init__"}
GROUPS = {"all", "most", "their", "these"}  # rows that name a kind of system and not systems


def rows() -> list[list[str]]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Which layer serves which dialect")[1]
    lines = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("| ") and "**" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_blocks_and_their_arguments_exist():
    for _, blocks, _ in rows():
        for module, name, options in re.findall(r"`(\w+)\.(\w+)(?:\(([^)]*)\))?`", blocks):
            if module not in LAYERS:
                continue
            block = getattr(importlib.import_module(f"hf_vistok.modeling.layers.{module}"), name)
            known = set(inspect.signature(block).parameters)
            if inspect.isclass(block):  # keyword arguments that a subclass hands on
                known |= {key for base in block.__mro__ for key in inspect.signature(base.__init__).parameters}
            wanted = re.findall(r"(\w+)=", options or "")
            assert set(wanted) <= known, f"{module}.{name} has no {sorted(set(wanted) - known)}"


def test_systems_exist():
    folders = {path.name for path in (ROOT / "modeling").iterdir() if path.is_dir()}
    for dialect, _, systems in rows():
        words = re.findall(r"[\w]+", systems)
        assert words[0] in folders | GROUPS, dialect
        if not GROUPS & set(words):
            unknown = set(words) - folders - {"and", "its", "kin"}
            assert not unknown, f"{dialect}: {sorted(unknown)}"


def test_no_layer_is_forgotten():
    text = " ".join(blocks for _, blocks, _ in rows())
    missing = sorted(name for name in LAYERS if not re.search(rf"`{name}\.\w", text))
    assert not missing, f"CONTRIBUTING's table does not name {missing}"
