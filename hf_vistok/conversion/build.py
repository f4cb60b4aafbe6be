"""From an original state dict to modules: rename, check every key and shape, build without a second copy."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from .adapter import Adapter, ConversionError, Part, Plan, State, get_adapter

MAIN = ""  # stands for the main part in names without "/"


def from_original_parts(
    system: str,
    component: str,
    config: dict[str, Any],
    state_dict: Mapping[str, Tensor],
    **model_kwargs: Any,
) -> dict[str, nn.Module]:
    """
    Modules of an original checkpoint, by pipeline component, in eval mode.

    Args:
        system: the family's name, as in the reference.
        component: "tokenizer", "masked_prior", "ar_prior", ...
        config: contents of the original's configuration file(s).
        state_dict: tensors under the original names. Meta tensors give modules on the meta device.
        model_kwargs: `dtype`, `device_map`, `attn_implementation`, ... as `from_pretrained` takes them.

    Raises:
        ConversionError: where a key is missing, left over, or of another shape. Nothing is dropped in silence.
    """
    plan = plan_of(get_adapter(system), component, config)
    states = convert_state_dict(plan, state_dict, f"{system}/{component}")
    kept = {name: part for name, part in plan.parts.items() if states[name] or not part.optional}
    skeletons = {name: _skeleton(part) for name, part in kept.items()}
    for name, module in skeletons.items():
        _check_keys(module, states[name], f"{system}/{component}/{name}")
    on_meta = any(tensor.is_meta for state in states.values() for tensor in state.values())
    build = _assign if on_meta else _materialise
    parts = {name: build(part, skeletons[name], states[name], model_kwargs) for name, part in kept.items()}
    main = next(iter(parts.values()))
    return parts | {name: getattr(main, attribute) for name, attribute in plan.views.items()}


def from_original(
    system: str, component: str, config: dict[str, Any], state_dict: Mapping[str, Tensor], **model_kwargs: Any
) -> nn.Module:
    """The main module of [`from_original_parts`]."""
    return next(iter(from_original_parts(system, component, config, state_dict, **model_kwargs).values()))


def plan_of(adapter: Adapter, component: str, config: dict[str, Any]) -> Plan:
    """
    An adapter's plan.

    Raises:
        ConversionError: where the configuration lacks a key that the adapter needs.
    """
    try:
        return adapter.plan(component, config)
    except KeyError as error:
        raise ConversionError(f"This {adapter.system} {component} configuration lacks the key {error}.") from error


def convert_state_dict(plan: Plan, state_dict: Mapping[str, Tensor], label: str = "") -> dict[str, State]:
    """Original tensors under our names, by part; values are shared wherever no surgery is needed."""
    renames = [(re.compile(pattern), replacement) for pattern, replacement in plan.renames]
    drops = [re.compile(pattern) for pattern in plan.drops]
    state: State = {}
    for name, tensor in state_dict.items():
        if any(pattern.fullmatch(name) for pattern in drops):
            continue
        prefix = next((prefix for prefix in plan.foreign if name.startswith(prefix)), None)
        target = name if prefix is None else plan.foreign[prefix] + name[len(prefix) :]
        for pattern, replacement in renames if prefix is None else ():
            target = pattern.sub(replacement, target)
        if target in state:
            raise ConversionError(f"{label}: two tensors become {target!r}, the second is {name!r}.")
        state[target] = tensor
    if plan.surgery is not None:
        state = plan.surgery(state)
    main, states = next(iter(plan.parts)), {part: {} for part in plan.parts}
    for name, tensor in state.items():
        part, slash, rest = name.partition("/")
        part, rest = (part, rest) if slash else (main, name)
        if part not in states:
            raise ConversionError(f"{label}: {name!r} belongs to no part of {', '.join(states)}.")
        states[part][rest] = tensor
    return states


def _skeleton(part: Part) -> nn.Module:
    with torch.device("meta"):
        return part.model(part.config) if issubclass(part.model, PreTrainedModel) else part.model(**part.config)


def _check_keys(module: nn.Module, state: State, label: str) -> None:
    wanted = module.state_dict()
    tied = set(getattr(module, "all_tied_weights_keys", None) or {})
    missing = sorted(set(wanted) - set(state) - tied)
    extra = sorted(set(state) - set(wanted))
    misshapen = [
        f"{name} {list(state[name].shape)}, expected {list(wanted[name].shape)}"
        for name in sorted(set(wanted) & set(state))
        if state[name].shape != wanted[name].shape
    ]
    problems = [
        f"{title} ({len(names)}): {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
        for title, names in (("missing", missing), ("left over", extra), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise ConversionError(f"The checkpoint does not fit {label}. " + "; ".join(problems) + ".")


def _assign(part: Part, module: nn.Module, state: State, model_kwargs: dict[str, Any]) -> nn.Module:
    module.load_state_dict(state, strict=False, assign=True)
    return _finish(part, module)


def _materialise(part: Part, module: nn.Module, state: State, model_kwargs: dict[str, Any]) -> nn.Module:
    if not issubclass(part.model, PreTrainedModel):
        module = _assign(part, module, state, model_kwargs)
        left = [name for name, tensor in module.named_buffers() if tensor.is_meta]
        if left:
            raise ConversionError(f"{part.model.__name__} has tables that no checkpoint fills: {', '.join(left)}.")
        dtype = model_kwargs.get("dtype")
        return module.to(dtype) if isinstance(dtype, torch.dtype) else module
    # transformers' own loader: it fills tables, ties weights, and understands device_map, dtype, quantization
    model = part.model.from_pretrained(None, config=part.config, state_dict=state, **model_kwargs)
    return _finish(part, model)


def _finish(part: Part, module: nn.Module) -> nn.Module:
    if part.settings:
        module.generation_config = GenerationConfig(do_sample=True, **part.settings)
    return module.eval()
