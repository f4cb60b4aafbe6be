"""
Training states on disk: complete or absent.

A state is a folder `step_00001000` with safetensors files and `state.json`. It is written under another name, forced to
the disk, and then renamed: a kill or a full disk at any moment leaves the states before it as they were.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .sharding import part_like

PREFIX, BEST = "step_", "best"


class CheckpointError(RuntimeError):
    """A training state cannot be written or read; the message says what is left."""


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_folder(target: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """
    Writes a folder of tensors and a JSON file, at once.

    Args:
        target: the folder; an old one of that name is replaced.
        tensors: file stem -> name -> tensor.
        state: content of `state.json`.

    Raises:
        CheckpointError: where the disk refuses (full, read-only); nothing is left behind.
    """
    scratch = target.with_name(f".{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        for stem, content in tensors.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in content.items()}, scratch / f"{stem}.safetensors")
        (scratch / "state.json").write_text(json.dumps(state, indent=1))
        for path in (*scratch.iterdir(), scratch):
            _sync(path)
        _swap(scratch, target)
        _sync(target.parent)
    except Exception as error:  # safetensors raises its own kinds for a full disk
        shutil.rmtree(scratch, ignore_errors=True)
        raise CheckpointError(f"Could not write the training state {target}: {error}") from error


def _swap(scratch: Path, target: Path) -> None:
    if not target.exists():
        os.replace(scratch, target)
        return
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(target, old)
    os.replace(scratch, target)
    shutil.rmtree(old, ignore_errors=True)


def states(folder: Path) -> list[Path]:
    """Complete training states in `folder`, oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if (path / "state.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def keep_last(folder: Path, count: int) -> None:
    """Removes all states but the last `count`, and what a kill left half-written."""
    for path in states(folder)[:-count]:  # under another name first: half a state must not look like one
        gone = path.with_name(f".{path.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
    for path in folder.glob(f".{PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def settle(folder: Path) -> None:
    """Undoes a replacement that a kill interrupted: the old folder gets its name back where the new one is missing."""
    for old in folder.glob(".*.old"):
        target = folder / old.name[1:].removesuffix(".old")
        if not target.exists() and (old / "state.json").is_file():
            os.replace(old, target)


def newest(
    folder: Path, tell: Callable[[str], None]
) -> tuple[Path, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """
    The last state that can be read, with its content; None where there are no states.

    Args:
        folder: of the states.
        tell: called with a line about each damaged state that is passed over.

    Raises:
        CheckpointError: where there are states and none can be read.
    """
    found, error = states(folder), None
    for path in reversed(found):
        try:
            return path, *read_folder(path)
        except CheckpointError as caught:
            error = error or caught
            tell(f"{caught}; trying the state before it")
    if error is not None:
        raise error
    return None


def read_folder(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """
    Reads what [`write_folder`] wrote.

    Raises:
        CheckpointError: where a file is missing or damaged.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        return {file.stem: load_file(file) for file in path.glob("*.safetensors")}, state
    except Exception as error:
        raise CheckpointError(f"{path} is no complete training state: {error}") from error


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer's state by "parameter index.name"; its settings come from the recipe."""
    packed = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in packed.items() for name, value in entry.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of [`pack_optimizer`]."""
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = part_like(value, parameters[int(index)])
    full = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": full["param_groups"]})
