"""What counts as parity is decided here, not in a system's hooks: each stored output is compared or has a reason."""

import copy
import functools
import importlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_vistok.conversion import Plan, from_original_parts, get_adapter
from hf_vistok.conversion.adapter import ConversionError
from hf_vistok.conversion.build import convert_state_dict, plan_of

REPORT: dict[str, dict[str, Any]] = {}


@dataclass
class Variant:
    """One fixture: a component at tiny size with its weights, inputs and outputs."""

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "meta.json").read_text())

    @property
    def system(self) -> str:
        return self.folder.parent.name

    @property
    def component(self) -> str:
        return self.meta["component"]

    @property
    def name(self) -> str:
        return f"{self.system}/{self.folder.name}"

    @property
    def config(self) -> dict[str, Any]:
        path = self.folder / "original_config.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        path = self.folder / "original.safetensors"
        return {name: upcast(tensor) for name, tensor in load_file(path).items()} if path.is_file() else {}

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        path = self.folder / "io.safetensors"
        return load_file(path) if path.is_file() else {}

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.stored.items() if name in self.meta["inputs"]}

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.stored.items() if name not in self.meta["inputs"]}


@dataclass
class Hook:
    """
    How one component's stored outputs are obtained.

    Args:
        run: takes a [`Case`], returns outputs by name. It may return a tensor or a function that makes it.
        not_compared: pattern (full match) -> reason.
        converts: whether the weights go through the model converter (losses and metrics do not).
        slices: name -> function that keeps the part of both tensors that may be compared (meta.json's notes).
        also: outputs of ours that the original stored none of, for weights that matter to them alone (a temperature).
    """

    run: Callable[["Case"], dict[str, Any]]
    not_compared: dict[str, str] = field(default_factory=dict)
    converts: bool = True
    slices: dict[str, Callable[[Tensor, "Case"], Tensor]] = field(default_factory=dict)
    also: Callable[["Case"], dict[str, Tensor]] | None = None


@dataclass
class Case:
    """What a hook gets: the converted modules, the inputs, and which outputs are wanted."""

    variant: Variant
    parts: dict[str, torch.nn.Module]
    weights: dict[str, Tensor]

    @property
    def model(self) -> torch.nn.Module:
        return next(iter(self.parts.values()))

    @property
    def inputs(self) -> dict[str, Tensor]:
        return self.variant.inputs

    @property
    def config(self) -> dict[str, Any]:
        return self.variant.config

    @property
    def meta(self) -> dict[str, Any]:
        return self.variant.meta

    @property
    def names(self) -> list[str]:
        """Names of the stored outputs; their values are not shown to hooks."""
        return list(self.variant.outputs)

    def matching(self, pattern: str) -> list[tuple[str, re.Match]]:
        """Stored outputs whose whole name matches, with the match (numbers in names are parameters)."""
        found = ((name, re.fullmatch(pattern, name)) for name in self.names)
        return [(name, match) for name, match in found if match]


def later(make: Callable[[], dict[str, Any]], names: Iterable[str]) -> dict[str, Callable[[], Any]]:
    """Functions of outputs that one costly call gives together; it runs once, and only if one of them is wanted."""
    once = functools.cache(make)
    return {name: functools.partial(lambda name: once()[name], name) for name in names}


