"""What the common suite is made of: running any tiny model, cutting batches, comparing outputs."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_vistok.modeling.modeling_utils import PreTrainedImageTokenizer
from hf_vistok.modeling.prior_utils import PreTrainedImagePrior
from hf_vistok.registration import load_processor_class
from hf_vistok.registry import find_model

from .tiny import BROKEN, TINY, shaken

Outputs = dict[str, Tensor]


class Case:
    """One tiny model with its name, made once and shared by all tests that do not change it."""

    def __init__(self, name: str) -> None:
        self.name, self.tiny = name, TINY[name]
        torch.manual_seed(0)
        self.model = self.fresh()
        if self.tiny.shake:
            shaken(self.model)

    def fresh(self) -> nn.Module:
        """Another instance, with weights as initialised."""
        return self.tiny()

    # ---------------------------------------------------------------- tokenizers

    def pixels(self, batch: int = 2) -> Tensor:
        return self.tiny.pixels(self.model, batch)

    def encode(self, batch: int = 2, model: nn.Module | None = None, **options: Any) -> Any:
        model = model or self.model
        pixels = self.pixels(batch).to(model.dtype)
        with torch.no_grad():
            return model.encode(pixels, **{**cast(self.tiny.kwargs("encode", batch), model.dtype), **options})

    def decode_options(self, encoded: Any, batch: int) -> dict[str, Any]:
        """What `decode` needs besides latents: the suite's conditions, what `encode` handed on, generators."""
        options = {**self.tiny.kwargs("decode", batch), **(getattr(encoded, "decode_kwargs", None) or {})}
        if "generator" in inspect.signature(type(self.model)._decode).parameters and "noise" not in options:
            options["generator"] = generators(batch)
        return options

    def decode(self, encoded: Any, batch: int = 2, model: nn.Module | None = None) -> Tensor:
        model = model or self.model
        options = cast(self.decode_options(encoded, batch), model.dtype)
        with torch.no_grad():
            return primary(model.decode(encoded.latents, encoded.token_mask, **options))

    def decode_image(self, encoded: Any, index: int, latents: Tensor) -> Tensor:
        """One image's `latents` decoded without a mask, with that image's conditions and generator."""
        options = rows(self.decode_options(encoded, 2), index, 2)
        with torch.no_grad():
            return primary(self.model.decode(latents, **options))

    def id_options(self, encoded: Any) -> dict[str, Any]:
        size = self.decode_options(encoded, 2).get("image_size")
        return {} if size is None else {"image_size": size}

    def ids_to_latents(self, model: nn.Module, encoded: Any) -> Tensor:
        with torch.no_grad():
            return model.ids_to_latents(encoded.token_ids, encoded.token_mask, **self.id_options(encoded))

    def decode_tokens(self, model: nn.Module, encoded: Any) -> Tensor:
        with torch.no_grad():
            options = self.decode_options(encoded, 2)
            return primary(model.decode_tokens(encoded.token_ids, encoded.token_mask, **options))

    @cached_property
    def encoded(self) -> Any:
        """The encoding of the two pictures. Shared: tests that change it make their own by `encode`."""
        return self.encode()

    @property
    def decodes(self) -> bool:
        return self.model.decodes_to is not None

    def processor(self) -> Any:
        """The processor that belongs to the model, None where it takes no pictures."""
        if self.tiny.processor is not None:
            return self.tiny.processor()
        entry, config = find_model(type(self.model).__name__), self.model.config
        cls = load_processor_class(entry) if entry is not None else None
        if cls is None:
            return None
        if config.pixel_range is not None:
            return cls.for_size(config.image_size, config.pixel_range)
        side = config.image_size
        return cls(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=list(config.image_mean),
            image_std=list(config.image_std),
        )

    # ---------------------------------------------------------------- everything

    def run(self, model: nn.Module | None = None, batch: int = 2) -> Outputs:
        """All that the model says in eval mode."""
        model = model or self.model
        if isinstance(model, PreTrainedImageTokenizer):
            return self._said(model, self.encode(batch, model), batch)
        outputs = self.call(model, batch)
        if isinstance(model, PreTrainedImagePrior):
            outputs.update(prefix_names("generated", tensors_of(self.generate(model, batch))))
        return outputs

    def _said(self, model: nn.Module, encoded: Any, batch: int) -> Outputs:
        names = ("latents", "token_ids", "token_mask", "features", "pooled_features")
        found = {name: getattr(encoded, name) for name in names}
        if self.decodes:
            found["sample"] = self.decode(encoded, batch, model)
        return {name: value for name, value in found.items() if value is not None}

    @cached_property
    def outputs(self) -> Outputs:
        """`run()` of the shared model."""
        return self.run()

    def run_image(self, index: int) -> Outputs:
        """What the model says of one image of the batch of two."""
        model = self.model
        if isinstance(model, PreTrainedImageTokenizer):
            with torch.no_grad():
                encoded = model.encode(rows(self.pixels(), index, 2), **rows(self.tiny.kwargs("encode", 2), index, 2))
                found = self._said_of_one(encoded, index)
            return found
        with torch.no_grad():
            torch.manual_seed(0)
            outputs = tensors_of(model(**rows(self.forward_inputs(), index, 2)))
        if isinstance(model, PreTrainedImagePrior):
            outputs.update(prefix_names("generated", tensors_of(self.generate_image(index))))
        return outputs

    def _said_of_one(self, encoded: Any, index: int) -> Outputs:
        names = ("latents", "token_ids", "token_mask", "features", "pooled_features")
        found = {name: getattr(encoded, name) for name in names}
        if self.decodes:
            options = {**rows(self.decode_options(None, 2), index, 2), **(encoded.decode_kwargs or {})}
            found["sample"] = primary(self.model.decode(encoded.latents, encoded.token_mask, **options))
        return {name: value for name, value in found.items() if value is not None}

    def call(self, model: nn.Module, batch: int = 2) -> Outputs:
        """`forward` under no_grad."""
        with torch.no_grad():
            torch.manual_seed(0)
            return tensors_of(model(**cast(self.forward_inputs(batch), dtype_of(model))))

    def loss(self, model: nn.Module) -> Tensor:
        """The training loss; of a model without one, a square of what it gives."""
        output = model(**self.forward_inputs())
        loss = getattr(output, "loss", None)
        if loss is not None:
            return loss
        value = output if isinstance(output, Tensor) else next(iter(tensors_of(output).values()))
        return (value.float() - 1).square().mean()

    def forward_inputs(self, batch: int = 2) -> dict[str, Any]:
        """Arguments of `forward`."""
        given = self.tiny.kwargs("forward", batch)
        if isinstance(self.model, PreTrainedImageTokenizer):
            return {"pixel_values": self.pixels(batch), **self.tiny.kwargs("encode", batch), **given}
        if isinstance(self.model, PreTrainedImagePrior):
            names = inspect.signature(type(self.model).forward).parameters
            defaults = {"token_ids": self.random_ids, "class_labels": self.labels}
            if not self.model.config.num_classes:
                del defaults["class_labels"]
            given.update({name: make(batch) for name, make in defaults.items() if name in names and name not in given})
        return given

    def public_calls(self, model: nn.Module) -> dict[str, Callable[[], Any]]:
        """One call of each public method that uses weights."""
        if isinstance(model, PreTrainedImagePrior):
            return {"generate": lambda: self.generate(model)}
        if not isinstance(model, PreTrainedImageTokenizer):
            return {}
        encoded = self.encoded
        calls: dict[str, Callable[[], Any]] = {"encode": lambda: self.encode(model=model)}
        if self.decodes:
            calls["decode"] = lambda: self.decode(encoded, model=model)
        if model.is_discrete:
            calls["ids_to_latents"] = lambda: self.ids_to_latents(model, encoded)
            calls["get_codebook_entry"] = lambda: model.get_codebook_entry(encoded.token_ids)
        if model.is_discrete and self.decodes:
            calls["decode_tokens"] = lambda: self.decode_tokens(model, encoded)
        return calls

    def compiled_tokenizer(self) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]:
        """Functions of a tokenizer to compile, with their arguments; sampling draws outside of a compiled graph."""
        model = self.model
        functions = {"encode": (model.encode, (self.pixels(),), self.tiny.kwargs("encode", 2))}
        options = self.decode_options(self.encoded, 2)
        if self.decodes and "generator" not in options:
            functions["decode"] = (model.decode, (self.encoded.latents, self.encoded.token_mask), options)
        return functions

    # ---------------------------------------------------------------- priors

    def labels(self, batch: int = 2) -> Tensor:
        return torch.arange(batch) % self.model.config.num_classes

    def random_ids(self, batch: int = 2) -> Tensor:
        model = self.model
        shape = (model.num_tokens,) if model.num_codebooks == 1 else (model.num_tokens, model.num_codebooks)
        return torch.stack(
            [torch.randint(model.codebook_size, shape, generator=generator) for generator in generators(batch)]
        )

    def generate_options(self, batch: int = 2, **options: Any) -> dict[str, Any]:
        given = {**self.tiny.kwargs("generate", batch), **options}
        names = parameters_of(self.model.generate)
        conditions = {"encoder_hidden_states", "class_labels"} & set(given)
        if "class_labels" in names and not conditions and self.model.config.num_classes:
            given["class_labels"] = self.labels(batch)
        return given

    def generate_image(self, index: int, **options: Any) -> Any:
        """What the prior writes for one image of the batch of two."""
        given = self.generate_options(2, generator=generators(2), **options)
        return self.model.generate(**rows(given, index, 2))

    def generate(self, model: nn.Module | None = None, batch: int = 2, seed: int = 0, **options: Any) -> Any:
        model = model or self.model
        options = {"generator": generators(batch, seed), **options}
        return model.generate(**cast(self.generate_options(batch, **options), dtype_of(model)))


