"""From a wish to pictures: loads the pipeline, checks what is asked for, and draws while the tokens arrive."""

import math
import os
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from hf_vistok.hub import fetch, read_json, resolve_source
from hf_vistok.spaces.common import Lazy, number, own_file, whole_number

MODEL = os.environ.get("HF_VISTOK_MODEL", "hf-vistok/emoji-64")
MAX_PICTURES, MAX_STEPS, MAX_PROMPT, MAX_SEED, MAX_GUIDANCE = 8, 50, 300, 2**31 - 1, 20.0
NO_STYLE = "Any"
STYLES = {"Noto": "noto", "Fluent flat": "fluent flat"}  # as they stand in the training texts, behind a comma
PROMPTS = ("red apple", "grinning face", "cat face", "strawberry", "rocket", "birthday cake", "blue car")


@dataclass(frozen=True)
class Wish:
    """
    Everything that a picture depends on.

    Args:
        prompt: what to draw.
        style: a key of [`STYLES`] or `NO_STYLE`.
        seed: of the first picture; the next ones have seed + 1, seed + 2, ...
        pictures: how many.
        tokens: how many tokens are written for each; 0 means all.
        prior_guidance: how closely the tokens follow the text.
        guidance: how closely the drawing follows the tokens.
        steps: of the decoder.
    """

    prompt: str
    style: str = NO_STYLE
    seed: int = 0
    pictures: int = 4
    tokens: int = 0
    prior_guidance: float = 1.0
    guidance: float = 1.0
    steps: int = 20


@dataclass(frozen=True)
class Limits:
    """What the checkpoint says about itself: most tokens, size of the codebook, and its published settings."""

    tokens: int
    codebook: int
    prior_guidance: float
    guidance: float
    steps: int


@dataclass(frozen=True)
class Drawing:
    """Pictures at one moment: PIL images, their ids so far, and seconds since the start."""

    images: list[Any]
    ids: list[list[int]]
    seconds: float


@cache
def limits(source: str = MODEL) -> Limits:
    """Reads the small files of a checkpoint only, so that the page can be laid out before the weights are there."""
    resolved = resolve_source(source)

    def part(folder: str, name: str = "config.json") -> dict[str, Any]:
        path = fetch(resolved, name, subfolder=folder)
        return {} if path is None else read_json(path)

    prior, decoder, settings = part("prior"), part("transformer"), part("prior", "generation_config.json")
    tokens = int(prior.get("num_image_tokens") or decoder["num_tokens"])
    return Limits(
        tokens=tokens,
        codebook=math.prod(decoder["fsq_levels"]),
        prior_guidance=float(settings.get("cfg_scale") or 1.0),
        guidance=float(decoder.get("guidance_scale") or 1.0),
        steps=min(int(decoder.get("num_inference_steps") or 20), MAX_STEPS),
    )


def load(source: str = MODEL) -> Any:
    """The pipeline, ready to draw."""
    import torch

    from hf_vistok import VisTokPipeline

    pipe = VisTokPipeline.from_pretrained(source)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


pipeline = Lazy(load)


# ---------------------------------------------------------------------- checks


def clean_prompt(text: Any) -> str:
    """
    A prompt without control characters and spare blanks.

    Raises:
        ValueError: for an empty or a very long one.
    """
    if not isinstance(text, str):
        raise ValueError("The prompt must be a text.")
    if len(text) > 4 * MAX_PROMPT:
        raise ValueError(f"That prompt is too long: {len(text)} characters, at most {MAX_PROMPT} are read.")
    kept = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text)
    kept = " ".join(kept.split())
    if not kept:
        raise ValueError(f"Describe a picture first, for example “{PROMPTS[0]}”.")
    if len(kept) > MAX_PROMPT:
        raise ValueError(f"That prompt is too long: {len(kept)} characters, at most {MAX_PROMPT} are read.")
    return kept


