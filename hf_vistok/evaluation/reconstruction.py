"""How well a tokenizer's pictures come back, by the number of tokens."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class ReconstructionScore:
    """
    One row of a table.

    Args:
        num_tokens: tokens that the decoder saw.
        psnr: mean over the pictures of 10 log10(1 / mean squared error), in dB, of pixels in [0, 1].
        mse: mean squared error over all pictures.
        bytes_per_image: of the ids, unentropy-coded; None for continuous tokenizers.
    """

    num_tokens: int
    psnr: float
    mse: float
    bytes_per_image: float | None


def to_pixels(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 `(B, H, W, 3)` to float32 `(B, 3, H, W)` in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255.0


def to_bytes(pictures: Tensor) -> np.ndarray:
    """The inverse of [`to_pixels`]: `(B, 3, H, W)` in [0, 1] to uint8 `(B, H, W, 3)`."""
    return (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def doubling_lengths(model: Any) -> list[int]:
    """1, 2, 4, ... and all tokens, as far as the model takes them; only all where it is not prefix-ordered."""
    valid = model.valid_num_tokens
    lengths = [2**i for i in range(int(math.log2(model.num_tokens)) + 1)]
    return sorted({length for length in lengths if length in valid} | {valid[-1]})


@torch.no_grad()
def reconstruct_lengths(
    model: Any, pixels: Tensor, lengths: Sequence[int], decode_kwargs: dict[str, Any] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """
    Reconstructions from the first tokens, for each length.

    Args:
        model: a tokenizer that decodes to pixels.
        pixels: `(B, 3, H, W)` in [0, 1].
        lengths: numbers of tokens.
        decode_kwargs: further arguments of `decode`; "shared_noise" is one picture's noise, taken for all.

    Yields:
        the length and `(B, 3, H, W)` in [0, 1].
    """
    encoded = model.encode(model.normalize_pixels(pixels))
    options = {**(encoded.decode_kwargs or {}), **(decode_kwargs or {})}
    shared = options.pop("shared_noise", None)
    if shared is not None:
        options["noise"] = shared.to(pixels.device).expand(len(pixels), *shared.shape)
    for length in lengths:
        latents, mask = encoded.latents, encoded.token_mask
        if length != model.num_tokens:
            latents, mask = latents[:, :length], None if mask is None else mask[:, :length]
        sample = model.decode(latents, mask, **options).sample
        yield length, model.denormalize_pixels(sample.float()).clamp(0, 1)


@torch.no_grad()
def reconstruction_scores(
    model: Any,
    images: np.ndarray,
    lengths: Sequence[int] | None = None,
    batch_size: int = 64,
    decode_kwargs: dict[str, Any] | None = None,
) -> list[ReconstructionScore]:
    """
    PSNR by the number of tokens.

    Args:
        model: a tokenizer that decodes to pixels, in eval mode.
        images: uint8 `(N, H, W, 3)` of the model's size.
        lengths: numbers of tokens, 1, 2, 4, ... by default.
        batch_size: pictures at once.
        decode_kwargs: see [`reconstruct_lengths`].
    """
    if model.decodes_to != "pixels":
        raise ValueError(f"{type(model).__name__} decodes to {model.decodes_to}, not to pixels.")
    if len(images) == 0:
        raise ValueError("There are no pictures to measure.")
    lengths = list(lengths or doubling_lengths(model))
    errors: dict[int, list[Tensor]] = {length: [] for length in lengths}
    for start in range(0, len(images), batch_size):
        pixels = to_pixels(images[start : start + batch_size], model.device)
        for length, fake in reconstruct_lengths(model, pixels, lengths, decode_kwargs):
            errors[length].append((fake - pixels).square().mean((1, 2, 3)).double().cpu())
    return [_score(model, length, torch.cat(errors[length])) for length in lengths]


def _score(model: Any, length: int, mse: Tensor) -> ReconstructionScore:
    bits = model.bits_per_image
    size = None if bits is None else bits / 8 * length / model.num_tokens
    psnr = (-10.0 * torch.log10(mse.clamp_min(1e-10))).mean()
    return ReconstructionScore(length, float(psnr), float(mse.mean()), size)


def markdown_table(scores: list[ReconstructionScore]) -> str:
    """The scores as a Markdown table."""
    lines = ["| tokens | bytes | PSNR (dB) |", "|---|---|---|"]
    for score in scores:
        size = "-" if score.bytes_per_image is None else f"{score.bytes_per_image:.0f}"
        lines.append(f"| {score.num_tokens} | {size} | {score.psnr:.2f} |")
    return "\n".join(lines)


def as_rows(scores: list[ReconstructionScore]) -> list[dict[str, float | int | None]]:
    """The scores as plain dictionaries, for JSON."""
    return [asdict(score) for score in scores]
