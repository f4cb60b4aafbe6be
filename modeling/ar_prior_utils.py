"""The base class of autoregressive priors: one `generate` and one `stream` over every family's prefill and step."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache

from .layers.generation import (
    CfgScale,
    TokenSampler,
    check_num_tokens,
    is_unguided,
    make_cache,
    split_prefix,
    twice,
    write_tokens,
)
from .modeling_utils import INTEGER_TYPES
from .outputs import ImagePriorOutput
from .prior_utils import PreTrainedImagePrior

SAMPLING = ("cfg_scale", "cfg_interval", "temperature", "top_k", "top_p", "min_p")
CONDITIONS = ("class_labels", "encoder_hidden_states", "encoder_attention_mask", "pooled_projections")
Condition = dict[str, Any]


class PreTrainedARPrior(PreTrainedImagePrior):
    """
    An autoregressive prior.

    A family implements

    - `condition(class_labels=, encoder_hidden_states=, encoder_attention_mask=, pooled_projections=)`: a dict of
      tensors, batch first; it names the arguments that it understands;
    - `null_condition(condition)`: the same of the null class, or of no text;
    - `prefill(condition, token_ids, cache)`: logits `(B, n, V)` of the next step behind the ids `(B, p)`, or None;
    - `decode_step(token_ids, condition, cache)`: the same behind the ids that the last step wrote;

    and, where it does not write one token a step, `step_lengths` and `draw`; where guidance changes from step to step,
    `schedule_settings` (names of further options of `generate`) and `scheduled`. `condition` may be filled in `prefill`
    with what all steps need (keys of a cross-attention). Ids are `(B, n, C)` for C codebooks.
    """

    main_input_name = "token_ids"
    default_settings = {
        "cfg_scale": 1.0,
        "cfg_interval": -1,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
    }

    # what pipelines ask: whether the condition is a text, how many features it has at most, on which side it is padded,
    # and whether guidance needs the features of the empty string (no null text is stored)
    is_text_conditional: bool = False
    text_length: int | None = None
    text_padding_side: str = "right"
    needs_negative_text: bool = False
    schedule_settings: tuple[str, ...] = ()

    # ------------------------------------------------------------------ what a family implements

    def condition(self, **conditions: Tensor) -> Condition:
        """Conditions of `generate` and `forward` as a dict of tensors, batch first."""
        raise NotImplementedError

    def null_condition(self, condition: Condition) -> Condition:
        """The condition that guidance starts from, for as many rows as `condition`."""
        raise NotImplementedError

    def prefill(self, condition: Condition, token_ids: Tensor | None, cache: Cache | None) -> Tensor:
        """Logits `(B, n, V)` of the step behind `token_ids` `(B, p)` or, where None, of the first step."""
        raise NotImplementedError

    def decode_step(self, token_ids: Tensor, condition: Condition, cache: Cache) -> Tensor:
        """Logits `(B, n, V)` of the step behind the ids of the last step; static shapes, nothing read by the host."""
        raise NotImplementedError

    def step_lengths(self, num_tokens: int) -> list[int]:
        """Tokens that each step writes."""
        return [1] * num_tokens

    def cache_length(self, condition: Condition, num_tokens: int) -> int:
        """Positions that a static cache needs for `num_tokens` tokens."""
        return num_tokens

    @property
    def num_cache_layers(self) -> int:
        """Layers of a static cache."""
        return self.config.num_hidden_layers

    def draw(self, prediction: Any, step: int, sampler: TokenSampler) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities of a step; families with an inner loop over sub-codes do it here."""
        return sampler(prediction, step)

    def scheduled(self, cfg_scale: float, **settings: Any) -> CfgScale:
        """A constant weight of guidance as a schedule, by the settings that `schedule_settings` names."""
        return cfg_scale

    # ------------------------------------------------------------------ conditions

    def _conditions(self, given: dict[str, Any], negative: bool = False) -> Condition:
        prefix = "negative_" if negative else ""
        given = {name: given[prefix + name] for name in CONDITIONS if given.get(prefix + name) is not None}
        self._check_text(given, prefix)
        return self.condition(**given)

    def _check_text(self, given: dict[str, Any], prefix: str) -> None:
        states, mask = given.get("encoder_hidden_states"), given.get("encoder_attention_mask")
        name = type(self).__name__
        if states is not None and (states.ndim != 3 or not states.is_floating_point() or 0 in states.shape):
            raise ValueError(
                f"{name}: {prefix}encoder_hidden_states must be float (B, T, D), got {tuple(states.shape)}."
            )
        if mask is not None and (states is None or mask.shape != states.shape[:2]):
            raise ValueError(
                f"{name}: {prefix}encoder_attention_mask must be (B, T), as {prefix}encoder_hidden_states (B, T, D), "
                f"got {tuple(mask.shape)}."
            )

    @staticmethod
    def batch_size(condition: Condition) -> int:
        """Rows of a condition."""
        return next(value.shape[0] for value in condition.values() if isinstance(value, Tensor))

    def join_conditions(self, condition: Condition, negative: Condition) -> Condition:
        """
        Conditional rows, then unconditional ones. Of two texts the shorter is padded on the right, and masked.

        Raises:
            ValueError: where the negative condition has another number of rows, other than 1.
        """
        batch, rows = self.batch_size(condition), self.batch_size(negative)
        if rows not in (1, batch):
            raise ValueError(f"Got {rows} negative conditions for a batch of {batch}: give one, or one per row.")
        joined = {}
        for name, value in condition.items():
            other = negative[name].expand(batch, *negative[name].shape[1:])
            if value.ndim > 1 and name.startswith("encoder_"):
                length = max(value.shape[1], other.shape[1])
                value, other = pad_rows(value, length), pad_rows(other, length)
            joined[name] = torch.cat([value, other.to(value.dtype)])
        return joined

    def drop_conditions(self, condition: Condition, probability: float, null: Condition | None = None) -> Condition:
        """For training with guidance: each row gets the null condition with this probability."""
        null, batch = self.null_condition(condition) if null is None else null, self.batch_size(condition)
        drop = torch.rand(batch, device=self.device) < probability

        def mix(name: str, value: Tensor) -> Tensor:
            return torch.where(drop.view(-1, *[1] * (value.ndim - 1)), null[name].to(value.dtype), value)

        return {name: mix(name, value) for name, value in condition.items()}

    # ------------------------------------------------------------------ generation

    def _check_prefix(self, prior_token_ids: Tensor | None, batch: int) -> Tensor | None:
        if prior_token_ids is None:
            return None
        name, books = type(self).__name__, self.num_codebooks
        shape = f"({batch}, p)" if books == 1 else f"({batch}, p, {books})"
        if not isinstance(prior_token_ids, Tensor) or prior_token_ids.dtype not in INTEGER_TYPES:
            raise ValueError(f"{name}: prior_token_ids must be an int64 tensor {shape}.")
        tail = prior_token_ids.shape[2:] if prior_token_ids.ndim > 1 else None
        if tail != (() if books == 1 else (books,)) or len(prior_token_ids) != batch:
            raise ValueError(f"{name}: prior_token_ids must have shape {shape}, got {tuple(prior_token_ids.shape)}.")
        if prior_token_ids.shape[1] == 0:
            return None
        if bool(((prior_token_ids < 0) | (prior_token_ids >= self.codebook_size)).any()):
            low, high = int(prior_token_ids.min()), int(prior_token_ids.max())
            raise ValueError(f"{name}: prior_token_ids must lie in [0, {self.codebook_size - 1}], got {low} to {high}.")
        return prior_token_ids.long().to(self.device)

    def sampler(self, **settings: Any) -> TokenSampler:
        """The sampler of this checkpoint: published settings, replaced by those of `settings` that are not None."""
        published = {name: self.setting(name, settings.pop(name, None)) for name in SAMPLING}
        return TokenSampler(**published, **{name: value for name, value in settings.items() if value is not None})

    @apply_forward_hook
    def stream(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """
        Writes ids and yields them step by step, so that a caller sees the first while the rest is unwritten.

        Arguments and errors are those of [`generate`]; they are checked at once and not at the first step.

        Yields:
            ids of a step `(B, n)` or `(B, n, C)`, and their log-probabilities `(B,)`. A given prefix is not repeated.
        """
        return self._stream(*self._prepare(*args, **kwargs))

    def _stream(self, predict: Callable, sampler: TokenSampler, steps: range, prefix: Tensor | None) -> Iterator:
        def draw(prediction: Any, step: int) -> tuple[Tensor, Tensor]:
            return self.draw(prediction, step, sampler)

        written = write_tokens(predict, draw, steps, prefix)
        while True:
            with torch.no_grad():  # around each step and not around the yield: it must not leak into the caller
                step = next(written, None)
            if step is None:
                return
            yield step[1], step[2]

    def _prepare(
        self,
        class_labels: int | list[int] | Tensor | None = None,
        *,
        prior_token_ids: Tensor | None = None,
        num_tokens: int | None = None,
        cache: Cache | str | bool | None = None,
        compiled_step: Callable[[Tensor, Condition, Cache], Tensor] | None = None,
        **options: Any,
    ) -> tuple[Callable, TokenSampler, range, Tensor | None]:
        """Checks everything; returns the prediction function, the sampler, the steps to take, and the prefix."""
        known = {*CONDITIONS, *(f"negative_{name}" for name in CONDITIONS), *SAMPLING, *EXTRAS, *self.schedule_settings}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(f"{type(self).__name__}.generate does not take {', '.join(unknown)}.")
        options["class_labels"] = class_labels
        sampler = self.sampler(**{name: options.get(name) for name in (*SAMPLING, *EXTRAS)})
        with torch.no_grad():
            condition = self._conditions(options)
            batch = self.batch_size(condition)
            sampler.guided = not is_unguided(sampler.cfg_scale)
            if sampler.guided:
                has_negative = any(options.get(f"negative_{name}") is not None for name in CONDITIONS)
                negative = self._conditions(options, True) if has_negative else self.null_condition(condition)
                condition = self.join_conditions(condition, negative)
        if sampler.guided and not callable(sampler.cfg_scale):
            schedule = {name: self.setting(name, options.get(name)) for name in self.schedule_settings}
            sampler.cfg_scale = self.scheduled(sampler.cfg_scale, **schedule)
        if isinstance(sampler.generator, (list, tuple)) and len(sampler.generator) != batch:
            raise ValueError(f"Got {len(sampler.generator)} generators for a batch of {batch}.")
        prefix = self._check_prefix(prior_token_ids, batch)
        given = 0 if prefix is None else prefix.shape[1]
        num_tokens = self.num_tokens if num_tokens is None else num_tokens
        check_num_tokens(num_tokens, self.num_tokens, given)
        lengths = self.step_lengths(self.num_tokens)
        sampler.num_steps, last = len(lengths), split_prefix(lengths, num_tokens)
        steps = range(split_prefix(lengths, given), last)
        predict = self._predictor(condition, sampler.guided, cache, num_tokens, compiled_step)
        return predict, sampler, steps, prefix

    def _predictor(
        self, condition: Condition, guided: bool, cache: Any, num_tokens: int, compiled_step: Callable | None
    ) -> Callable[[Tensor | None, int], Tensor]:
        if cache is False:
            return self._uncached_predictor(condition, guided)
        store = make_cache(cache, self.num_cache_layers, self.cache_length(condition, num_tokens))
        advance, first = compiled_step or self.decode_step, True

        def predict(token_ids: Tensor | None, step: int) -> Tensor:
            nonlocal first
            token_ids = twice(token_ids, guided)
            if first:
                first = False
                return self.prefill(condition, token_ids, store)
            return advance(token_ids, condition, store)

        return predict

    def _uncached_predictor(self, condition: Condition, guided: bool) -> Callable[[Tensor | None, int], Tensor]:
        written: list[Tensor] = []

        def predict(token_ids: Tensor | None, step: int) -> Tensor:
            if token_ids is not None:
                written.append(token_ids)
            everything = torch.cat(written, 1) if written else None
            return self.prefill(condition, twice(everything, guided), None)

        return predict

    @apply_forward_hook
    @torch.no_grad()
    def generate(
        self,
        class_labels: int | list[int] | Tensor | None = None,
        *,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        negative_class_labels: int | list[int] | Tensor | None = None,
        negative_encoder_hidden_states: Tensor | None = None,
        negative_encoder_attention_mask: Tensor | None = None,
        negative_pooled_projections: Tensor | None = None,
        prior_token_ids: Tensor | None = None,
        num_tokens: int | None = None,
        cfg_scale: CfgScale | None = None,
        cfg_interval: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        draws: Any = None,
        logits_processor: Any = None,
        token_streamer: Any = None,
        cache: Cache | str | bool | None = None,
        compiled_step: Callable | None = None,
        **options: Any,
    ) -> ImagePriorOutput:
        """
        Writes ids.

        Args:
            class_labels: one label or several, in [0, num_classes).
            encoder_hidden_states: text features `(B, T, D)`.
            encoder_attention_mask: `(B, T)`, 1 where a feature counts.
            pooled_projections: one text vector per row, `(B, D)`.
            negative_class_labels, negative_encoder_hidden_states, negative_encoder_attention_mask,
                negative_pooled_projections: what guidance leads away from, one row or B; the model's own null
                condition where None.
            prior_token_ids: ids to continue, `(B, p)`; they are part of the result.
            num_tokens: length of the result, `prior_token_ids` included; the full length where None.
            cfg_scale: weight of guidance (1: none), or a function of (step, number of steps) for a schedule.
            cfg_interval: last guided step, -1 for all; see [`TokenSampler`].
            temperature, top_k, top_p, min_p: of the draw; temperature 0 takes the most probable id.
            generator: random generator, or one per row.
            draws: Exp(1) draws to use instead, one tensor for each draw.
            logits_processor: functions `(None, logits (R, V)) -> logits`, run on guided logits.
            token_streamer: called as `f(step, ids)` after each step, or an object with `put(ids)` and `end()`.
            cache: "dynamic" (None), "static" (for a compiled step), a cache of transformers, or False: no cache, the
                whole prefix is computed at every step.
            compiled_step: a compiled [`decode_step`].
            options: what the family's `schedule_settings` names.

        Returns:
            [`ImagePriorOutput`] with `token_ids` `(B, N)` and `log_probs` `(B,)` of the written ids, both without the
            influence of guidance, temperature and filters.

        Raises:
            ValueError: for conditions, ids, lengths or settings out of range, and options that the loop does not have.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "options", "token_streamer")}
        predict, sampler, steps, prefix = self._prepare(given.pop("class_labels"), **given, **options)
        written, log_probs = [] if prefix is None else [prefix], None
        for step, (ids, logs) in zip(steps, self._stream(predict, sampler, steps, prefix), strict=True):
            written.append(ids)
            log_probs = logs if log_probs is None else log_probs + logs
            announce(token_streamer, step, ids)
        if hasattr(token_streamer, "end"):
            token_streamer.end()
        token_ids = torch.cat(written, 1)
        return ImagePriorOutput(
            token_ids=token_ids,
            log_probs=torch.zeros(len(token_ids), device=token_ids.device) if log_probs is None else log_probs,
        )


EXTRAS = ("generator", "draws", "logits_processor")


def pad_rows(x: Tensor, length: int) -> Tensor:
    """`(B, T, ...)` to `(B, length, ...)` with zeros on the right."""
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, length - x.shape[1]))


def announce(token_streamer: Any, step: int, ids: Tensor) -> None:
    """Hands the ids of a step to a function `f(step, ids)` or to an object with `put(ids)`."""
    if token_streamer is None:
        return
    if hasattr(token_streamer, "put"):
        token_streamer.put(ids)
    else:
        token_streamer(step, ids)
