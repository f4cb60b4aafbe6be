"""hf_vistok: visual tokenizers, and the generators that run on them, behind one `from_pretrained`."""

import importlib
from typing import Any

from .registry import BASE_NAMES, find_model, public_names

__version__ = "0.1.0"

_NAMES = public_names()
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used; a model class is registered with the Auto classes on the way."""
    module = _NAMES.get(name) or BASE_NAMES.get(name)
    if module is None:
        raise AttributeError(f"module 'hf_vistok' has no attribute {name!r}")
    entry = find_model(name)
    if entry is not None:
        from .registration import register

        register(entry)
    if module.startswith("hf_vistok.pipelines"):
        from .registration import prepare_pipelines

        prepare_pipelines()
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
