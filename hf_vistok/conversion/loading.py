"""Reading original checkpoints from a folder, a file or the Hub, without running anything that they contain."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..hub import fetch, read_json, split_hub_arguments
from .adapter import Adapter, ConversionError, Preset, all_adapters, find_preset, recognise

SAFE_SUFFIXES = (".safetensors",)
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


class OriginalCheckpoint:
    """
    An original checkpoint that has been recognised.

    Args:
        source: folder, file or Hub id.
        filename: of the weights, where there are several.
        preset: name of a published checkpoint whose configuration to use.
        config: configuration in the authors' shape, for files that come without one.
        hub: download arguments.

    Raises:
        ValueError: where the layout is not known, naming what was found and what is known.
    """

    def __init__(
        self,
        source: str,
        *,
        filename: str | None = None,
        preset: str | None = None,
        config: dict[str, Any] | str | os.PathLike | None = None,
        **hub: Any,
    ) -> None:
        if os.path.isfile(source):
            source, filename = os.path.dirname(source) or ".", filename or os.path.basename(source)
        self.source, self.filename, self.hub = source, filename, hub
        self.adapter, self.component, self.config = self._recognise(preset, config)

    def _recognise(self, preset: str | None, config: Any) -> tuple[Adapter, str, dict[str, Any]]:
        if preset is not None:
            adapter, found = find_preset(preset)
            self.filename = self.filename or found.filename
            return adapter, found.component, found.config
        config = config if isinstance(config, dict) else self._read_config(config)
        match = recognise(config)
        if match is None:
            known = ", ".join(adapter.system for adapter in all_adapters())
            raise ValueError(
                f"{self.source}: a configuration with the keys {sorted(config)[:12]} is of no known layout. It should "
                f"be a checkpoint of hf_vistok (`model_type` starts with 'vistok_') or an original one of: {known}."
            )
        return *match, config

    def _read_config(self, path: str | os.PathLike | None) -> dict[str, Any]:
        if path is not None:
            return read_config(path)
        for name in dict.fromkeys(name for adapter in all_adapters() for name in adapter.config_files):
            found = fetch(self.source, name, **self.hub)
            if found is not None:
                return read_config(found)
        embedded = self._metadata_config() or self._pickled_config()
        if embedded is not None:
            return embedded
        raise ValueError(
            f"{self.source} has no configuration. Give `preset=` (the name of a published checkpoint; `hf-vistok list "
            "--presets` shows them) or `config=` (the authors' configuration)."
        )

    def _metadata_config(self) -> dict[str, Any] | None:
        """Some safetensors files carry their configuration as Python literals in their metadata."""
        import ast

        name = self.filename or "model.safetensors"
        path = fetch(self.source, name, **self.hub) if name.endswith(SAFE_SUFFIXES) else None
        if path is None:
            return None
        with open_safetensors(path) as file:
            metadata = file.metadata() or {}
        try:
            return {key: ast.literal_eval(value) for key, value in metadata.items() if key != "format"} or None
        except (ValueError, SyntaxError):
            return None

    def _pickled_config(self) -> dict[str, Any] | None:
        """Some pickles keep the arguments of training beside the tensors; those that say nothing to us are ignored."""
        name = self.filename or ""
        path = fetch(self.source, name, **self.hub) if name.endswith(PICKLE_SUFFIXES) else None
        if path is None:
            return None
        try:
            found = _inside(_read_pickle(path), "args")
        except ConversionError:
            return None
        found = vars(found) if isinstance(found, argparse.Namespace) else found
        return found if isinstance(found, dict) and recognise(found) is not None else None

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors under their original names, mapped from disk where the format allows it."""
        names = (self.filename,) if self.filename else self.adapter.weight_files
        for name in names:
            path = fetch(self.source, name, **self.hub)
            if path is not None:
                return read_state_dict(path, self.adapter.wrappers_of(self.component))
            shards = self._shards(name)
            if shards:
                return {key: tensor for shard in shards for key, tensor in read_state_dict(shard).items()}
        raise ValueError(
            f"{self.source} has no weights: looked for {', '.join(names)}; `filename=` names another file."
        )

    def _shards(self, name: str) -> list[str]:
        index = fetch(self.source, f"{name}.index.json", **self.hub)
        if index is None:
            return []
        paths = {shard: fetch(self.source, shard, **self.hub) for shard in set(read_json(index)["weight_map"].values())}
        missing = sorted(shard for shard, path in paths.items() if path is None)
        if missing:
            raise ValueError(f"{self.source}: the index names files that are not there: {', '.join(missing)}.")
        return list(paths.values())

    def processor(self) -> Any:
        """The processor that belongs to the checkpoint, None where there is none."""
        return self.adapter.processor(self.component, self.config)


