"""The Auto classes: one `from_pretrained` for our checkpoints, the authors' own, embedded ones and pipeline folders."""

import os
from typing import Any

from .hub import fetch, read_json, resolve_source, split_hub_arguments
from .registry import ModelEntry, find_model, find_model_type

PRIOR_COMPONENTS = ("ar_prior", "masked_prior")


class _Auto:
    """What the Auto classes share."""

    kind: str

    def __init__(self) -> None:
        raise OSError(f"{type(self).__name__} is made by {type(self).__name__}.from_pretrained(...).")

    @classmethod
    def _open(cls, source: str | os.PathLike, kwargs: dict[str, Any]) -> tuple[str, dict[str, Any], ModelEntry | None]:
        """The resolved source, its config.json (empty where there is none), and our entry for it."""
        source = resolve_source(source, kwargs.get("revision"))
        if os.path.isfile(source) or kwargs.get("preset") or kwargs.get("config") is not None:
            return source, {}, None
        if not os.path.isdir(source) and os.path.exists(os.path.dirname(source)) and os.path.isabs(source):
            raise OSError(f"There is no folder {source}.")
        path = fetch(source, "config.json", **split_hub_arguments(kwargs)[0])
        config = read_json(path) if path else {}
        return source, config, find_model_type(config.get("model_type")) or find_model(config.get("_class_name", ""))

    @classmethod
    def _load_ours(cls, entry: ModelEntry, source: str, kwargs: dict[str, Any]) -> Any:
        from .registration import load_model_class

        if entry.kind != cls.kind:
            raise ValueError(f"{source} holds a {entry.model}, which is a {entry.kind} and not a {cls.kind}.")
        if kwargs.pop("filename", None) is not None:
            raise ValueError(f"{source} is a checkpoint of hf_vistok: `filename` is for original ones; use `variant`.")
        kwargs.pop("preset", None), kwargs.pop("config", None)
        return load_strictly(load_model_class(entry), source, kwargs)


def load_strictly(model_class: Any, source: str, kwargs: dict[str, Any]) -> Any:
    """
    `from_pretrained` that does not fill gaps with fresh weights or drop tensors in silence, as transformers does.

    Raises:
        ValueError: where a tensor is missing, left over or of another shape, or a file is damaged.
    """
    from safetensors import SafetensorError

    loose, wanted = kwargs.get("ignore_mismatched_sizes", False), kwargs.pop("output_loading_info", False)
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # so that all problems are told at once
    _check_safetensors(source, kwargs)
    try:
        model, info = model_class.from_pretrained(source, **{**kwargs, **told})
    except SafetensorError as error:
        weights = f"{source}, {kwargs['subfolder']}" if kwargs.get("subfolder") else source
        raise ValueError(f"{weights}: model.safetensors is not a complete safetensors file: {error}") from error
    found = {
        "missing": sorted(info["missing_keys"]),
        "left over": sorted(info["unexpected_keys"]),
        "of another shape": [
            f"{name} {list(stored)}, expected {list(ours)}" for name, stored, ours in sorted(info["mismatched_keys"])
        ],
    }
    problems = [
        f"{title} ({len(names)}): {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
        for title, names in found.items()
        if names
    ]
    if problems and not loose:
        raise ValueError(f"{source} does not fit {model_class.__name__}. {'; '.join(problems)}.")
    return (model, info) if wanted else model


def _check_safetensors(source: str, kwargs: dict[str, Any]) -> None:
    """
    Our checkpoints are safetensors files; a pickle under one of our configurations is not ours.

    Raises:
        OSError: where there are none. (transformers would try a pickle, or ask a web service to convert it.)
    """
    hub, _ = split_hub_arguments(kwargs)
    variant = f".{kwargs['variant']}" if kwargs.get("variant") else ""
    names = (f"model{variant}.safetensors", f"model.safetensors.index{variant}.json")
    if not any(fetch(source, name, **hub) for name in names):
        raise OSError(f"{source} holds no {names[0]}; under its own configurations hf_vistok loads nothing else.")


