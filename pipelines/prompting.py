"""Prompts and classes of pipelines with a prior: checks, tokens, features, and what they mean to the prior."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..modeling.layers.guidance import check_scale


def check_prompts(prompt: Any, name: str = "prompt", allow_empty: bool = False) -> list[str]:
    """
    One text or several, as a list.

    Raises:
        ValueError: for something that is no text, no texts at all, or an empty text.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"{name} must be a string or a list of strings, got {prompt!r}.")
    if not prompts:
        raise ValueError(f"{name} is an empty list.")
    if not allow_empty and any(not text.strip() for text in prompts):
        raise ValueError(f"{name} is empty: describe the picture, or leave it out where a class is given.")
    return list(prompts)


def encode_texts(
    tokenizer: Any,
    text_encoder: Any,
    texts: list[str],
    max_length: int | None,
    device: torch.device,
    to_longest: bool = True,
) -> dict[str, Tensor]:
    """
    Features of texts, padded on the tokenizer's side to the longest of them.

    Args:
        tokenizer, text_encoder: of transformers, or ours.
        texts: may hold the empty string.
        max_length: longest text in tokens; as the tokenizer says where None.
        device: of the encoder.
        to_longest: else they are padded to the limit.

    Returns:
        `encoder_hidden_states` `(B, T, D)`, `encoder_attention_mask` `(B, T)`, and `pooled_projections` `(B, D)` where
        the encoder pools.

    Raises:
        ValueError: for a text that is too long, naming it and the limit.
    """
    limit = tokenizer.model_max_length if max_length is None else max_length
    padding = {"padding": True} if to_longest else {"padding": "max_length", "max_length": limit}
    tokens = tokenizer(texts, **padding, return_tensors="pt")
    lengths = tokens.attention_mask.sum(1).tolist()
    for text, length in zip(texts, lengths, strict=True):
        if length > limit:
            raise ValueError(f"A prompt has {length} tokens, at most {limit} fit: {text[:80]!r}.")
    mask = tokens.attention_mask.to(device)
    output = text_encoder(input_ids=tokens.input_ids.to(device), attention_mask=mask)
    features = {"encoder_hidden_states": output.last_hidden_state, "encoder_attention_mask": mask}
    pooled = getattr(output, "pooler_output", None)
    return features if pooled is None else {**features, "pooled_projections": pooled}