@cache
def case_of(name: str) -> Case:
    """The shared case of a name."""
    return Case(name)


def generators(batch: int, seed: int = 0) -> list[torch.Generator]:
    """One generator per image; those of the first images do not depend on the batch."""
    return [torch.Generator().manual_seed(1000 * seed + index) for index in range(batch)]


def parameters_of(function: Callable[..., Any]) -> list[str]:
    """Names of a function's parameters."""
    return list(inspect.signature(function).parameters)


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Float tensors inside `value` in `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: cast(item, dtype) for name, item in value.items()}
    return type(value)(cast(item, dtype) for item in value) if type(value) in (list, tuple) else value


def rows(value: Any, index: int, batch: int) -> Any:
    """The part of a batch's arguments or outputs that belongs to one image, as a batch of one."""
    if isinstance(value, Tensor):
        return value[index : index + 1] if value.ndim and value.shape[0] == batch else value
    if isinstance(value, dict):
        return {name: rows(item, index, batch) for name, item in value.items()}
    return value[index : index + 1] if type(value) is list and len(value) == batch else value


def primary(output: Any) -> Tensor:
    """What a decoder is for: its sample, or the first thing that it has."""
    for name in ("sample", "features", "pooled"):
        value = getattr(output, name, None)
        if value is not None:
            return value
    raise AssertionError("decode returned nothing")


def tensors_of(output: Any) -> Outputs:
    """The tensors of an output, one level of dicts and sequences deep."""
    if isinstance(output, Tensor):
        return {"output": output}
    items = output.items() if hasattr(output, "items") else enumerate(output)
    found: Outputs = {}
    for name, value in items:
        if isinstance(value, Tensor):
            found[str(name)] = value
        elif isinstance(value, (dict, list, tuple)):
            found.update(prefix_names(str(name), tensors_of(value)))
    return found


def prefix_names(prefix: str, outputs: Outputs) -> Outputs:
    return {f"{prefix}.{name}": value for name, value in outputs.items()}


def assert_same(found: Outputs, expected: Outputs, tolerance: float = 0.0, what: str = "") -> None:
    """Equal names, equal integers and masks, floats within `tolerance` of the largest value."""
    assert found.keys() == expected.keys(), f"{what}: {sorted(found)} and {sorted(expected)}"
    for name, value in expected.items():
        assert_close(found[name], value, tolerance, f"{what} {name}".strip())


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 0.0, what: str = "") -> None:
    assert found.shape == expected.shape, f"{what}: shapes {tuple(found.shape)} and {tuple(expected.shape)}"
    assert found.dtype == expected.dtype, f"{what}: {found.dtype} and {expected.dtype}"
    if not expected.is_floating_point() or tolerance == 0.0:
        same = torch.equal(found, expected) or torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
        assert same, f"{what} differs, by up to {(found.double() - expected.double()).abs().max():.3g}"
        return
    assert bool(expected.isfinite().all()), f"{what} is not finite"
    error = (found.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
    limit = tolerance * max(1.0, expected.abs().max().item() if expected.numel() else 1.0)
    assert error <= limit, f"{what} differs by {error:.3g}, more than {limit:.3g}"


@contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    """`torch.empty` gives NaN (the largest integer), so that what nobody initialises shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def skip_if_named(case: Case, test: str) -> None:
    """Skips what the tiny model says does not apply, with its reason."""
    reason = case.tiny.skip.get(test)
    if reason is not None:
        assert len(reason) > 8, f"{case.name} skips {test} without a reason"
        pytest.skip(reason)


KINDS: dict[str, type] = {
    "case": nn.Module,
    "first_case": nn.Module,
    "other_case": nn.Module,
    "tokenizer": PreTrainedImageTokenizer,
    "prior": PreTrainedImagePrior,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """
    Gives `case`, `tokenizer` and `prior` every tiny model of that kind, `first_case` the first of each family and
    `other_case` the others; `--system` picks tiny_<system>.py files.
    """
    chosen = metafunc.config.getoption("--system", default=None)
    systems = chosen.split(",") if chosen else None
    names = [name for name, tiny in TINY.items() if not systems or tiny.system in systems]
    first = {TINY[name].system: name for name in reversed(names) if not TINY[name].compiles_slowly}
    for fixture, kind in KINDS.items():
        if fixture in metafunc.fixturenames:
            cases = [case_of(name) for name in names if isinstance(built(name), kind)]
            if fixture.endswith("_case"):
                cases = [case for case in cases if (case.name in first.values()) == (fixture == "first_case")]
            metafunc.parametrize(fixture, cases, ids=[case.name for case in cases])


def built(name: str) -> nn.Module | None:
    """The model of a name, None where its builder fails (which `test_every_tiny_file_imports` reports)."""
    try:
        return case_of(name).model
    except Exception as error:
        BROKEN[f"{name} of tiny_{TINY[name].system}.py"] = error
        return None
