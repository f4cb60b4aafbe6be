"""
The loop of autoregressive priors: prefill, then steps of one token, a group, or a level, with one forward for guidance.

Nothing here waits for the device: scales and lengths are Python numbers, ids stay tensors.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cache,
    DynamicCache,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import StaticLayer

from .guidance import check_scale, combine
from .sampling import Generators, draw_exponential

CfgScale = float | Callable[[int, int], float]


def logits_warpers(
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> LogitsProcessorList:
    """
    Filters in the usual order: temperature, top-k, top-p, min-p.

    Args:
        temperature: divides logits; 0 (greedy) and 1 leave them alone.
        top_k: how many candidates stay, 0 for all.
        top_p: probability mass that stays; 0 and 1 mean all.
        min_p: candidates below this share of the best one's probability leave, 0 for none.

    Raises:
        ValueError: for values out of range.
    """
    check_scale("temperature", temperature)
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0 (0 = the most probable id), got {temperature!r}.")
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
        raise ValueError(f"top_k must be a whole number from 0 (all), got {top_k!r}.")
    for name, value in (("top_p", top_p), ("min_p", min_p)):
        check_scale(name, value)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")
    warpers = LogitsProcessorList()
    if temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if 0 < top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))
    if min_p:
        warpers.append(MinPLogitsWarper(float(min_p)))
    return warpers


@dataclass
class TokenSampler:
    """
    What happens between logits and ids: guidance, filters, the draw, the log-probability.

    For sub-codes with settings of their own use `dataclasses.replace(sampler, top_k=...)`.

    Args:
        cfg_scale: weight of guidance, or a function of (step, number of steps) for schedules.
        cfg_interval: the last step with guidance, counted from the one after the first; -1 for all. The first step is
            always guided (LlamaGen).
        temperature, top_k, top_p, min_p: see [`logits_warpers`]. Temperature 0 takes the most probable id.
        generator: random generator, or one per image.
        draws: Exp(1) draws to use instead, one tensor of the shape of the logits for each call.
        logits_processor: functions `(None, logits (R, V)) -> logits`, run before the filters.
        guide: how conditional and unconditional logits are joined: `(cond, uncond, scale) -> logits`.
        guided: whether batches hold the conditional half followed by the unconditional one.
        num_steps: length of the schedule.
    """

    cfg_scale: CfgScale = 1.0
    cfg_interval: int = -1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    generator: Generators = None
    draws: Iterable[Tensor] | None = None
    logits_processor: Sequence[Callable[[None, Tensor], Tensor]] = ()
    guide: Callable[[Tensor, Tensor, float], Tensor] = combine
    guided: bool = False
    num_steps: int = 0
    warpers: LogitsProcessorList = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.cfg_scale):
            check_scale("cfg_scale", self.cfg_scale)
        if isinstance(self.cfg_interval, bool) or not isinstance(self.cfg_interval, int):
            raise ValueError(f"cfg_interval must be a whole number (-1 = all steps), got {self.cfg_interval!r}.")
        self.warpers = logits_warpers(self.temperature, self.top_k, self.top_p, self.min_p)
        self.draws = None if self.draws is None else iter(self.draws)

    def cfg_at(self, step: int) -> float | None:
        """Weight of guidance at `step`; None where conditional logits are taken as they are."""
        if not self.guided or (self.cfg_interval > -1 and step - 1 > self.cfg_interval):
            return None
        if not callable(self.cfg_scale):
            return self.cfg_scale
        scale = self.cfg_scale(step, self.num_steps)
        check_scale(f"cfg_scale({step}, {self.num_steps})", scale)
        return scale

    def guide_logits(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Guided and conditional logits, float32 `(B, n, V)`, of `(B, n, V)` or, with guidance, `(2B, n, V)`."""
        cond = logits.float()
        if not self.guided:
            return cond, cond
        cond, uncond = cond.chunk(2)
        scale = self.cfg_at(step)
        return (cond if scale is None else self.guide(cond, uncond, scale)), cond

    def probabilities(self, logits: Tensor) -> Tensor:
        """Filtered probabilities `(..., V)` of guided logits."""
        flat = logits.reshape(-1, logits.shape[-1])
        for process in (*self.logits_processor, self.warpers):
            flat = process(None, flat)
        return flat.softmax(-1).view(logits.shape)

    def choose(self, probabilities: Tensor) -> Tensor:
        """One id for each row, int64 `(...)`: what `torch.multinomial` draws, without its wait for the host."""
        if self.temperature == 0:
            return probabilities.argmax(-1)
        if self.draws is None:
            draws = draw_exponential(tuple(probabilities.shape), self.generator, probabilities.device)
        else:
            draws = next(self.draws).to(probabilities).view(probabilities.shape)
        return (probabilities / draws).argmax(-1)

    def __call__(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """
        Ids of a step.

        Args:
            logits: `(B, n, V)`, or `(2B, n, V)` with guidance.
            step: number of the step, from 0.

        Returns:
            ids, int64 `(B, n)`, and their log-probability `(B,)` under the model itself: without guidance, temperature
            and filters.
        """
        guided, cond = self.guide_logits(logits, step)
        ids = self.choose(self.probabilities(guided))
        log_probs = cond.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        return ids, log_probs.flatten(1).sum(1)


def write_tokens(
    predict: Callable[[Tensor | None, int], Any],
    draw: Callable[[Any, int], tuple[Tensor, Tensor]],
    steps: Iterable[int],
    prior_token_ids: Tensor | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """
    The loop itself, as a generator: whoever iterates sees ids while the rest is still unwritten.

    Args:
        predict: `(ids, step)`, the ids written since its last call (at first the given prefix, or None), to what
            `draw` needs: logits `(B, n, V)`, or hidden states where the ids of a position are drawn one by one.
        draw: `(prediction, step)` to ids `(B, n)` or `(B, n, C)` and log-probabilities `(B,)`; a [`TokenSampler`], or
            a function that calls one for each sub-code.
        steps: numbers of the steps to take.
        prior_token_ids: ids that are given, `(B, p)` or `(B, p, C)`.

    Yields:
        the step, its ids, their log-probabilities.
    """
    ids = prior_token_ids
    for step in steps:
        ids, log_probs = draw(predict(ids, step), step)
        yield step, ids, log_probs


def split_prefix(lengths: Sequence[int], given: int) -> int:
    """
    Number of steps that a prefix of `given` tokens covers.

    Args:
        lengths: tokens that each step writes.
        given: tokens of the prefix.

    Raises:
        ValueError: where the prefix ends inside a step.
    """
    total, step = 0, 0
    while total < given and step < len(lengths):
        total, step = total + lengths[step], step + 1
    if total != given:
        ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        raise ValueError(
            f"prior_token_ids and num_tokens must end with a step: {given} tokens; steps end after {ends}."
        )
    return step


def make_cache(cache: Cache | str | None, num_layers: int, max_length: int) -> Cache:
    """
    A key-value cache.

    Args:
        cache: "dynamic" (or None), "static" (fixed shapes, for `torch.compile`), or a cache to use; a used static one
            is reset.
        num_layers: of the model.
        max_length: positions that a static cache needs.

    Raises:
        ValueError: for another kind, or a dynamic cache that is not empty.
    """
    if cache is None or cache == "dynamic":
        return DynamicCache()
    if cache == "static":
        return Cache(layers=[StaticLayer(max_cache_len=max_length) for _ in range(num_layers)])
    if not isinstance(cache, Cache):
        raise ValueError(f'cache must be "dynamic", "static", False or a Cache of transformers, got {cache!r}.')
    if any(isinstance(layer, StaticLayer) for layer in cache.layers):
        room = min(layer.max_cache_len for layer in cache.layers)
        if room < max_length:
            raise ValueError(f"The static cache has {room} positions, {max_length} are needed.")
        cache.reset()
    elif cache.get_seq_length():
        raise ValueError("The cache is not empty: give a fresh one.")
    return cache


@dataclass
class Window:
    """
    Where the positions of one forward lie, and what they see.

    Args:
        positions: int64 `(n,)`.
        mask: bool, broadcastable to `(B, H, n, M)`; None where everything is seen.
    """

    positions: Tensor
    mask: Tensor | None

    @classmethod
    def causal(
        cls,
        length: int,
        cache: Cache | None,
        device: torch.device,
        *,
        key_mask: Tensor | None = None,
        block: bool = False,
        layer_idx: int = 0,
    ) -> "Window":
        """
        The next `length` positions behind those in `cache`. Build it before the first layer updates the cache.

        Args:
            length: number of new positions n.
            cache: the cache, None where there is none.
            device: of the result.
            key_mask: bool `(B, T)`, False for leading positions (padding) that nobody but themselves sees.
            block: the new positions see each other, all of them (a group or a level).
            layer_idx: the layer of the cache that counts, where not all are of one length.
        """
        past = 0 if cache is None else cache.get_seq_length(layer_idx)
        total = length if cache is None else cache.get_mask_sizes(length, layer_idx)[0]
        positions = past + torch.arange(length, device=device)
        dynamic = cache is None or not any(isinstance(layer, StaticLayer) for layer in cache.layers)
        if key_mask is None and dynamic and (length == 1 or block):
            return cls(positions, None)  # a dynamic cache holds the past and nothing else
        slots = torch.arange(total, device=device)
        mask = slots <= (positions[-1:, None] if block else positions[:, None])  # (n, M)
        if key_mask is None:
            return cls(positions, mask)
        seen = torch.ones(key_mask.shape[0], total, dtype=torch.bool, device=device)
        seen[:, : key_mask.shape[1]] = key_mask[:, :total]
        mask = (mask & seen[:, None]) | (slots == positions[:, None])  # (B, n, M)
        return cls(positions, mask[:, None])


def check_num_tokens(num_tokens: int, longest: int, given: int = 0) -> None:
    """
    Checks a budget.

    Raises:
        ValueError: unless `num_tokens` is a whole number in [1, longest] that holds a prefix of `given` tokens.
    """
    if isinstance(num_tokens, bool) or not isinstance(num_tokens, int) or not 1 <= num_tokens <= longest:
        raise ValueError(f"num_tokens must be a whole number in [1, {longest}], got {num_tokens!r}.")
    if given > num_tokens:
        raise ValueError(f"prior_token_ids has {given} tokens, more than num_tokens={num_tokens}.")


def twice(x: Tensor | None, guided: bool) -> Tensor | None:
    """The batch again behind itself where guidance wants both halves."""
    return torch.cat([x, x]) if guided and x is not None else x


def is_unguided(cfg_scale: CfgScale) -> bool:
    """Whether a constant scale makes guidance superfluous: `uncond + 1 * (cond - uncond)` is `cond`."""
    return not callable(cfg_scale) and math.isclose(cfg_scale, 1.0, abs_tol=0.0)
