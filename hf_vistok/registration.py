"""Makes our classes known to transformers' Auto classes and to diffusers. A global side effect, so it has one place."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from .registry import ModelEntry, find_model, model_entries, public_names


def register_library() -> None:
    """
    Lets diffusers write and read `["hf_vistok", "Class"]` in model_index.json.

    `LOADABLE_CLASSES` is not documented API; `tests/test_face.py` watches it.
    """
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    LOADABLE_CLASSES.setdefault("hf_vistok", {})


@cache
def register(entry: ModelEntry) -> None:
    """Registers one model with `AutoConfig`, `AutoModel` and `AutoImageProcessor` (diffusers models have none)."""
    register_library()
    if entry.model_type is None:
        return
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    config = load_config_class(entry)
    model = getattr(importlib.import_module(entry.model_module), entry.model)
    AutoConfig.register(entry.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    processor = load_processor_class(entry)
    if processor is not None and hasattr(processor, "preprocess"):
        AutoImageProcessor.register(config, image_processor_classes={"pil": processor}, exist_ok=True)


def prepare_pipelines() -> None:
    """Registers the library with diffusers, and gives pipelines the loaders that read original checkpoints."""
    register_library()
    from .auto_classes import AutoImagePrior, AutoImageTokenizer
    from .hub import fetch, resolve_source
    from .pipelines.pipeline_utils import LOADERS

    LOADERS.update(
        image_tokenizer=AutoImageTokenizer.from_pretrained,
        prior=AutoImagePrior.from_pretrained,
        transformer=load_transformer,
        weak_transformer=load_transformer,
        flow_parts=load_flow_parts,
        resolve=resolve_source,
        fetch=fetch,
        pipeline_class=pipeline_class,
    )


def load_flow_parts(source: str, **kwargs: Any) -> dict[str, Any]:
    """
    A flow transformer of ours (folder or Hub id), or an original flow generator: `transformer`, and
    `weak_transformer` where its file holds one.
    """
    from .conversion.loading import load_original_parts

    entry, folder = flow_entry(source, kwargs.get("revision"))
    if entry is not None:
        return {"transformer": load_model_class(entry).from_pretrained(folder, **kwargs)}
    parts = load_original_parts(source, ("flow_generator",), **kwargs)
    return {name: part for name, part in parts.items() if name in ("transformer", "weak_transformer")}


def flow_entry(source: str, revision: str | None = None) -> tuple[ModelEntry | None, str]:
    """The entry of a flow transformer of ours, None where the source holds none; and the resolved source."""
    from .hub import fetch, read_json, resolve_source

    folder = resolve_source(source, revision)
    path = None if Path(folder).is_file() else fetch(folder, "config.json", revision=revision)
    entry = find_model(read_json(path).get("_class_name", "")) if path else None
    return (entry if entry is not None and entry.kind == "flow" else None), folder


def is_flow(source: str, preset: str | None = None, revision: str | None = None) -> bool:
    """Whether a source, or a preset's file, is a flow generator: one of ours, or the authors'."""
    from .conversion.adapter import find_preset
    from .conversion.loading import OriginalCheckpoint

    if preset is not None:
        return find_preset(preset)[1].component == "flow_generator"
    entry, folder = flow_entry(source, revision)
    if entry is not None:
        return True
    try:
        return OriginalCheckpoint(folder).component == "flow_generator"
    except ValueError:
        return False


def load_transformer(source: str, **kwargs: Any) -> Any:
    """The transformer of [`load_flow_parts`]."""
    return load_flow_parts(source, **kwargs)["transformer"]


def pipeline_class(name: str | None) -> type | None:
    """One of our pipeline classes by its name, None where it is none."""
    module = public_names().get(name or "", "")
    return (
        getattr(importlib.import_module(module), name) if module.startswith("hf_vistok.pipelines.pipeline_") else None
    )


def load_config_class(entry: ModelEntry) -> type:
    """Imports a configuration class."""
    return getattr(importlib.import_module(entry.config_module), entry.config)


def load_processor_class(entry: ModelEntry) -> type | None:
    """The processor class of a model, None where it has none."""
    if entry.processor is None:
        return None
    module, _, name = entry.processor.partition(":")
    return getattr(importlib.import_module(f"hf_vistok.modeling.{module}"), name)


def load_model_class(entry: ModelEntry) -> type:
    """Imports and registers a model class."""
    register(entry)
    return getattr(importlib.import_module(entry.model_module), entry.model)


def register_all() -> None:
    """Registers every model of every family."""
    for entry in model_entries():
        register(entry)