def upcast(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def discover(root: Path, systems: list[str] | None = None) -> list[Variant]:
    variants = [Variant(path.parent) for path in sorted(root.glob("*/*/meta.json"))]
    return [variant for variant in variants if not systems or variant.system in systems]


def hook_for(variant: Variant) -> Hook | None:
    try:
        module = importlib.import_module(f".hooks.{variant.system}", __package__)
    except ModuleNotFoundError as error:
        if error.name and error.name.endswith(f"hooks.{variant.system}"):
            return None
        raise
    return module.HOOKS.get(variant.component)


def build(variant: Variant, hook: Hook, weights: dict[str, Tensor]) -> Case:
    parts = {}
    if hook.converts:
        parts = from_original_parts(variant.system, variant.component, variant.config, weights)
    return Case(variant, parts, weights)


@torch.no_grad()
def run(hook: Hook, case: Case, names: set[str]) -> dict[str, Tensor]:
    # inputs and configuration are copies: a hook cannot change what is compared
    results = hook.run(case)
    return {name: (value() if callable(value) else value) for name, value in results.items() if name in names}


def reason_for(hook: Hook, name: str) -> str | None:
    return next((reason for pattern, reason in hook.not_compared.items() if re.fullmatch(pattern, name)), None)


def compare(variant: Variant, name: str, ours: Tensor, stored: Tensor) -> tuple[bool, float]:
    """Whether an output is within the stated tolerance, and its largest absolute error."""
    if tuple(ours.shape) != tuple(stored.shape):
        raise AssertionError(f"{name}: shape {tuple(ours.shape)}, stored {tuple(stored.shape)}")
    rules = variant.meta["tolerance"]
    rule = next((r for key, r in rules.get("per_tensor", {}).items() if name_matches(key, name)), None)
    if rule is None and not stored.is_floating_point():
        return bool((ours == stored.to(ours.dtype)).all()), float((ours.double() - stored.double()).abs().max())
    rule = rule or {"atol": rules["atol"], "rtol": rules["rtol"]}
    ours, stored = ours.double(), stored.double()
    same = (ours == stored) | (ours.isnan() & stored.isnan())  # equal infinities differ by NaN
    error = torch.where(same, 0.0, (ours - stored).abs())
    if "rel_std" in rule:
        allowed = torch.full_like(stored, rule["rel_std"] * float(stored.std()))
    else:
        allowed = rule["atol"] + rule["rtol"] * stored.abs()
    return bool((error <= allowed).all()), float(error.max()) if error.numel() else 0.0


def name_matches(key: str, name: str) -> bool:
    """Names in meta.json may hold `{k}`, which stands for any text."""
    return re.fullmatch(re.sub(r"\\\{\w+\\\}", ".*", re.escape(key)), name) is not None


def check(variant: Variant, hook: Hook) -> dict[str, Any]:
    """Runs a variant and compares; the result is the variant's entry in the report."""
    before = {name: tensor.clone() for name, tensor in variant.stored.items()}
    case = build(variant, hook, copy.deepcopy(variant.weights))
    wanted = {name for name in variant.outputs if reason_for(hook, name) is None}
    results = run(hook, case, wanted)
    compared, failures = {}, []
    for name in sorted(wanted):
        if name not in results:
            failures.append(f"{name}: no hook gives it and no reason is stated")
            continue
        ours, stored = results[name], before[name]
        if name in hook.slices:
            ours, stored = hook.slices[name](ours, case), hook.slices[name](stored, case)
        try:
            good, compared[name] = compare(variant, name, ours, stored)
        except AssertionError as error:
            failures.append(str(error))
            continue
        if not good:
            failures.append(f"{name}: largest error {compared[name]:.3g}")
    changed = [name for name in variant.stored if not torch.equal(variant.stored[name], before[name])]
    if changed:
        failures.append(f"the hook changed stored tensors: {changed}")
    return {
        "component": variant.component,
        "compared": compared,
        "not_compared": {n: reason_for(hook, n) for n in variant.outputs if reason_for(hook, n) is not None},
        "status": "failed" if failures else "passed",
        **({"failures": failures} if failures else {}),
    }


def dropped(variant: Variant) -> dict[str, str]:
    """Stored weights that the adapter drops on purpose, with the reason."""
    plan: Plan = plan_of(get_adapter(variant.system), variant.component, variant.config)
    found = {}
    for name in variant.weights:
        for pattern, reason in plan.drops.items():
            if re.fullmatch(pattern, name):
                found[name] = reason
    return found


def weights_that_do_not_matter(variant: Variant, hook: Hook) -> list[str]:
    """
    Stored weights whose perturbation changes no compared output.

    The modules are built once; each changed set of weights goes through the whole conversion and into them.
    """
    wanted = {name for name in variant.outputs if reason_for(hook, name) is None}
    left_out = dropped(variant) if hook.converts else {}
    case = build(variant, hook, {name: tensor.clone() for name, tensor in variant.weights.items()})
    base = run(hook, case, wanted) | more(hook, case)
    silent = []
    for name, tensor in variant.weights.items():
        if name not in left_out and not changes_something(hook, case, base, name, tensor):
            silent.append(name)
    load(case, hook, variant.weights)
    assert not differs(hook, case, base), "a model remembers earlier weights: the answers above do not count"
    return silent


@torch.no_grad()
def load(case: Case, hook: Hook, weights: dict[str, Tensor]) -> None:
    """Other values of the original weights into the modules of a case."""
    variant, case.weights = case.variant, weights
    if not hook.converts:
        return
    plan = plan_of(get_adapter(variant.system), variant.component, variant.config)
    for name, state in convert_state_dict(plan, weights, variant.name).items():
        if name in case.parts:
            case.parts[name].load_state_dict(state, strict=False)


@torch.no_grad()
def more(hook: Hook, case: Case) -> dict[str, Tensor]:
    """What `also` gives."""
    return {} if hook.also is None else hook.also(case)


@torch.no_grad()
def differs(hook: Hook, case: Case, base: dict[str, Tensor]) -> bool:
    """Whether any output is another than in `base`; what is still to be computed comes last, and only if needed."""
    results = hook.run(case) | more(hook, case)
    for name, value in sorted(results.items(), key=lambda item: callable(item[1])):
        value = value() if name in base and callable(value) else value
        if name in base and not torch.equal(value.nan_to_num(), base[name].nan_to_num()):
            return True
    return False


def changes_something(hook: Hook, case: Case, base: dict[str, Tensor], name: str, tensor: Tensor) -> bool:
    for strength in (0.5, 3.0):  # ids move only when a weight moves far enough
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
        scale = strength * (tensor.float().std() if tensor.numel() > 1 else tensor.float().abs().mean()).clamp_min(0.1)
        moved = (tensor.float() + scale * noise).to(tensor.dtype)
        try:
            load(case, hook, {**case.variant.weights, name: moved})
            if differs(hook, case, base):
                return True
        except (ConversionError, ValueError):
            return True  # the converter or the model noticed
    return False


def read_key_list(path: Path) -> dict[str, Tensor]:
    """A published checkpoint's tensors, on the meta device."""
    state = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            name, shape, dtype = line.rsplit(" ", 2)
            sizes = [int(size) for size in shape.strip("[]").split(",") if size]
            state[name] = torch.empty(sizes, dtype=getattr(torch, dtype), device="meta")
    return state