class AutoImageTokenizer(_Auto):
    """Loads any image tokenizer."""

    kind = "tokenizer"

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        filename: str | None = None,
        preset: str | None = None,
        config: dict[str, Any] | str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Loads a tokenizer in eval mode.

        Args:
            source: a folder of ours or of the original authors, a Hub id of either, an id of an embedded checkpoint
                ("hf-vistok/..."), a single weight file, or a folder of a pipeline.
            filename: which weight file of an original repository.
            preset: name of a published checkpoint, for weight files that come without a configuration.
            config: the authors' configuration (a dict, or a JSON or YAML file), for the same.
            kwargs: `revision, subfolder, cache_dir, token, local_files_only, dtype, device_map, attn_implementation,
                variant`, and everything else that transformers takes.

        Raises:
            ValueError: for an unknown layout, a checkpoint of another kind, or tensors that do not fit.
            OSError: where there is no such folder, repository or revision.
        """
        chosen = {"filename": filename, "preset": preset, "config": config}
        source, found, entry = cls._open(source, {**kwargs, **chosen})
        if entry is not None:
            return cls._load_ours(entry, source, {**kwargs, **chosen})
        if _library_class(found) is not None:
            return _load_wrapped(source, found, kwargs)
        if not found and preset is None and config is None:
            assembled = _from_pipeline_folder(source, kwargs)
            if assembled is not None:
                return assembled
        from .conversion.loading import load_original

        return load_original(source, ("tokenizer",), **chosen, **kwargs)


class AutoImagePrior(_Auto):
    """Loads any prior: autoregressive or masked."""

    kind = "prior"

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        filename: str | None = None,
        preset: str | None = None,
        config: dict[str, Any] | str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """Loads a prior in eval mode; arguments and errors as for [`AutoImageTokenizer`]."""
        chosen = {"filename": filename, "preset": preset, "config": config}
        source, _, entry = cls._open(source, {**kwargs, **chosen})
        if entry is not None:
            return cls._load_ours(entry, source, {**kwargs, **chosen})
        from .conversion.loading import load_original

        return load_original(source, PRIOR_COMPONENTS, **chosen, **kwargs)


class AutoImageTokenizerProcessor(_Auto):
    """Loads the processor of any image tokenizer."""

    kind = "tokenizer"

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        filename: str | None = None,
        preset: str | None = None,
        config: dict[str, Any] | str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """Loads a processor; of an original checkpoint it is made from its configuration. Arguments as above."""
        chosen = {"filename": filename, "preset": preset, "config": config}
        source, found, entry = cls._open(source, {**kwargs, **chosen})
        hub, options = split_hub_arguments(kwargs)
        if _library_class(found) is not None:
            return _wrapped_processor(source, found, hub, options)
        if entry is not None:
            return cls._load_processor(entry, source, hub, options)
        if not found and preset is None and config is None:
            processor = cls._from_pipeline(source, kwargs)
            if processor is not None:
                return processor
        from .conversion.loading import OriginalCheckpoint

        checkpoint = OriginalCheckpoint(source, **chosen, **hub)
        processor = checkpoint.processor()
        if processor is None:
            raise ValueError(f"{source}, a {checkpoint.component} of {checkpoint.adapter.system}, has no processor.")
        return processor

    @classmethod
    def _from_pipeline(cls, source: str, kwargs: dict[str, Any]) -> Any:
        """The processor that a pipeline's folder holds, as a component of its own or beside its tokenizer."""
        path = None if os.path.isfile(source) else fetch(source, "model_index.json", **split_hub_arguments(kwargs)[0])
        index = read_json(path) if path else {}
        if (index.get("image_processor") or [None, None])[1]:
            import hf_vistok

            return getattr(hf_vistok, index["image_processor"][1]).from_pretrained(
                source, **{**kwargs, "subfolder": "image_processor"}
            )
        return cls.from_pretrained(source, **{**kwargs, "subfolder": "image_tokenizer"}) if index else None

    @staticmethod
    def _load_processor(entry: ModelEntry, source: str, hub: dict[str, Any], options: dict[str, Any]) -> Any:
        from .registration import load_processor_class

        processor = load_processor_class(entry)
        if processor is None:
            raise ValueError(f"{entry.model} takes no pictures, so it has no processor.")
        if fetch(source, "preprocessor_config.json", **hub) is None and hasattr(processor, "for_config"):
            from .registration import load_config_class

            return processor.for_config(load_config_class(entry).from_pretrained(source, **hub), **options)
        return processor.from_pretrained(source, **hub, **options)


def _from_pipeline_folder(source: str, kwargs: dict[str, Any]) -> Any:
    """The tokenizer inside a pipeline's folder: a component, or assembled by the pipeline's class; None elsewhere."""
    hub, _ = split_hub_arguments(kwargs)
    path = None if os.path.isfile(source) else fetch(source, "model_index.json", **hub)
    if path is None:
        return None
    index = read_json(path)
    if "image_tokenizer" in index:
        return AutoImageTokenizer.from_pretrained(source, **{**kwargs, "subfolder": "image_tokenizer"})
    from .registration import pipeline_class, prepare_pipelines

    prepare_pipelines()
    assemble = getattr(pipeline_class(index.get("_class_name")), "load_image_tokenizer", None)
    return None if assemble is None else assemble(source, index, **kwargs)


def _library_class(config: dict[str, Any]) -> str | None:
    """The class of transformers or diffusers that a configuration names, where we wrap it."""
    if not config:
        return None
    from .modeling.wrapped.configuration_wrapped import LIBRARIES

    names = [config.get("_class_name"), *(config.get("architectures") or [])]
    return next((name for name in names if name in LIBRARIES), None)


def _load_wrapped(source: str, config: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    from .modeling.wrapped.modeling_wrapped import WrappedTokenizerModel, inner_class
    from .registration import register

    register(find_model("WrappedTokenizerModel"))
    inner = inner_class(_library_class(config)).from_pretrained(source, **kwargs)
    return WrappedTokenizerModel.wrap(inner)


def _wrapped_processor(source: str, config: dict[str, Any], hub: dict[str, Any], options: dict[str, Any]) -> Any:
    """The processor of a wrapped tokenizer: its size and range, whatever its own library would use."""
    import torch

    from .modeling.image_processing_utils import ImageTokenizerProcessor
    from .modeling.wrapped.configuration_wrapped import WrappedTokenizerConfig
    from .modeling.wrapped.modeling_wrapped import build_inner, config_of

    fields = {name: value for name, value in config.items() if name not in ("architectures", "model_type", "dtype")}
    with torch.device("meta"):
        inner = build_inner(WrappedTokenizerConfig(inner_class=_library_class(config), inner_config=fields))
    return ImageTokenizerProcessor.for_config(config_of(inner), **options)
