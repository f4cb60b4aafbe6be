"""How well pictures drawn from texts fit them, beside the real pictures and beside what each half of a chain adds."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.samples import Samples, spread_rows
from ..data.sources import EmojiSource
from ..training.text import style_words
from .alignment import ImageTextScorer, draw_candidates, top_1
from .reconstruction import to_pixels

CANDIDATES = 100


@dataclass
class PromptScore:
    """
    Pictures of one kind for the prompts of one split.

    Args:
        split: of the prompts.
        pictures: "real", "prior" (the chain as it is called), "no tokens" (text alone), "true tokens" (as many of the
            real picture's tokens as the prior writes, and the text), "through the VAE" (the real picture: the most that
            the decoder can reach).
        count: number of prompts.
        name: share whose own name fits best among 100.
        style: share whose own drawing style fits best among those of the data.
        psnr: mean PSNR against the real picture, in dB; None for the real one.
    """

    split: str
    pictures: str
    count: int
    name: float
    style: float
    psnr: float | None


def prompt_of(record: Any) -> str:
    """Name and drawing style as a prompt."""
    return f"{record.name}, {style_words(record.style)}"


def spread(source: EmojiSource, count: int) -> Samples:
    """Evenly spread samples of a source, all where `count` is 0 or too large."""
    return source.take(spread_rows(len(source), count))


def prompt_scores(
    pipe: Any,
    scorer: ImageTextScorer,
    splits: dict[str, Samples],
    pool: Sequence[Any],
    *,
    batch_size: int = 32,
    seed: int = 0,
) -> list[PromptScore]:
    """
    Scores of a text-to-image pipeline on named pictures.

    Args:
        pipe: of texts; one that shows its halves ([`FlexTokPipeline`]) is scored without its prior too.
        scorer: trained apart from it.
        splits: samples by the name of their split.
        pool: records whose names the other 99 candidates are drawn from.
        batch_size: pictures at once.
        seed: of noise and tokens, and of the candidates.
    """
    styles = sorted({record.style for record in pool})
    out = []
    for split, samples in splits.items():
        names = draw_candidates(samples.records, pool, CANDIDATES, seed)
        own = [[prompt_of(r), *_other_styles(r, styles)] for r in samples.records]
        for kind, images in {"real": samples.images, **draw_all(pipe, samples, batch_size, seed)}.items():
            psnr = None if kind == "real" else _psnr(images, samples.images)
            scores = top_1(scorer, images, names), top_1(scorer, images, own)
            out.append(PromptScore(split, kind, len(images), *scores, psnr))
    return out


def _other_styles(record: Any, styles: list[str]) -> list[str]:
    return [f"{record.name}, {style_words(style)}" for style in styles if style != record.style]


def _psnr(images: np.ndarray, real: np.ndarray) -> float:
    error = (to_pixels(images) - to_pixels(real)).square().mean((1, 2, 3)).clamp_min(1e-10)
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def draw_all(pipe: Any, samples: Samples, batch_size: int, seed: int) -> dict[str, np.ndarray]:
    """Pictures uint8 `(B, H, W, 3)` of the samples' prompts, by how they were drawn, from the same noise."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(samples.images), batch_size):
        part = samples[start : start + batch_size]
        prompts = [prompt_of(record) for record in part.records]
        drawn = _halves(pipe, prompts, part.images, generator) if hasattr(pipe, "draw_tokens") else None
        drawn = drawn or {"prior": pipe(prompts, generator=generator, output_type="np").images}
        for kind, images in drawn.items():
            parts.setdefault(kind, []).append((np.asarray(images) * 255).round().astype(np.uint8))
    return {kind: np.concatenate(images) for kind, images in parts.items()}


def _halves(pipe: Any, prompts: list[str], real: np.ndarray, generator: torch.Generator) -> dict[str, Any] | None:
    """The prior's tokens, none, and the true ones, drawn by the same decoder; None where it needs its tokens."""
    if not pipe.transformer.has_text or pipe.image_encoder is None:
        return None
    written = pipe.generate_prior_tokens(prompts, generator=generator)
    noise = pipe.prepare_noise(len(prompts), generator)
    conditions = pipe.make_conditions(1, prompt=prompts)
    kinds = {"prior": written, "no tokens": written[:, :0], "true tokens": true_tokens(pipe, real)}
    drawn = {kind: pipe.draw_tokens(ids, noise, conditions=conditions) for kind, ids in kinds.items()}
    drawn["through the VAE"] = tokenizer_of(pipe).vae_latents(to_pixels(real, pipe.device) * 2 - 1)
    return {kind: pipe._pictures(latents, "np") for kind, latents in drawn.items()}


def tokenizer_of(pipe: Any) -> Any:
    """The image tokenizer that a pipeline's parts make."""
    from ..modeling.flextok.modeling_flextok import FlexTokModel

    return FlexTokModel.from_parts(transformer=pipe.transformer, vae=pipe.vae, image_encoder=pipe.image_encoder)


def true_tokens(pipe: Any, images: np.ndarray) -> Tensor:
    """Of pictures uint8 `(B, H, W, 3)`, as many ids as the prior writes, `(B, N)`."""
    tokenizer = tokenizer_of(pipe)
    pixels = tokenizer.normalize_pixels(to_pixels(images, pipe.device))
    return tokenizer.encode(pixels).token_ids[:, : pipe.prior.num_tokens]


def seconds_for(pipe: Any, prompts: list[str], rounds: int = 3) -> float:
    """Seconds of one call that draws a picture for each prompt, the median over `rounds` after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        pipe(prompts, generator=torch.Generator().manual_seed(0))
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))


def markdown_prompts(scores: Sequence[PromptScore]) -> str:
    """The scores as a Markdown table."""
    lines = [
        "| prompts | pictures | name, top-1 of 100 | of the real ones' | style | PSNR (dB) |",
        "|---|---|---|---|---|---|",
    ]
    real = {score.split: score.name for score in scores if score.pictures == "real"}
    for score in scores:
        share = f"{score.name / real[score.split]:.0%}" if real.get(score.split) else "-"
        psnr = "" if score.psnr is None else f"{score.psnr:.1f}"
        cells = f"{score.split} ({score.count})", score.pictures, f"{score.name:.1%}", share, f"{score.style:.0%}", psnr
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\nChance: {1 / CANDIDATES:.0%} of names."


def prompt_rows(scores: Sequence[PromptScore]) -> list[dict[str, Any]]:
    """The scores as plain dictionaries, for JSON."""
    return [asdict(score) for score in scores]
