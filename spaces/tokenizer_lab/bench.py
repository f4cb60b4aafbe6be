"""The tokenizers of the lab: which there are, loaded once, and what they do with a picture."""

import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hf_vistok.spaces.common import Lazy, own_file, whole_number

DEFAULT = "hf-vistok/titok-emoji-64"
NOISE_SEED = 0  # of decoders that draw: the same tokens always give the same picture


@dataclass(frozen=True)
class Tokens:
    """
    A picture as tokens.

    Args:
        picture: what the tokenizer saw of it (PIL, its own size).
        ids: its token ids, the most important first.
    """

    picture: Any
    ids: list[int]


class Tokenizer:
    """
    A tokenizer with one codebook whose tokens are ordered.

    Args:
        source: embedded id, Hub id or folder.

    Raises:
        ValueError: where it is of another kind.
    """

    def __init__(self, source: str) -> None:
        import torch

        from hf_vistok import AutoImageTokenizer, AutoImageTokenizerProcessor

        self.name = source
        model = AutoImageTokenizer.from_pretrained(source).eval()
        if not (model.is_discrete and model.num_codebooks == 1 and model.decodes_to == "pixels"):
            raise ValueError(f"{source} does not turn pictures into one row of ids and back.")
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.processor = AutoImageTokenizerProcessor.from_pretrained(source)
        self._one_at_a_time = threading.Lock()  # events of several visitors share two cores

    @property
    def most(self) -> int:
        """Tokens of a picture."""
        return self.model.num_tokens

    @property
    def codebook(self) -> int:
        """Number of different ids."""
        return self.model.codebook_size

    def size_in_bytes(self, count: int) -> float:
        """Bytes of `count` tokens, not entropy-coded."""
        return count * math.log2(self.codebook) / 8

    def check_count(self, count: Any) -> int:
        """
        A number of tokens that decodes; more than there are mean all.

        Raises:
            ValueError: for what is no positive whole number.
        """
        count = whole_number("The number of tokens", count, 1, 100_000)
        return min(count, self.most) if self.model.is_prefix_ordered else self.most

    def encode(self, path: str) -> Tokens:
        """
        All tokens of a picture file.

        Raises:
            ValueError: for a file that is no picture, or too large a one.
        """
        import torch

        pixels = self.processor([path], return_tensors="pt").pixel_values
        with torch.no_grad(), self._one_at_a_time:
            ids = self.model.encode(pixels.to(self.model.device)).token_ids
        return Tokens(own_file(self.processor.postprocess(pixels)[0]), ids[0].tolist())

    def decode(self, rows: Sequence[Sequence[int]]) -> list[Any]:
        """Pictures of rows of ids; rows of one length are drawn together."""
        drawn: dict[int, Any] = {}
        for length in sorted({len(row) for row in rows}):
            where = [i for i, row in enumerate(rows) if len(row) == length]
            drawn |= dict(zip(where, self._draw(self.latents([rows[i] for i in where])), strict=True))
        return [drawn[i] for i in range(len(rows))]

    def latents(self, rows: Sequence[Sequence[int]]) -> Any:
        """What ids mean, `(B, N, D)`."""
        import torch

        with torch.no_grad():
            return self.model.ids_to_latents(torch.tensor(rows, device=self.model.device))

    def decode_latents(self, latents: Any) -> list[Any]:
        """Pictures of latents."""
        return self._draw(latents)

    def _draw(self, latents: Any) -> list[Any]:
        import torch

        draws = {}
        if "generator" in self.model._decode_options:
            draws["generator"] = [torch.Generator().manual_seed(NOISE_SEED) for _ in latents]
        with torch.no_grad(), self._one_at_a_time:
            sample = self.model.decode(latents, **draws).sample.cpu()
        return [own_file(picture) for picture in self.processor.postprocess(sample)]


def names() -> list[str]:
    """Tokenizers to choose from: those of `HF_VISTOK_TOKENIZERS` (with commas), or the ones inside the package."""
    listed = [name.strip() for name in os.environ.get("HF_VISTOK_TOKENIZERS", "").split(",") if name.strip()]
    return listed or _embedded()


@cache
def _embedded() -> list[str]:
    from hf_vistok.hub import embedded_checkpoints, fetch, resolve_source

    def encodes(name: str) -> bool:
        folder = resolve_source(name)
        if fetch(folder, "model_index.json") is None:
            return fetch(folder, "preprocessor_config.json") is not None
        return fetch(folder, "config.json", subfolder="image_encoder") is not None

    found = [name for name in embedded_checkpoints() if encodes(name)]
    return sorted(found, key=lambda name: name != DEFAULT)


def expected_tokens(name: str) -> int:
    """Tokens of a tokenizer by its small files alone, so that the page is there before the weights are."""
    from hf_vistok.hub import fetch, read_json, resolve_source

    folder = resolve_source(name)
    for subfolder in ("", "transformer"):
        path = fetch(folder, "config.json", subfolder=subfolder)
        config = {} if path is None else read_json(path)
        for field in ("num_latent_tokens", "num_tokens"):
            if isinstance(config.get(field), int):
                return config[field]
    return tokenizer(name).most


_loaded: dict[str, Lazy] = {}
_lock = threading.Lock()


def tokenizer(name: str) -> Tokenizer:
    """
    One of the tokenizers, loaded at its first use.

    Raises:
        ValueError: for a name that is not offered; nothing else is ever loaded.
    """
    if name not in names():
        raise ValueError(f"There is no tokenizer {str(name)[:60]!r} here; there are {', '.join(names())}.")
    with _lock:
        lazy = _loaded.setdefault(name, Lazy(lambda: Tokenizer(name)))
    return lazy()


def warm_up() -> None:
    """Loads the first tokenizer in the background."""
    threading.Thread(target=tokenizer, args=(names()[0],), daemon=True).start()


def to_text(ids: Sequence[int]) -> str:
    """Ids as people copy them."""
    return " ".join(map(str, ids))


def parse_ids(text: Any, chosen: Tokenizer) -> list[int]:
    """
    Ids of a text.

    Raises:
        ValueError: for what is no number, out of range, or too much.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError("There are no tokens yet: choose a picture, or paste some.")
    words = text[:20_000].replace(",", " ").split()
    wrong = next((word for word in words if not (word.isascii() and word.isdigit() and len(word) < 10)), None)
    if wrong is not None:
        raise ValueError(f"Tokens are whole numbers with blanks between them; {wrong[:30]!r} is none.")
    ids = [int(word) for word in words]
    if not 1 <= len(ids) <= chosen.most:
        raise ValueError(f"This tokenizer draws from 1 to {chosen.most} tokens, not from {len(ids)}.")
    if not chosen.model.is_prefix_ordered and len(ids) != chosen.most:
        raise ValueError(f"This tokenizer needs all its {chosen.most} tokens.")
    if max(ids) >= chosen.codebook:
        raise ValueError(f"Tokens of this tokenizer are numbers from 0 to {chosen.codebook - 1}.")
    return ids
