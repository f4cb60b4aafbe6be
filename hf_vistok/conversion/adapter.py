"""What an adapter is: the translation of one system's published configurations and tensor names into ours."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..registry import FAMILIES

if TYPE_CHECKING:
    from torch import Tensor, nn

State = dict[str, "Tensor"]


class ConversionError(ValueError):
    """A checkpoint that does not fit: the message lists the keys."""


@dataclass
class Part:
    """
    One module of the result.

    Args:
        model: its class.
        config: its configuration object, or the keyword arguments of a diffusers model.
        settings: published generation settings of a prior.
        optional: left out where the checkpoint holds none of its tensors.
    """

    model: type["nn.Module"]
    config: Any
    settings: dict[str, Any] = field(default_factory=dict)
    optional: bool = False


@dataclass
class Plan:
    """
    How one component's tensors become modules.

    Args:
        parts: modules by pipeline component; the first is the main one.
        renames: (pattern, replacement) for `re.sub`, applied to every name in this order. A replacement may put a
            name into another part than the main one: "vae/decoder.conv_in.weight".
        drops: pattern (full match, on the original name) -> reason. Nothing else may be left over.
        surgery: changes the renamed tensors as a whole (splits, joins, transpositions, tables). It has to work on
            the meta device too.
        views: name of a pipeline's component -> attribute of the main module that serves as it, sharing weights.
        foreign: prefix of original names -> what replaces it ("text_encoder/"). The rest of such a name is that of
            another library's module: `renames` do not touch it.
    """

    parts: dict[str, Part]
    renames: Sequence[tuple[str, str]] = ()
    drops: Mapping[str, str] = field(default_factory=dict)
    surgery: Callable[[State], State] | None = None
    views: Mapping[str, str] = field(default_factory=dict)
    foreign: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """
    A published checkpoint by name.

    Args:
        component: what it is, in the words of the reference's table ("tokenizer", "ar_prior", ...).
        config: its configuration in the authors' own shape.
        repo: Hub id.
        filename: of the weights in that repository.
        unverified: the configuration is inferred, the published file was not seen.
    """

    component: str
    config: dict[str, Any]
    repo: str | None = None
    filename: str = "model.safetensors"
    unverified: bool = False


class Adapter:
    """
    Base class of adapters; `hf_vistok/conversion/<system>.py` holds a subclass and its instance `ADAPTER`.

    Attributes:
        system: the family's name.
        presets: published checkpoints by name. The names are those of the lists in the reference's `keys/`.
        missing: published checkpoints that cannot be loaded yet -> why.
        wrappers: keys under which pickled checkpoints keep their tensors, the preferred first.
        config_files, weight_files: names to look for in a folder or repository.
        is_base: whether other systems' configurations extend its own: it is asked after all others.
    """

    system: str
    presets: Mapping[str, Preset] = {}
    missing: Mapping[str, str] = {}
    wrappers: tuple[str, ...] = ("ema", "model_ema", "state_dict", "model", "module")
    config_files: tuple[str, ...] = ("config.json", "config.yaml")
    weight_files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    is_base: bool = False

    def recognise(self, config: dict[str, Any]) -> str | None:
        """The component that a configuration in the authors' shape describes, or None where it is not theirs."""
        return None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """How a component with this original configuration is built. Pure; takes all sizes from `config`."""
        raise ConversionError(f"{self.system} has no component {component!r}.")

    def wrappers_of(self, component: str) -> tuple[str, ...]:
        """`wrappers` for a component, where its files prefer others."""
        return self.wrappers

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """The processor of a tokenizer with this original configuration, None where the component has none."""
        return None


def get_adapter(system: str) -> Adapter:
    """
    The adapter of a system.

    Raises:
        ConversionError: where there is none.
    """
    for family in FAMILIES:
        if family.name == system and family.adapter:
            return importlib.import_module(f"hf_vistok.conversion.{family.adapter}").ADAPTER
    known = ", ".join(family.name for family in FAMILIES if family.adapter)
    raise ConversionError(f"No adapter for {system!r}; known systems: {known}.")


def all_adapters() -> list[Adapter]:
    """The adapters of all families."""
    return [get_adapter(family.name) for family in FAMILIES if family.adapter]


def find_preset(name: str) -> tuple[Adapter, Preset]:
    """
    A preset by its name, or by "system/name" where two systems have one of that name, and its adapter.

    Raises:
        ValueError: with the nearest names, or with the names that tell two apart.
    """
    import difflib

    adapters, (system, _, rest) = all_adapters(), name.rpartition("/")
    found = [adapter for adapter in adapters if rest in adapter.presets and system in ("", adapter.system)]
    if len(found) == 1:
        return found[0], found[0].presets[rest]
    if found:
        choices = " or ".join(repr(f"{adapter.system}/{rest}") for adapter in found)
        raise ValueError(f"The preset {name!r} is of {len(found)} systems: give {choices}.")
    names = [preset for adapter in adapters for preset in adapter.presets]
    near = difflib.get_close_matches(name, names, 5, 0.4)
    raise ValueError(f"No preset {name!r}; did you mean {', '.join(near) or 'one of ' + ', '.join(names)}?")


def recognise(config: dict[str, Any]) -> tuple[Adapter, str] | None:
    """The adapter and the component of a configuration in some authors' shape."""
    for adapter in sorted(all_adapters(), key=lambda adapter: adapter.is_base):
        component = adapter.recognise(config)
        if component is not None:
            return adapter, component
    return None