def checked(wish: Wish, prompt_needed: bool = True) -> Wish:
    """
    The wish with clean values.

    Args:
        wish: what was asked for.
        prompt_needed: whether the prompt may not be empty.

    Raises:
        ValueError: for a value out of its range, naming it.
    """
    if wish.style not in (NO_STYLE, *STYLES):
        raise ValueError(f"There is no style {str(wish.style)[:40]!r}; there are {', '.join((NO_STYLE, *STYLES))}.")
    most = limits().tokens
    return Wish(
        prompt=clean_prompt(wish.prompt) if prompt_needed or str(wish.prompt or "").strip() else "",
        style=wish.style,
        seed=whole_number("Seed", wish.seed, 0, MAX_SEED - MAX_PICTURES),
        pictures=whole_number("The number of pictures", wish.pictures, 1, MAX_PICTURES),
        tokens=whole_number("The number of tokens", wish.tokens, 0, most) or most,
        prior_guidance=number("Guidance of the tokens", wish.prior_guidance, 0, MAX_GUIDANCE),
        guidance=number("Guidance of the drawing", wish.guidance, 0, MAX_GUIDANCE),
        steps=whole_number("The number of steps", wish.steps, 1, MAX_STEPS),
    )


def prompt_of(wish: Wish) -> str:
    """The text that the model reads: the prompt and its style."""
    return wish.prompt if wish.style == NO_STYLE else f"{wish.prompt}, {STYLES[wish.style]}"


def strange_words(prompt: str, tokenizer: Any) -> list[str]:
    """Words of a prompt that are not in the vocabulary: the text tokenizer has to spell them out."""
    if tokenizer is None:
        return []
    words = dict.fromkeys("".join(c if c.isalnum() else " " for c in prompt.lower()).split())
    return [word for word in words if tokenizer.tokenize(word) != [word]]


def parse_ids(text: Any) -> list[list[int]]:
    """
    Ids of one picture a line.

    Raises:
        ValueError: for what is no number, out of range, too much, or lines of different lengths.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError("There are no tokens yet: draw something, or paste some.")
    if len(text) > 20_000:
        raise ValueError("That is far too much text for tokens.")
    most = limits()
    lines = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
    rows = []
    for words in lines:
        wrong = next((word for word in words if not (word.isascii() and word.isdigit() and len(word) < 10)), None)
        if wrong is not None:
            raise ValueError(f"Tokens are whole numbers with blanks between them; {wrong[:30]!r} is none.")
        rows.append([int(word) for word in words])
    if len(rows) > MAX_PICTURES or len({len(row) for row in rows}) > 1 or not 1 <= len(rows[0]) <= most.tokens:
        raise ValueError(
            f"Give 1 to {MAX_PICTURES} lines, one a picture, each with the same number of tokens, 1 to {most.tokens}."
        )
    if max(max(row) for row in rows) >= most.codebook:
        raise ValueError(f"Tokens of this model are numbers from 0 to {most.codebook - 1}.")
    return rows


# ---------------------------------------------------------------------- drawing


def generators(wish: Wish, shift: int = 0) -> list[Any]:
    """A random generator for each picture, by its seed."""
    import torch

    return [torch.Generator().manual_seed(wish.seed + i + shift) for i in range(wish.pictures)]


def paint(wish: Wish) -> Iterator[Drawing]:
    """
    Draws a checked wish, again and again while the tokens arrive.

    Yields:
        [`Drawing`] from 1, 2, 4, ... tokens; the last one is from all.
    """
    pipe, start = pipeline(), time.monotonic()
    stream = pipe.stream(
        [prompt_of(wish)] * wish.pictures,
        num_tokens=wish.tokens,
        prior_guidance_scale=wish.prior_guidance,
        guidance_scale=wish.guidance,
        num_inference_steps=wish.steps,
        generator=generators(wish),
    )
    for output in stream:
        yield Drawing(
            [own_file(image) for image in output.images], output.prior_token_ids.tolist(), time.monotonic() - start
        )


def redraw(rows: list[list[int]], wish: Wish) -> Drawing:
    """
    Draws given tokens; those of [`paint`] give the same pictures again.

    Args:
        rows: ids of each picture.
        wish: a checked wish; its seed, guidance and steps count, and its prompt where the decoder sees the text.
    """
    import torch

    pipe, start = pipeline(), time.monotonic()
    wish = Wish(**{**vars(wish), "pictures": len(rows)})
    output = pipe(
        [prompt_of(wish)] * len(rows) if wish.prompt else None,
        prior_token_ids=torch.tensor(rows),
        num_tokens=len(rows[0]),
        guidance_scale=wish.guidance,
        num_inference_steps=wish.steps,
        noise=pipe.prepare_noise(len(rows), generators(wish, shift=1)),  # as `stream` seeds it
    )
    return Drawing([own_file(image) for image in output.images], rows, time.monotonic() - start)
