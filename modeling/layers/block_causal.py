"""Block-causal masks: positions in blocks (levels, groups, single tokens) that see their own and all earlier blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache

from .generation import Window


def block_numbers(lengths: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Number of the block of each position, int64 `(sum of lengths,)`."""
    return torch.cat([torch.full((length,), i, device=device) for i, length in enumerate(lengths)])


def block_causal_mask(lengths: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Bool `(N, N)`, True where the row's block is the column's or a later one."""
    numbers = block_numbers(lengths, device)
    return numbers[:, None] >= numbers


def block_window(lengths: Sequence[int], cache: Cache | None, device: torch.device) -> Window:
    """
    Positions and mask of whole blocks that follow what is in `cache`.

    Args:
        lengths: of the new blocks.
        cache: the cache, None where there is none. Build the window before the first layer updates it.
        device: of the result.
    """
    count = sum(lengths)
    if len(lengths) == 1:
        return Window.causal(count, cache, device, block=True)
    past = 0 if cache is None else cache.get_seq_length()
    total = count if cache is None else cache.get_mask_sizes(count, 0)[0]
    ends = past + torch.tensor(lengths).cumsum(0).to(device)[block_numbers(lengths, device)]
    return Window(past + torch.arange(count, device=device), torch.arange(total, device=device) < ends[:, None])
