"""ONNX export through torch's own exporter; each graph is checked with onnxruntime against PyTorch."""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .graphs import Graph, graphs_of

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # of floats, relative to the largest value
SAME_IDS = 0.98  # share of ids that have to be equal: rounding decides between two codes that are equally near
MANIFEST = "export.json"


def require_onnx() -> None:
    """
    Whether ONNX can be written here.

    Raises:
        ImportError: which names the packages that are missing and the extra that has them.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX export needs {', '.join(missing)}: pip install 'hf_vistok[export]'.")


def export_onnx(model: Any, folder: str | os.PathLike) -> list[str]:
    """
    Writes the graphs of a tokenizer, prior or pipeline, and `export.json` that describes them.

    The batch axis is dynamic, in a prior's step also the number of positions behind it. A tokenizer gives
    `encoder.onnx` and `decoder.onnx`; an autoregressive prior `prior_prefill.onnx` and `prior_step.onnx`; FlexTok's
    decoder `transformer.onnx` (one step of its flow) and `vae_decoder.onnx`; a pipeline those of its components. Loops
    over steps, guidance and draws are the caller's. The model is cast to float32 on the CPU.

    Args:
        model: a tokenizer, a prior or a pipeline of hf_vistok.
        folder: to write into.

    Returns:
        names of the files.

    Raises:
        ImportError: where the packages of the `export` extra are missing.
        ValueError: for a model whose graphs are not exported, with the reason.
        RuntimeError: where onnxruntime and PyTorch disagree.
    """
    require_onnx()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for part in getattr(model, "components", {"": model}).values():
        if isinstance(part, torch.nn.Module):
            part.eval().to("cpu", None if part.dtype == torch.float32 else torch.float32)
    graphs = {}
    for graph in graphs_of(model):
        path = folder / f"{graph.name}.onnx"
        with quiet_exporter(), torch.no_grad():
            write_graph(graph, path)
        graphs[graph.name] = {"file": path.name, **describe(path), "max_error": check_graph(graph, path)}
    manifest = {"format": "hf_vistok-onnx", "class": type(model).__name__, "graphs": graphs, **settings_of(model)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return [*(graph["file"] for graph in graphs.values()), MANIFEST]


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without the exporter's remarks about libraries that are not there."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def write_graph(graph: Graph, path: Path) -> None:
    """Exports one graph."""
    axes: dict[str, Any] = {}
    dynamic = {}
    for name in graph.inputs:
        batch = 1 if name in ("keys", "values") else 0
        named = {batch: "batch", **graph.lengths.get(name, {})}
        dynamic[name] = {axis: axes.setdefault(label, _dim(graph, label)) for axis, label in named.items()}
    by_position = ByPosition(graph.module, list(graph.inputs)).eval()
    shapes = {"inputs": tuple(dynamic[name] for name in graph.inputs)}
    program = torch.export.export(by_position, tuple(graph.inputs.values()), dynamic_shapes=shapes, strict=False)
    onnx_program = torch.onnx.export(
        program, verbose=False, input_names=list(graph.inputs), output_names=list(graph.outputs)
    )
    _name_axes(onnx_program, dynamic)
    onnx_program.save(str(path))


def _dim(graph: Graph, label: str) -> Any:
    least, most = graph.bounds.get(label, (1, None))
    return torch.export.Dim(label, min=least, max=most)


class ByPosition(torch.nn.Module):
    """A module whose inputs come by position: torch.export does not take `**options`."""

    def __init__(self, module: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Calls the module by name."""
        return self.module(**dict(zip(self.names, inputs, strict=True)))


def _name_axes(program: Any, dynamic: dict[str, dict[int, Any]]) -> None:
    """Gives the axes of inputs and outputs our names in place of the exporter's symbols."""
    known = {}
    for value in program.model.graph.inputs:
        for axis, dim in dynamic.get(value.name, {}).items():
            known[str(value.shape[axis])] = dim.__name__
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        for axis, size in enumerate(value.shape or ()):
            if str(size) in known:
                value.shape[axis] = known[str(size)]


def session(path: Path) -> Any:
    """An onnxruntime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def describe(path: Path) -> dict[str, Any]:
    """Inputs and outputs of a graph: name -> shape, with names for axes that vary."""
    run = session(path)
    return {
        "inputs": {value.name: list(value.shape) for value in run.get_inputs()},
        "outputs": {value.name: list(value.shape) for value in run.get_outputs()},
    }


def run_graph(path: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Outputs of a graph; inputs that it does not have are left out."""
    run = session(path)
    known = {value.name for value in run.get_inputs()}
    outputs = run.run(None, {name: value.numpy() for name, value in inputs.items() if name in known})
    return [torch.from_numpy(output) for output in outputs]


def check_graph(graph: Graph, path: Path) -> float:
    """
    The largest difference from PyTorch, for three pictures: the graph was made with two.

    Raises:
        RuntimeError: where floats differ by more than `TOLERANCE`, or too many ids do.
    """
    inputs = {name: _longer(graph, name, value) for name, value in graph.inputs.items()}
    with torch.no_grad():
        expected = graph.module(**inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    largest = 0.0
    for name, ours, theirs in zip(graph.outputs, run_graph(path, inputs), expected, strict=False):
        if not theirs.is_floating_point():
            same = (ours == theirs).double().mean().item()
            if same < SAME_IDS:
                raise RuntimeError(f"{path.name}: only {same:.1%} of {name} are as in PyTorch.")
            continue
        error = (ours.double() - theirs.double()).abs().max().item()
        largest = max(largest, error)
        if not error <= TOLERANCE * max(1.0, theirs.abs().max().item()):
            raise RuntimeError(f"{path.name}: {name} differs from PyTorch by up to {error:.3g}.")
    return largest


def _longer(graph: Graph, name: str, value: Tensor) -> Tensor:
    """The example with one more picture, and one more position where their number varies."""
    for axis, label in graph.lengths.get(name, {}).items():
        if label == "past":
            value = torch.cat([value, value.narrow(axis, 0, 1)], axis)
    batch = 1 if name in ("keys", "values") else 0
    return torch.cat([value, value.narrow(batch, 0, 1)], batch)


def settings_of(model: Any) -> dict[str, Any]:
    """What a caller has to know besides the graphs: sizes, pixel space, published settings of sampling."""
    parts = getattr(model, "components", {"model": model})
    found: dict[str, Any] = {}
    for name, part in parts.items():
        published = getattr(part, "generation_config", None)
        if published is not None and hasattr(part, "default_settings"):
            names = part.default_settings
            found[name] = {key: part.setting(key) for key in names if not callable(part.setting(key))}
        config = getattr(part, "config", None)
        if hasattr(config, "pixel_range"):
            found["pixels"] = {
                key: getattr(config, key) for key in ("image_size", "pixel_range", "image_mean", "image_std")
            }
        for key in ("num_inference_steps", "guidance_scale", "guidance"):
            if hasattr(part, "ids_to_latents") and hasattr(config, "get") and config.get(key) is not None:
                found.setdefault(name, {})[key] = config[key]
    return {"settings": found}
