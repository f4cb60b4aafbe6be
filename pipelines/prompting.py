"""Prompts of text-to-image pipelines: checks, tokens, features."""

from typing import Any

import torch
from torch import Tensor


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
    tokenizer: Any, text_encoder: Any, texts: list[str], max_length: int | None, device: torch.device
) -> dict[str, Tensor]:
    """
    Features of texts, padded on the tokenizer's side to the longest of them.

    Args:
        tokenizer, text_encoder: of transformers, or ours.
        texts: may hold the empty string.
        max_length: longest text in tokens; as the tokenizer says where None.
        device: of the encoder.

    Returns:
        `encoder_hidden_states` `(B, T, D)`, `encoder_attention_mask` `(B, T)`, and `pooled_projections` `(B, D)` where
        the encoder pools.

    Raises:
        ValueError: for a text that is too long, naming it and the limit.
    """
    limit = tokenizer.model_max_length if max_length is None else max_length
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
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
