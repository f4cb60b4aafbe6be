"""Random draws from a `torch.Generator`, one per image, or given; and the noise that samplers make of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def draw_uniform(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    """Uniform float32 draws in [0, 1) of `shape`; a list of generators draws image by image."""
    return _draw(torch.rand, shape, generator, device)


def draw_normal(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    """Standard normal float32 draws of `shape`; a list of generators draws image by image."""
    return _draw(torch.randn, shape, generator, device)


def draw_exponential(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    """Exp(1) float32 draws of `shape`; `argmax(p / draws)` is a draw from `p`. A list draws image by image."""
    return _draw(_exponential, shape, generator, device)


def _exponential(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    return torch.empty(shape, device=device).exponential_(generator=generator)


def _draw(function, shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    if generator is None or isinstance(generator, torch.Generator):
        source = generator.device if generator is not None else device
        return function(shape, generator=generator, device=source).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"Got {len(generator)} generators for a batch of {shape[0]}: give one, or one per image.")
    return torch.cat([_draw(function, (1, *shape[1:]), one, device) for one in generator])


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise of uniform draws; both logarithms' arguments are kept above 1e-20."""
    return -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()
