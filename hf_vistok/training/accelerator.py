"""What the trainer asks of accelerate and of the machine: processes, trackers, memory."""

import copy
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .checkpoint import states
from .recipe import RecipeError

LOST = ("connection", "gloo", "nccl", "peer", "timed out", "timeout", "socket")


class TrainingStopped(RuntimeError):
    """A run cannot go on; the message says why and from where it can be taken up."""


def make_accelerator(tracker: str | None, output: Path) -> Any:
    """
    The accelerator of this process.

    Args:
        tracker: of accelerate, None for none.
        output: where trackers write.

    Raises:
        RecipeError: for a tracker that is unknown or not installed.
    """
    from accelerate import Accelerator
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import DistributedDataParallelKwargs

    installed = sorted(str(getattr(kind, "value", kind)) for kind in get_available_trackers())
    if tracker is not None and tracker not in installed:
        known = ", ".join(LOGGER_TYPE_TO_CLASS)
        state = "is not installed" if tracker in LOGGER_TYPE_TO_CLASS else f"is none of {known}"
        raise RecipeError(f"recipe.log.tracker: {tracker!r} {state}; installed are: {', '.join(installed) or 'none'}.")
    # a batch may leave parts of a model unused: a dropped condition, a head that another objective trains
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(log_with=tracker, project_dir=str(output), kwargs_handlers=[unused])


def check_sharding(accelerator: Any, recipe: Any, stage: Any) -> nn.Module | None:
    """
    A whole copy of the model for evaluation, where accelerate is going to lay its weights in parts (FSDP2); else None.

    Raises:
        RecipeError: for what cannot be trained in parts.
    """
    if accelerator.distributed_type.value != "FSDP":
        return None
    if not accelerator.is_fsdp2:
        raise RecipeError("Of FSDP, version 2 is supported: accelerate launch --use_fsdp --fsdp_version 2.")
    if recipe.optimizer.muon_lr > 0:
        raise RecipeError("recipe.optimizer.muon_lr: Muon needs whole matrices, and FSDP cuts them; set it to 0.")
    if len(stage.modules) > 1:
        raise RecipeError(f"FSDP trains one module; this recipe has {', '.join(stage.modules)}.")
    plain = copy.deepcopy(stage.model)
    try:
        getattr(stage.model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:  # a tokenizer has no table of words, and accelerate takes None for that
        stage.model.get_input_embeddings = lambda: None
    return plain


def flat_values(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name as trackers take them: numbers and texts."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flat_values(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return out


def show_sheet(accelerator: Any, path: Path, step: int) -> None:
    """Gives a sheet to the trackers that take pictures."""
    from PIL import Image

    for tracker in accelerator.trackers:
        log_images = getattr(tracker, "log_images", None)
        if log_images is not None:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))[None]
            extra = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            log_images({"sheet": pixels}, step=step, **extra)


def peak_megabytes() -> int:
    """The most memory that this process has had."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(used / (2**20 if sys.platform == "darwin" else 2**10))


@contextmanager
def lost_processes(folder: Path) -> Iterator[None]:
    """
    Within the context, the end of another process of the run becomes a [`TrainingStopped`] that names the last state.

    Args:
        folder: of the states.
    """
    try:
        yield
    except RuntimeError as error:
        shared = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not shared or isinstance(error, TrainingStopped) or not any(w in str(error).lower() for w in LOST):
            raise
        found = states(folder)
        where = f"The last state is {found[-1]}; run again to go on" if found else "There is no saved state yet"
        raise TrainingStopped(f"Another process of this run has gone ({error}). {where}.") from error