def repeat_rows(values: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Each row `count` times, one after the other."""
    return {name: value.repeat_interleave(count, 0) for name, value in values.items()}


@dataclass
class Conditions:
    """
    What a call draws, one row per picture.

    Args:
        prior: conditions of the prior's `generate` by name.
        batch: number of pictures.
        text: features of the prompts by name, for decoders that see them too.
        negative_text: the same of a negative prompt; empty where there is none.
    """

    prior: dict[str, Any]
    batch: int
    text: dict[str, Tensor] = field(default_factory=dict)
    negative_text: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, kept: Tensor) -> "Conditions":
        """The texts of some of the pictures."""
        text, negative = ({name: value[kept] for name, value in d.items()} for d in (self.text, self.negative_text))
        return Conditions({}, len(kept), text, negative)


class PromptMixin:
    """For pipelines with the components `prior`, `tokenizer` and `text_encoder`, of which the last two may be None."""

    def encode_prompt(
        self, prompt: str | list[str], num_images_per_prompt: int = 1, *, allow_empty: bool = False
    ) -> dict[str, Tensor]:
        """
        Features of prompts: `encoder_hidden_states`, `encoder_attention_mask`, and `pooled_projections` if there are.

        Args:
            prompt: one text or several.
            num_images_per_prompt: rows per text.
            allow_empty: whether "" is a text; it stands for "no text".

        Raises:
            ValueError: see [`check_prompts`] and [`encode_texts`]; and where there is no text encoder.
        """
        prompts = check_prompts(prompt, allow_empty=allow_empty)
        if self.text_encoder is None:
            raise ValueError("This pipeline has no text_encoder: it draws classes (class_labels=).")
        own, limit = self.tokenizer.model_max_length, getattr(self.prior, "text_length", None)
        limit = own if limit is None else min(limit, own)
        # a prior that takes no mask has seen texts of one length
        masked = "encoder_attention_mask" in self._prior_inputs()
        features = encode_texts(self.tokenizer, self.text_encoder, prompts, limit, self._execution_device, masked)
        return repeat_rows(features, num_images_per_prompt)

    def _prior_inputs(self) -> Any:
        """Names of what the prior takes."""
        return inspect.signature(getattr(self.prior, "condition", self.prior.generate)).parameters

    def make_conditions(
        self,
        count: int,
        *,
        prompt: str | list[str] | None = None,
        class_labels: int | list[int] | Tensor | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
    ) -> Conditions | None:
        """
        What a call asks for, `count` rows per prompt or class; None where it asks for nothing.

        Raises:
            ValueError: for two kinds of conditions at once, or ones that do not fit together.
        """
        given = [value is not None for value in (prompt, class_labels, prompt_embeds)]
        if sum(given) > 1:
            raise ValueError("Give one of prompt, class_labels and prompt_embeds.")
        if not any(given):
            return None
        if class_labels is not None:
            labels = self.prior.check_class_labels(class_labels).repeat_interleave(count)
            return Conditions({"class_labels": labels}, len(labels))
        text = named_features(prompt_embeds, prompt_attention_mask, pooled_prompt_embeds)
        text = repeat_rows(text, count) if prompt is None else self.encode_prompt(prompt, count)
        batch = len(text["encoder_hidden_states"])
        negative = named_features(negative_prompt_embeds, negative_prompt_attention_mask)
        real = bool(negative_prompt) or bool(negative)
        if negative and len(negative["encoder_hidden_states"]) * count == batch:
            negative = repeat_rows(negative, count)
        if not negative:
            negative = self._encode_negative(negative_prompt, batch, count)
        every = {**text, **{f"negative_{name}": value for name, value in negative.items()}}
        known = self._prior_inputs()
        prior = {name: value for name, value in every.items() if name.removeprefix("negative_") in known}
        return Conditions(prior, batch, text, negative if real else {})

    def _encode_negative(self, negative_prompt: str | list[str] | None, batch: int, count: int) -> dict[str, Tensor]:
        """Features of what to stay away from: a prompt, or the empty string. Nothing without a text encoder."""
        if self.text_encoder is None:
            return {}
        prompts = check_prompts("" if negative_prompt is None else negative_prompt, "negative_prompt", True)
        if len(prompts) == 1:
            prompts = prompts * (batch // count)
        if len(prompts) * count != batch:
            raise ValueError(f"Got {len(prompts)} negative prompts for {batch // count} prompts: give one, or as many.")
        return self.encode_prompt(prompts, count, allow_empty=True)

    def check_prior_options(self, prior_guidance_scale: Any, options: dict[str, Any]) -> None:
        """Raises a ValueError for options that the prior's `generate` does not have, or a scale that is not finite."""
        if not callable(prior_guidance_scale):
            check_scale("prior_guidance_scale", prior_guidance_scale)
        known = set(inspect.signature(self.prior.generate).parameters) - {"options", "kwargs", "self"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(f"{type(self.prior).__name__}.generate does not take {', '.join(unknown)}.")


def named_features(
    states: Tensor | None, mask: Tensor | None = None, pooled: Tensor | None = None
) -> dict[str, Tensor]:
    """Features under the names of priors and decoders, without those that are None."""
    named = {"encoder_hidden_states": states, "encoder_attention_mask": mask, "pooled_projections": pooled}
    return {name: value for name, value in named.items() if value is not None}


@dataclass
class Ranking:
    """
    Best of N.

    Args:
        best_of: candidates per prompt; None for no ranking.
        count: how many of them are returned.
        rank_by: "log_probs" (of the prior), or a function of (pictures, their prompts) to one score each, higher is
            better.

    Raises:
        ValueError: for numbers that do not fit, or an unknown criterion.
    """

    best_of: int | None
    count: int
    rank_by: str | Callable[[list[Any], list[str] | None], list[float]] = "log_probs"

    def __post_init__(self) -> None:
        for name, value in (("num_images_per_prompt", self.count), ("best_of", self.candidates)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}.")
        if self.candidates < self.count:
            raise ValueError(f"best_of={self.best_of} candidates cannot give num_images_per_prompt={self.count}.")
        if self.rank_by != "log_probs" and not callable(self.rank_by):
            raise ValueError(f'rank_by must be "log_probs" or a function of (pictures, prompts), got {self.rank_by!r}.')

    @property
    def candidates(self) -> int:
        """Candidates per prompt."""
        return self.count if self.best_of is None else self.best_of

    @property
    def by_tokens(self) -> bool:
        """Whether candidates are ranked before they are drawn."""
        return self.best_of is not None and self.rank_by == "log_probs"

    @property
    def by_pictures(self) -> bool:
        """Whether candidates are ranked after they are drawn."""
        return self.best_of is not None and callable(self.rank_by)

    def best(self, scores: Tensor | None) -> Tensor:
        """Rows of the best of each group, best first, of scores `(prompts * candidates,)`."""
        if scores is None:
            raise ValueError("Ranking by log_probs needs a prior that writes: with given ids rank by a function.")
        if scores.ndim != 1 or scores.numel() % self.candidates or not bool(scores.isfinite().all()):
            raise ValueError(f"Ranking needs one finite score per picture, got {scores.tolist()!r}.")
        best = scores.view(-1, self.candidates).topk(self.count, 1).indices  # (prompts, count)
        return (best + torch.arange(len(best), device=scores.device)[:, None] * self.candidates).flatten()

    def best_pictures(self, images: Any, asked: list[Any] | None) -> Tensor:
        """Rows of the best pictures by the given function; `asked` are the prompts (or labels), one per group."""
        each = None if asked is None else [one for one in asked for _ in range(self.candidates)]
        return self.best(torch.as_tensor(self.rank_by(images, each), dtype=torch.float32))


def rows_of(images: Any, kept: Tensor) -> Any:
    """Some of the pictures, a list or an array."""
    return [images[i] for i in kept.tolist()] if isinstance(images, list) else images[kept.tolist()]