def load_original(source: str, components: tuple[str, ...], **kwargs: Any) -> Any:
    """
    The main module of an original checkpoint.

    Args:
        source: folder, file or Hub id.
        components: what the caller can use ("tokenizer", "ar_prior", ...).
        kwargs: `filename, preset, config`, download arguments, and what `from_pretrained` takes.
    """
    return next(iter(load_original_parts(source, components, **kwargs).values()))


def load_original_parts(source: str, components: tuple[str, ...] = (), **kwargs: Any) -> dict[str, Any]:
    """As [`load_original`], with all modules by pipeline component."""
    from .build import from_original_parts

    hub, kwargs = split_hub_arguments(kwargs)
    chosen = {name: kwargs.pop(name, None) for name in ("filename", "preset", "config")}
    for name in ("variant", "use_safetensors", "trust_remote_code", "weights_only"):
        kwargs.pop(name, None)
    checkpoint = OriginalCheckpoint(source, **chosen, **hub)
    if components and checkpoint.component not in components:
        raise ValueError(
            f"{source} is a {checkpoint.component} of {checkpoint.adapter.system}; expected {' or '.join(components)}."
        )
    return from_original_parts(
        checkpoint.adapter.system, checkpoint.component, checkpoint.config, checkpoint.state_dict(), **kwargs
    )


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """A configuration from a JSON or YAML file; YAML tags that name code are refused."""
    if str(path).endswith((".yaml", ".yml")):
        import yaml

        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not plain YAML: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} should hold a mapping, it holds a {type(content).__name__}.")
        return content
    return read_json(path)


def open_safetensors(path: str) -> Any:
    """
    An open safetensors file.

    Raises:
        ConversionError: where the file is damaged.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path} is not a complete safetensors file: {error}") from error


def read_state_dict(path: str, wrappers: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """
    Tensors of a file.

    Args:
        path: a `.safetensors` file, or a pickle (`.pt`, `.pth`, `.bin`, `.ckpt`), of which only tensors are read.
        wrappers: keys under which a pickle may keep its tensors; "a.b" is a key in what lies under another.

    Raises:
        ConversionError: for a damaged file, one with code in it, or one without tensors.
    """
    if path.endswith(SAFE_SUFFIXES):
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConversionError(f"{path} is not a complete safetensors file: {error}") from error
    content = _read_pickle(path)
    for wrapper in wrappers:
        found = _inside(content, wrapper)
        if isinstance(found, dict):
            content = found
            break
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)} if content else {}
    if not tensors:
        raise ConversionError(f"{path} holds no tensors; its keys are {list(content)[:10] if content else []}.")
    return tensors


def _inside(content: Any, wrapper: str) -> Any:
    """What lies under a key, or under keys in keys ("trainer.unitok"); None where there is no such thing."""
    for key in wrapper.split("."):
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _read_pickle(path: str) -> Any:
    # arguments of training lie beside the tensors of many files; a Namespace is a bag of values, no code runs
    with torch.serialization.safe_globals([argparse.Namespace]):
        return _read_tensors_and_values(path)


def _read_tensors_and_values(path: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} holds more than tensors and is not opened: {str(error).splitlines()[0]}"
        ) from error
    except (RuntimeError, EOFError, OSError):  # files older than the zip format cannot be mapped
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConversionError(f"{path} is not a readable checkpoint: {reason}") from error


def preset_names() -> dict[str, Preset]:
    """All presets by name."""
    return {name: preset for adapter in all_adapters() for name, preset in adapter.presets.items()}
