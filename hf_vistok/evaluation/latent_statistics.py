"""Statistics of a tokenizer's latents over pictures: streaming, exact, resumable; and where they belong afterwards."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..modeling.layers.latent_statistics import RunningMoments


@dataclass
class LatentStatistics:
    """
    Statistics of latents.

    Args:
        mean, var: float64, of each channel `(C,)`, or of each channel at each position `(C, h, w)` (`(N, C)` of a
            sequence).
        count: pictures.
        channel_mean, channel_std: of each channel over all positions, `(C,)`.
    """

    mean: Tensor
    var: Tensor
    count: int
    channel_mean: Tensor
    channel_std: Tensor


class StatisticsRun:
    """
    Sums up the latents of pictures, and can go on where it was interrupted.

    Args:
        model: a continuous tokenizer, in eval mode.
        sources: paths of pictures; the order is part of what a run is.
        path: file of the state, written every `save_every` batches; None keeps everything in memory.
        processor: of the tokenizer: pictures to pixels.
        origin: what else must be equal for a run to go on (the checkpoint's name).
        batch_size: pictures at once.
        save_every: batches between two writes of the state.
        sample: draw from the posterior of a KL tokenizer, as training on samples sees it, in place of its mean. A
            picture's draw depends on its number alone.

    Raises:
        ValueError: for a tokenizer that writes ids, no pictures, or a state of another run.
    """

    def __init__(
        self,
        model: Any,
        sources: Sequence[str | os.PathLike],
        path: str | os.PathLike | None = None,
        *,
        processor: Callable[..., Any],
        origin: dict[str, Any] | None = None,
        batch_size: int = 16,
        save_every: int = 16,
        sample: bool = False,
    ) -> None:
        if model.is_discrete:
            raise ValueError(f"{type(model).__name__} writes ids: there are no statistics of its latents to take.")
        if not sources:
            raise ValueError("There are no pictures.")
        if batch_size < 1 or save_every < 1:
            raise ValueError("batch_size and save_every must be at least 1.")
        self.model, self.processor, self.sample = model, processor, sample
        self.sources, self.batch_size, self.save_every = [str(source) for source in sources], batch_size, save_every
        self.path = None if path is None else Path(path)
        self.key = self._fingerprint(origin or {})
        self.moments: RunningMoments | None = None
        if self.path is not None and self.path.exists():
            self._resume()

    @property
    def done(self) -> int:
        """Pictures that are in."""
        return 0 if self.moments is None else self.moments.count

    def _fingerprint(self, origin: dict[str, Any]) -> str:
        config = {**self.model.config.to_dict(), "latents_mean": None, "latents_std": None, "latent_statistics": None}
        content = json.dumps([origin, self.sample, self.sources, config], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()

    def _resume(self) -> None:
        with safe_open(str(self.path), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in ("count", "mean", "squares")}
        if metadata.get("key") != self.key:
            raise ValueError(
                f"{self.path} belongs to another tokenizer, other settings or other pictures: remove it, or write "
                "elsewhere."
            )
        self.moments = RunningMoments.from_state_dict(state)

    def save(self) -> None:
        """Writes the state; an interruption leaves the one before."""
        if self.path is None or self.moments is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".tmp")
        state = {name: tensor.contiguous() for name, tensor in self.moments.state_dict().items()}
        save_file(state, str(scratch), {"format": "pt", "key": self.key, "pictures": str(self.done)})
        os.replace(scratch, self.path)

    def batches(self) -> Iterator[tuple[int, list[str]]]:
        """What is left: number of the first picture, and paths."""
        for start in range(self.done, len(self.sources), self.batch_size):
            yield start, self.sources[start : start + self.batch_size]

    @torch.no_grad()
    def latents(self, start: int, paths: list[str]) -> Tensor:
        """Latents `(B, ...)` of pictures, as `encode` gives them."""
        pixels = self.processor(paths, return_tensors="pt")["pixel_values"].to(self.model.device)
        encoded = self.model.encode(pixels)
        if not self.sample:
            return encoded.latents
        if encoded.latent_dist is None:
            raise ValueError(f"{type(self.model).__name__} has no posterior to sample from.")
        return encoded.latent_dist.sample(noise=self._noise(start, encoded.latent_dist.mean))

    @staticmethod
    def _noise(start: int, like: Tensor) -> Tensor:
        rows = [
            torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(start + i)) for i in range(len(like))
        ]
        return torch.stack(rows).to(like)

    def run(self, on_batch: Callable[[int], None] | None = None, limit: int | None = None) -> LatentStatistics:
        """
        Takes all pictures that are not in yet.

        Args:
            on_batch: called with the number of pictures that are in.
            limit: stop after so many batches.

        Returns:
            the statistics of what is in.
        """
        for number, (start, paths) in enumerate(self.batches()):
            if limit is not None and number >= limit:
                break
            latents = self.latents(start, paths)
            if self.moments is None:
                self.moments = RunningMoments(latents.shape[1:])
            self.moments.update(latents)
            if (number + 1) % self.save_every == 0:
                self.save()
            if on_batch is not None:
                on_batch(self.done)
        self.save()
        return self.result()

    def result(self) -> LatentStatistics:
        """The statistics of the pictures that are in."""
        if self.moments is None:
            raise ValueError("No pictures have been taken yet.")
        moments, channels = self.moments, self.moments
        if self.model.latent_layout == "sequence":  # (N, D) -> (D, N)
            channels = RunningMoments.from_state_dict(
                {"count": torch.tensor(moments.count), "mean": moments.mean.T, "squares": moments.squares.T}
            )
        over = channels.over_positions()
        return LatentStatistics(moments.mean, moments.var, moments.count, over.mean, over.std)


def store(model: Any, statistics: LatentStatistics) -> str:
    """
    Makes statistics part of a model, to be saved with it.

    Returns:
        what has been set: "mean and variance of each position" (RAE: `set_statistics`), "mean and deviation of each
        channel" (`set_latent_statistics`), or "a note in the configuration" (tokenizers that normalise nothing).

    Raises:
        ValueError: where a generator's latents have another number of channels, or are not normalised by channel.
    """
    if hasattr(model, "set_statistics"):
        model.set_statistics(statistics.mean.float(), statistics.var.float())
        return "mean and variance of each position"
    mean, std = statistics.channel_mean.tolist(), statistics.channel_std.tolist()
    if hasattr(model, "set_latent_statistics"):
        model.set_latent_statistics(mean, std)
        return "mean and deviation of each channel"
    model.config.latent_statistics = {"mean": mean, "std": std, "pictures": statistics.count}
    return "a note in the configuration"


def check_raw(model: Any) -> None:
    """
    Whether a tokenizer's `encode` gives latents that are not normalised yet.

    Raises:
        ValueError: where it holds statistics already: those that it was trained with are not taken again.
    """
    if getattr(model, "statistics", None) is not None:
        raise ValueError(f"This {type(model).__name__} has statistics of its latents already.")
