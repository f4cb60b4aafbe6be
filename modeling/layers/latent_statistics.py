"""Statistics of latents: a mean and variance that are summed up exactly, and tokenizers that carry them."""

from collections.abc import Sequence

import torch
from torch import Tensor


class RunningMoments:
    """
    Mean and variance of each feature over any number of batches (Chan, Golub and LeVeque's update), in float64.

    The order of batches and their sizes do not matter beyond rounding; nothing but three tensors is kept.

    Args:
        shape: of one observation.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.count = 0
        self.mean = torch.zeros(tuple(shape), dtype=torch.float64)
        self.squares = torch.zeros(tuple(shape), dtype=torch.float64)  # summed squared distances from the mean

    def update(self, batch: Tensor) -> None:
        """
        Adds observations `(n, *shape)`.

        Raises:
            ValueError: for another shape, or values that are not finite.
        """
        if tuple(batch.shape[1:]) != tuple(self.mean.shape) or not len(batch):
            raise ValueError(f"Observations must be (n, {tuple(self.mean.shape)}), got {tuple(batch.shape)}.")
        batch = batch.detach().to("cpu", torch.float64)
        if not bool(batch.isfinite().all()):
            raise ValueError("Latents hold NaN or infinities: no statistics of them.")
        count, mean = len(batch), batch.mean(0)
        squares, total = (batch - mean).square().sum(0), self.count + len(batch)
        shift = mean - self.mean
        self.squares += squares + shift.square() * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def var(self) -> Tensor:
        """Variance of the population (divided by the count)."""
        return self.squares / max(self.count, 1)

    @property
    def std(self) -> Tensor:
        """Its root."""
        return self.var.sqrt()

    def over_positions(self) -> "RunningMoments":
        """Of moments with shape `(C, ...)`, those of each channel over all positions."""
        found, positions = RunningMoments(self.mean.shape[:1]), self.mean[0].numel()
        means = self.mean.flatten(1)
        found.mean = means.mean(1)
        between = (means - found.mean[:, None]).square().sum(1) * self.count
        found.squares = self.squares.flatten(1).sum(1) + between
        found.count = self.count * positions
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """What a file needs to go on."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "squares": self.squares}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "RunningMoments":
        """The inverse of `state_dict`."""
        found = cls(state["mean"].shape)
        found.count, found.mean, found.squares = int(state["count"]), state["mean"].clone(), state["squares"].clone()
        return found


class ChannelStatisticsMixin:
    """For tokenizers with the fields `latents_mean` and `latents_std`: what generators of their latents need."""

    def set_latent_statistics(self, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> None:
        """
        Takes the mean and the standard deviation of each latent channel, saved with the model from now on.

        Raises:
            ValueError: where there is not one finite number per channel, or a deviation is not above 0.
        """
        mean, std = ([float(v) for v in torch.as_tensor(values).flatten()] for values in (mean, std))
        if not len(mean) == len(std) == self.latent_dim:
            raise ValueError(f"There are {self.latent_dim} channels, got {len(mean)} means and {len(std)} stds.")
        if not torch.tensor(mean + std).isfinite().all() or min(std) <= 0:
            raise ValueError("Statistics must be finite, and deviations above 0.")
        self.config.latents_mean, self.config.latents_std = mean, std

    def _channel_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.config.latents_mean, self.config.latents_std
        if mean is None or std is None:
            raise ValueError(
                f"This {type(self).__name__} has no statistics of its latents: `hf-vistok stats` computes them over "
                "pictures, set_latent_statistics(mean, std) takes them."
            )
        shape = (-1, 1, 1) if self.latent_layout == "grid" else (-1,)
        return like.new_tensor(mean).view(shape), like.new_tensor(std).view(shape)

    def normalize_latents(self, latents: Tensor) -> Tensor:
        """Latents with mean 0 and deviation 1 in each channel: what generators are trained on."""
        mean, std = self._channel_statistics(latents)
        return (latents - mean) / std

    def denormalize_latents(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize_latents`."""
        mean, std = self._channel_statistics(latents)
        return latents * std + mean
