"""Quantizers with one signature: `forward(latents) -> QuantizerOutput`, `indices_to_latents(ids)`; channels last."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .losses import assignment_entropy_loss
from .rotation_trick import rotate_to


@dataclass
class QuantizerOutput:
    """
    What a quantizer returns.

    Args:
        quantized: `(..., D)`, what decoders take; gradients pass straight through to the input.
        indices: int64 `(...)`, or `(..., C)` for C codebooks.
        losses: the terms of the objective by name, already weighted.
    """

    quantized: Tensor
    indices: Tensor
    losses: dict[str, Tensor]

    @property
    def loss(self) -> Tensor:
        """Sum of the terms."""
        return sum(self.losses.values()) if self.losses else self.quantized.new_zeros(())


def nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    """
    Index of the nearest row in squared Euclidean distance, computed in float32.

    Args:
        latents: `(..., D)`.
        codebook: `(K, D)`.

    Returns:
        int64 `(...)`.
    """
    flat, rows = latents.reshape(-1, latents.shape[-1]).float(), codebook.float()
    distance = flat.square().sum(1, keepdim=True) + rows.square().sum(1) - 2.0 * (flat @ rows.t())
    return distance.argmin(1).view(latents.shape[:-1])


class VectorQuantizer(nn.Module):
    """
    Nearest row of a learned codebook.

    Args:
        codebook_size: number of rows K.
        dim: width D.
        l2_norm: normalise latents and rows to unit length, also on lookup.
        commitment_cost: weight of the commitment term.
        entropy_cost: weight of the entropy of assignments, a term of training (LlamaGen and what is built on it).
        rotation_trick: in training, rotate gradients to the input in place of copying them.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        l2_norm: bool = False,
        commitment_cost: float = 0.25,
        entropy_cost: float = 0.0,
        rotation_trick: bool = False,
    ) -> None:
        super().__init__()
        self.codebook_size, self.dim = codebook_size, dim
        self.l2_norm, self.commitment_cost = l2_norm, commitment_cost
        self.entropy_cost, self.rotation_trick = entropy_cost, rotation_trick
        self.embedding = nn.Embedding(codebook_size, dim)

    def _rows(self) -> Tensor:
        # through the module, not its weight: under sequential offload the weight is on the meta device until a call
        every = torch.arange(self.codebook_size, device=self.embedding.weight.device)
        return self.indices_to_latents(every)

    def indices_to_latents(self, indices: Tensor) -> Tensor:
        """Ids `(...)` to rows `(..., D)`, of unit length where `l2_norm`."""
        rows = self.embedding(indices)
        return F.normalize(rows, dim=-1) if self.l2_norm else rows

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """
        Latents `(..., D)` to the nearest rows.

        Losses, weighted: `commitment_loss`, `codebook_loss`, and in training `entropy_loss` where it has a weight.
        """
        latents = latents.float()
        if self.l2_norm:
            latents = F.normalize(latents, dim=-1)
        every = self._rows()
        indices = nearest_code(latents, every)
        rows = self.indices_to_latents(indices).float()
        losses = {
            "commitment_loss": self.commitment_cost * F.mse_loss(rows.detach(), latents),
            "codebook_loss": F.mse_loss(rows, latents.detach()),
        }
        if self.training and self.entropy_cost:
            losses["entropy_loss"] = self.entropy_cost * assignment_entropy_loss(latents, every.float())
        if self.training and self.rotation_trick:
            return QuantizerOutput(rotate_to(latents, rows), indices, losses)
        return QuantizerOutput(latents + (rows - latents).detach(), indices, losses)


class FiniteScalarQuantizer(nn.Module):
    """
    Rounds each channel to a few values (FSQ, arXiv 2309.15505); it has no parameters and no losses.

    Args:
        levels: number of values of each channel, at least 2; the product is the codebook size.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.codebook_size, self.dim = math.prod(self.levels), len(self.levels)

    def bound(self, latents: Tensor) -> Tensor:
        """Squashes each channel so that rounding gives exactly its number of values (section 3.1)."""
        levels = torch.tensor(self.levels, device=latents.device, dtype=torch.float32)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = 0.5 * (levels % 2 == 0)
        return torch.tanh(latents.float() + torch.atanh(offset / half)) * half - offset

    def indices_to_latents(self, indices: Tensor) -> Tensor:
        """Ids `(...)` to values in [-1, 1], `(..., D)`; the first channel counts fastest."""
        basis = [math.prod(self.levels[:i]) for i in range(self.dim)]
        levels = torch.tensor(self.levels, device=indices.device)
        digits = indices[..., None] // torch.tensor(basis, device=indices.device) % levels
        return (digits - levels // 2) / (levels // 2)

    def latents_to_indices(self, quantized: Tensor) -> Tensor:
        """The inverse of `indices_to_latents`."""
        basis = torch.tensor([math.prod(self.levels[:i]) for i in range(self.dim)], device=quantized.device)
        half = torch.tensor(self.levels, device=quantized.device) // 2
        return ((quantized.float() * half).round().long() + half).mul(basis).sum(-1)

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Latents `(..., D)` to rounded values in [-1, 1] with a straight-through gradient."""
        bounded = self.bound(latents)
        half = torch.tensor(self.levels, device=latents.device) // 2
        rounded = (bounded + (bounded.round() - bounded).detach()) / half
        return QuantizerOutput(rounded, self.latents_to_indices(rounded.detach()), {})


FSQ = FiniteScalarQuantizer  # the name in papers
