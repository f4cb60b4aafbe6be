"""
Tiny randomly initialised models, one or more per family, for the common suite and for cards, pipelines and Spaces.

`tests/tiny_<system>.py` has a function `build() -> dict[str, Callable[[], model] | Tiny]`; the names are of the
family's choice ("titok", "titok-kl", "maskgit"). `TINY` holds them all.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Kwargs = dict[str, Any] | Callable[[int], dict[str, Any]]


@dataclass
class Tiny:
    """
    A tiny model and what the suite has to know to run it. Only `build` is needed where the defaults fit.

    Keyword arguments are a dict, or a function of the batch size; tensors and lists with one entry per image are cut
    when the suite runs images one by one. `None` stands for "as `encode_kwargs`/empty".

    Args:
        build: a fresh instance from the global random state, in eval mode, in under a second.
        inputs: batch size -> `pixel_values` (tokenizers); by default uniform over `pixel_range` at `image_size`.
        encode_kwargs, decode_kwargs: conditions and options of a tokenizer's methods. Noise of stochastic decoders
            comes from generators (one per image), where `_decode` has `generator`.
        forward_kwargs: of `forward` in training. Of a prior or a flow model: all of its inputs but the published ids
            (`token_ids`, `class_labels` are filled in where its `forward` has them and they are not given).
        generate_kwargs: of a prior's `generate`: conditions (in place of `class_labels`) and few steps.
        shake: give all weights values of natural size, so that zero-initialised gates do not hide mistakes.
        grad_free: patterns (`re.search` on parameter names) of what `forward` rightly gives no gradient -> reason.
        skip: name of a test without "test_" -> the reason why it does not apply.
        tolerance: of float32 comparisons, where sampling or depth amplifies rounding.
        processor: makes the processor, where `for_size` of the registered class does not.
        unguided: the guidance scale of a prior's `generate` that needs no unconditional half.
        prefix: number of tokens at which a prior can go on; by default half of them.
        compiles_slowly: torch.compile unrolls a loop of its; it is traced in the slow suite only.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor] | None = None
    encode_kwargs: Kwargs = field(default_factory=dict)
    decode_kwargs: Kwargs = field(default_factory=dict)
    forward_kwargs: Kwargs = field(default_factory=dict)
    generate_kwargs: Kwargs = field(default_factory=dict)
    shake: bool = True
    grad_free: dict[str, str] = field(default_factory=dict)
    skip: dict[str, str] = field(default_factory=dict)
    tolerance: float = 1e-4
    processor: Callable[[], Any] | None = None
    unguided: float = 1.0
    prefix: int | None = None
    compiles_slowly: bool = False
    system: str = ""

    def __call__(self) -> nn.Module:
        """A fresh model, as `build` makes it."""
        return self.build()

    def pixels(self, model: nn.Module, batch: int) -> Tensor:
        """The same pictures for the same batch size; the first ones of a larger batch are those of a smaller one."""
        if self.inputs is not None:
            return self.inputs(batch)
        config = model.config
        uniform = torch.stack(
            [
                torch.rand(
                    (config.num_channels, config.image_size, config.image_size),
                    generator=torch.Generator().manual_seed(index),
                )
                for index in range(batch)
            ]
        )
        return model.normalize_pixels(uniform)

    def kwargs(self, name: str, batch: int) -> dict[str, Any]:
        """The keyword arguments `name` ("encode", "decode", "forward", "generate") for a batch."""
        value = getattr(self, f"{name}_kwargs")
        return dict(value(batch) if callable(value) else value)


def grid_targets(name: str, count: int, size: int) -> Callable[[int], dict[str, Tensor]]:
    """A teacher's ids `(B, count)` below `size`, as keyword argument `name` of a forward in training."""

    def make(batch: int) -> dict[str, Tensor]:
        return {name: torch.randint(size, (batch, count), generator=torch.Generator().manual_seed(0))}

    return make


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights of natural size everywhere, also where it starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            draws = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(draws / math.sqrt(max(parameter[0].numel(), 1)))
            else:
                parameter.add_(0.1 * draws)
    return model


def _collect() -> tuple[dict[str, Tiny], dict[str, Exception]]:
    found: dict[str, Tiny] = {}
    broken: dict[str, Exception] = {}
    for path in sorted(Path(__file__).parent.glob("tiny_*.py")):
        try:
            models = importlib.import_module(f"{__package__}.{path.stem}").build()
        except Exception as error:  # one family's mistake must not hide all others: the suite has a test for it
            broken[path.name] = error
            continue
        for name, value in models.items():
            if name in found:
                broken[path.name] = ValueError(f"{name!r} is also in tiny_{found[name].system}.py")
            found[name] = value if isinstance(value, Tiny) else Tiny(value)
            found[name].system = path.stem.removeprefix("tiny_")
    return found, broken


TINY, BROKEN = _collect()
