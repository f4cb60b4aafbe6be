"""What all pipelines share: loading (our folders, embedded ids, original checkpoints), checks, the dispatcher."""

import inspect
import json
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

LOADABLE_CLASSES.setdefault("hf_vistok", {})

# The face fills this: "resolve" (id -> folder), "fetch" (one file of a folder or repository), "pipeline_class",
# and a loader per component for ids and folders that are no pipelines. `pipelines/` itself never imports the face.
LOADERS: dict[str, Callable[..., Any]] = {}

LIBRARIES = ("hf_vistok", "diffusers", "transformers")  # whose classes a model_index.json may name
DOWNLOAD = ("cache_dir", "local_files_only", "token", "revision")

GeneratorArgument = torch.Generator | list[torch.Generator] | None


def read_index(source: str, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """
    The content of a folder's or repository's model_index.json, None where there is none.

    Raises:
        ValueError: where it is no JSON object.
    """
    hub = {name: kwargs[name] for name in DOWNLOAD if name in kwargs}
    path = LOADERS["fetch"](source, "model_index.json", **hub)
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        try:
            index = json.load(file)
        except ValueError as error:
            raise ValueError(f"{source}: model_index.json is not valid JSON: {error}") from error
    if not isinstance(index, dict):
        raise ValueError(f"{source}: model_index.json should hold a JSON object.")
    return index


@cache
def diffusers_folders() -> frozenset[str]:
    """Names under which diffusers records classes of its own pipelines' folders, as "stable_diffusion"."""
    return frozenset(module.name for module in pkgutil.iter_modules(diffusers.pipelines.__path__))


class ImageTokenPipeline(DiffusionPipeline):
    """
    Base class of the pipelines.

    `from_pretrained` takes a pipeline's folder or Hub id, an embedded id, or an original checkpoint of the component
    that `original_component` names; other components may then be given as ids too.
    """

    original_component: str | None = None
    _optional_components: list[str] = []

    @classmethod
    def from_pretrained(cls, source: str, **kwargs: Any) -> "ImageTokenPipeline":
        """
        Loads a pipeline.

        Args:
            source: folder or id.
            kwargs: components (objects, folders or ids) by name, and what diffusers takes. `dtype` defaults to
                float32: half-precision files would otherwise load in different types.
        """
        source = LOADERS.get("resolve", lambda name, revision=None: name)(source, kwargs.get("revision"))
        kwargs = cls._load_named_components(kwargs)
        index = read_index(source, kwargs) if "fetch" in LOADERS else {}
        if index is not None:
            cls._check_index(source, index, kwargs)
            if "torch_dtype" not in kwargs:
                kwargs.setdefault("dtype", torch.float32)
            kwargs.setdefault("use_safetensors", True)  # never a pickle
            return super().from_pretrained(source, **kwargs)
        return cls._from_original(source, kwargs)

    @classmethod
    def _component_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    @classmethod
    def _load_named_components(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        loaded = dict(kwargs)
        for name in cls._component_names():
            if isinstance(loaded.get(name), str):
                if name not in LOADERS:
                    raise ValueError(f"{cls.__name__} cannot load {name!r} from an id: pass the object.")
                loaded[name] = LOADERS[name](loaded[name])
        return loaded

    @staticmethod
    def _check_index(source: str, index: dict[str, Any], kwargs: dict[str, Any]) -> None:
        """
        Looks at model_index.json before diffusers imports what it names.

        Raises:
            ValueError: for a component of another library, a module path, or something that is no pair of names.
        """
        given = {name for name, value in kwargs.items() if value is not None}
        for name, value in index.items():
            if name.startswith("_") or name in given or not isinstance(value, (list, tuple)):
                continue
            names = [part for part in value if part is not None]
            plain = all(isinstance(part, str) and part.isidentifier() for part in names)
            if len(value) != 2 or not plain or (names and value[0] not in (*LIBRARIES, *diffusers_folders())):
                raise ValueError(
                    f"{source}: model_index.json names {value} as its {name}; components come from "
                    f"{', '.join(LIBRARIES)}, by the name of a class. Nothing was loaded."
                )

    @classmethod
    def _from_original(cls, source: str, kwargs: dict[str, Any]) -> "ImageTokenPipeline":
        name = cls.original_component
        if name is None or name not in LOADERS:
            raise OSError(f"{source} has no model_index.json: it is no pipeline's folder.")
        names = cls._component_names()
        components = {key: value for key, value in kwargs.items() if key in names}
        components[name] = LOADERS[name](source, **{key: value for key, value in kwargs.items() if key not in names})
        missing = [
            key
            for key, parameter in inspect.signature(cls.__init__).parameters.items()
            if key != "self" and parameter.default is inspect.Parameter.empty and key not in components
        ]
        if missing:
            raise ValueError(
                f"{source} is an original checkpoint of the {name} alone; give {cls.__name__}.from_pretrained also "
                f"{', '.join(f'{key}=' for key in missing)} (an id, a folder or an object)."
            )
        return cls(**components)

    def check_output_type(self, output_type: str, allowed: tuple[str, ...] = ("pil", "np", "pt", "latent")) -> None:
        """Raises a ValueError for an unknown `output_type`."""
        if output_type not in allowed:
            raise ValueError(f"output_type must be one of {', '.join(allowed)}, got {output_type!r}.")

    def check_generators(self, generator: GeneratorArgument, batch: int) -> None:
        """Raises a ValueError where a list of generators does not fit the batch."""
        if isinstance(generator, (list, tuple)) and len(generator) != batch:
            raise ValueError(f"Got {len(generator)} generators for {batch} images: give one, or one per image.")

    def run_callback(
        self, callback: Callable | None, names: list[str], step: int, values: dict[str, Any], timestep: Any = None
    ) -> dict:
        """Calls a `callback_on_step_end` and returns what it changed. A step has its own number as its time if None."""
        if callback is None:
            return {}
        unknown = [name for name in names if name not in values]
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs {unknown} are unknown; there are {list(values)}.")
        time = step if timestep is None else timestep
        return callback(self, step, time, {name: values[name] for name in names}) or {}


def check_codebooks(prior: Any, image_tokenizer: Any) -> None:
    """
    Whether a prior's ids are those of a tokenizer.

    Raises:
        ValueError: where codebook, number of codebooks or number of tokens differ.
    """
    if not image_tokenizer.is_discrete:
        raise ValueError(f"{type(image_tokenizer).__name__} is continuous, {type(prior).__name__} writes ids.")
    for name in ("codebook_size", "num_codebooks"):
        ours, theirs = getattr(prior, name), getattr(image_tokenizer, name)
        if ours != theirs:
            raise ValueError(f"The prior has {name}={ours}, the image tokenizer {theirs}: they do not belong together.")


class VisTokPipeline(ImageTokenPipeline):
    """Loads whatever pipeline a folder or repository holds; the result is of that pipeline's own class."""

    @classmethod
    def from_pretrained(cls, source: str, **kwargs: Any) -> ImageTokenPipeline:
        """
        Loads a pipeline by the class that its model_index.json names.

        Raises:
            OSError: where there is no model_index.json.
            ValueError: where it names a class that is not one of ours.
        """
        if "fetch" not in LOADERS:
            raise RuntimeError("Import it as `from hf_vistok import VisTokPipeline`.")
        resolved = LOADERS["resolve"](source, kwargs.get("revision"))
        index = read_index(resolved, kwargs)
        if index is None:
            raise OSError(f"{source} has no model_index.json: it is no pipeline's folder.")
        name = index.get("_class_name")
        found = LOADERS["pipeline_class"](name) if isinstance(name, str) else None
        if found is None:
            raise ValueError(f"{source} holds a {name!r}, which is no pipeline of hf_vistok.")
        return found.from_pretrained(source, **kwargs)
