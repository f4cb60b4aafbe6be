"""Training losses that several families share."""

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_token_loss(
    logits: Tensor, targets: Tensor, mask: Tensor, *, label_smoothing: float = 0.1, unmasked_weight: float = 0.1
) -> tuple[Tensor, Tensor]:
    """
    Cross-entropy over all tokens in which the visible ones weigh less (MaskGIT's objective as TiTok uses it).

    Args:
        logits: `(B, N, V)`.
        targets: int64 `(B, N)`.
        mask: bool or 0/1 `(B, N)`, 1 where the token was hidden.
        label_smoothing: of the cross-entropy.
        unmasked_weight: weight of visible tokens; hidden ones weigh 1.

    Returns:
        the weighted mean, and the share of hidden tokens that were guessed right.
    """
    mask = mask.to(logits.dtype)
    loss = F.cross_entropy(logits.transpose(1, 2), targets, label_smoothing=label_smoothing, reduction="none")
    weights = mask + (1 - mask) * unmasked_weight
    right = (logits.argmax(-1) == targets).to(logits.dtype) * mask
    return (loss * weights).sum() / (weights.sum() + 1e-8), right.sum() / (mask.sum() + 1e-8)


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the first N of `logits` `(B, >= N, V)` against `targets` `(B, N)`."""
    return F.cross_entropy(logits[:, : targets.shape[1]].transpose(1, 2), targets)


def keep_lengths(batch: int, length: int, generator: torch.Generator | None = None, powers: bool = False) -> Tensor:
    """
    Lengths of random prefixes for nested dropout, int64 `(B,)`.

    Args:
        batch: number of images.
        length: the longest prefix.
        generator: random generator.
        powers: draw among 1, 2, 4, ... `length` and not among all lengths.
    """
    if not powers:
        return torch.randint(1, length + 1, (batch,), generator=generator)
    sizes = torch.tensor([2**i for i in range(length.bit_length()) if 2**i <= length])
    return sizes[torch.randint(len(sizes), (batch,), generator=generator)]


def assignment_entropy_loss(latents: Tensor, codebook: Tensor, temperature: float = 0.01) -> Tensor:
    """
    Entropy of each position's soft assignment less the entropy of the mean assignment (LlamaGen, MAGVIT-v2).

    Args:
        latents: `(..., D)`, normalised as the quantizer does.
        codebook: `(K, D)`, the same.
        temperature: of the softmax over negative squared distances.
    """
    flat = latents.reshape(-1, latents.shape[-1])
    distance = flat.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2.0 * (flat @ codebook.t())
    log_probs = (-distance / temperature).log_softmax(-1)
    probs = log_probs.exp()
    mean = probs.mean(0)
    return -(probs * log_probs).sum(-1).mean() + (mean * (mean + 1e-5).log()).sum()


def teacher_similarity(features: Tensor, teacher: Tensor) -> Tensor:
    """
    Cosine similarity of features and a frozen model's, in float32: `(..., F)` twice to `(...)`.

    Raises:
        ValueError: where the teacher's features have another shape.
    """
    if features.shape != teacher.shape:
        raise ValueError(f"A teacher's features must have shape {tuple(features.shape)}, got {tuple(teacher.shape)}.")
    return F.cosine_similarity(features.float(), teacher.float(), dim=-1)
