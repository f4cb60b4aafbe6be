"""Ids of any tokenizer as one sequence in one vocabulary, which is what language models are built on."""

from typing import Any

import torch
from torch import Tensor


def codebook_offsets(tokenizer: Any) -> dict[str, int]:
    """First id of each codebook of a flat sequence of maps, by the codebook's name, in order of appearance."""
    offsets, total = {}, 0
    for segment in tokenizer.token_segments():
        if segment.codebook not in offsets:
            offsets[segment.codebook] = total
            total += segment.codebook_size
    return offsets


def flat_vocab_size(tokenizer: Any) -> int:
    """Number of different ids of a tokenizer's flat sequence."""
    if not tokenizer.is_discrete:
        raise ValueError(f"{type(tokenizer).__name__} is continuous: it has no vocabulary.")
    if tokenizer.num_codebooks > 1:
        return tokenizer.num_codebooks * tokenizer.codebook_size
    sizes = {segment.codebook: segment.codebook_size for segment in tokenizer.token_segments()}
    return sum(sizes.values())


def _offsets(tokenizer: Any, count: int, device: torch.device) -> Tensor:
    """What to add to the ids of each place: `(count,)` of a sequence, or `(C,)` for C codebooks at one position."""
    if tokenizer.num_codebooks > 1:
        return torch.arange(tokenizer.num_codebooks, device=device) * tokenizer.codebook_size
    by_name = codebook_offsets(tokenizer)
    if len(by_name) == 1:
        return torch.zeros(count, dtype=torch.long, device=device)
    values = [by_name[segment.codebook] for segment in tokenizer.token_segments() for _ in range(segment.length)]
    return torch.tensor(values[:count], device=device)


def flatten_ids(tokenizer: Any, token_ids: Tensor) -> Tensor:
    """See `PreTrainedImageTokenizer.flatten_ids`."""
    return (token_ids + _offsets(tokenizer, token_ids.shape[1], token_ids.device)).flatten(1)


def unflatten_ids(tokenizer: Any, flat_ids: Tensor) -> Tensor:
    """See `PreTrainedImageTokenizer.unflatten_ids`."""
    codebooks = tokenizer.num_codebooks
    if flat_ids.ndim != 2 or flat_ids.shape[1] % codebooks:
        raise ValueError(f"flat_ids must have shape (B, N * {codebooks}), got {tuple(flat_ids.shape)}.")
    if codebooks > 1:
        flat_ids = flat_ids.unflatten(1, (-1, codebooks))
    return flat_ids - _offsets(tokenizer, flat_ids.shape[1], flat_ids.device)
