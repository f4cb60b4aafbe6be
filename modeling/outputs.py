"""Typed outputs of tokenizers and priors."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput


@dataclass
class ImageTokenizerEncoderOutput(ModelOutput):
    """
    What `encode` returns. Fields that a family does not have are `None`.

    Args:
        latents: exactly what `decode` takes: `(B, N, D)` for "sequence" layouts, `(B, D, h, w)` for "grid" layouts.
        token_ids: int64 `(B, N)`, or `(B, N, C)` for C codebooks at one position; `None` for continuous tokenizers.
        token_mask: bool `(B, N)`, True where a token counts; `None` where all do. Ids stay in masked slots.
        pre_quant: the encoder's output before the quantizer, in the layout of `latents`.
        latent_dist: the posterior of KL tokenizers (`sample`, `mode`, `kl`).
        features: semantic features, `(B, M, F)`.
        pooled_features: one semantic vector per image, `(B, F)`.
        decode_kwargs: what else `decode` needs to know of the input (crop offsets, coordinates, sizes).
        loss: sum of the weighted terms in `losses`.
        losses: the quantizer's or posterior's terms, under the paper's names.
    """

    latents: torch.Tensor | None = None
    token_ids: torch.Tensor | None = None
    token_mask: torch.Tensor | None = None
    pre_quant: torch.Tensor | None = None
    latent_dist: Any | None = None
    features: torch.Tensor | None = None
    pooled_features: torch.Tensor | None = None
    decode_kwargs: dict[str, Any] | None = None
    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None


@dataclass
class ImageTokenizerDecoderOutput(ModelOutput):
    """
    What `decode` returns.

    Args:
        sample: pixels `(B, 3, H, W)` in the checkpoint's `pixel_range`, not clamped; or what `decodes_to` names.
        features: semantic features, `(B, M, F)`.
        pooled: one semantic vector per image, `(B, F)`.
    """

    sample: torch.Tensor | None = None
    features: torch.Tensor | None = None
    pooled: torch.Tensor | None = None


@dataclass
class ImageTokenizerOutput(ModelOutput):
    """
    What a training `forward` returns.

    Args:
        loss: the family's own objective (what its encoder, quantizer and decoder contribute), a scalar.
        losses: its terms under the paper's names, unweighted where the paper weights them later.
        sample: the reconstruction, in the checkpoint's `pixel_range`.
        token_ids: ids of the images, as in [`ImageTokenizerEncoderOutput`].
        features: semantic features, `(B, M, F)`.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    sample: torch.Tensor | None = None
    token_ids: torch.Tensor | None = None
    features: torch.Tensor | None = None


@dataclass
class ImagePriorOutput(ModelOutput):
    """
    What a prior's `forward` and `generate` return.

    Args:
        token_ids: generated ids, int64 `(B, N)` or `(B, N, C)`.
        latents: generated latents of continuous priors, in the layout of the tokenizer.
        token_mask: bool `(B, N)` where lengths differ.
        log_probs: log-probability of each generated sequence, float32 `(B,)`, without guidance and temperature.
        logits: `(B, N, V)`, from `forward`.
        loss: the training objective, from `forward` with targets.
        losses: its terms, under the paper's names.
        image_size: size of the picture that the ids stand for, where it is not fixed.
    """

    token_ids: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    token_mask: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    image_size: tuple[int, int] | None = None


@dataclass
class TokenSegment:
    """
    One map of a flat token sequence.

    Args:
        name: of the map.
        grid: rows and columns; one number for a sequence without a grid, three axes for volumes.
        codebook_size: number of different ids.
        codebook: maps with the same name here share their ids (scales of one codebook); others have ids of their own.
    """

    name: str
    grid: tuple[int, ...]
    codebook_size: int
    codebook: str = "codebook"

    @property
    def length(self) -> int:
        """Number of tokens in this map."""
        length = 1
        for side in self.grid:
            length *= side
        return length
