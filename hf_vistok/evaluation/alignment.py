"""How well a picture fits a text: two maps over frozen networks, trained on pairs as CLIP is (arXiv 2103.00020)."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.draws import hashed, integers, uniform
from ..data.emoji import Record
from ..training.perceptual import load_efficientnet_lite0
from ..training.text import minilm_folder, style_words
from .reconstruction import to_bytes, to_pixels

IMAGE_SIDE = 128  # small pictures are enlarged to what the network can see
SOFT_SIDES = (20, 24, 28, 32, 40, 48, 64)  # what a softened picture is shrunk to before it is enlarged again
TEXT_LENGTH = 32


class ImageTextScorer(nn.Module, PyTorchModelHubMixin, library_name="hf_vistok", license="apache-2.0"):
    """
    Similarity of pictures and texts, on features of EfficientNet-Lite0 and all-MiniLM-L6-v2.

    Args:
        image_dim, text_dim: of the features.
        dim: of the common space.
    """

    def __init__(self, image_dim: int = 1280, text_dim: int = 384, dim: int = 256) -> None:
        super().__init__()
        self.image_norm, self.image_map = nn.LayerNorm(image_dim), nn.Linear(image_dim, dim)
        self.text_norm, self.text_map = nn.LayerNorm(text_dim), nn.Linear(text_dim, dim)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))

    def embed_images(self, features: Tensor) -> Tensor:
        """Features `(B, image_dim)` to unit vectors `(B, dim)`."""
        return F.normalize(self.image_map(self.image_norm(features)), dim=-1)

    def embed_texts(self, features: Tensor) -> Tensor:
        """Features `(B, text_dim)` to unit vectors `(B, dim)`."""
        return F.normalize(self.text_map(self.text_norm(features)), dim=-1)

    @torch.no_grad()
    def score(self, images: np.ndarray, texts: Sequence[str]) -> Tensor:
        """Cosine similarity of each picture uint8 `(B, H, W, 3)` and each text, `(B, T)`."""
        return self.embed_images(image_features(images)) @ self.embed_texts(text_features(texts)).T


@lru_cache(maxsize=1)
def _image_network() -> nn.Module:
    return load_efficientnet_lite0().eval().requires_grad_(False)


@torch.no_grad()
def image_features(images: np.ndarray, batch_size: int = 64) -> Tensor:
    """Pictures uint8 `(B, H, W, 3)` to EfficientNet-Lite0's pooled features `(B, 1280)`."""
    network, parts = _image_network(), []
    for start in range(0, len(images), batch_size):
        pixels = to_pixels(images[start : start + batch_size])
        pixels = F.interpolate(pixels, (IMAGE_SIDE, IMAGE_SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        parts.append(network.extract_features(pixels * 2 - 1).mean((2, 3)))
    return torch.cat(parts)


@lru_cache(maxsize=1)
def _text_network() -> tuple[nn.Module, object]:
    from transformers import BertModel, BertTokenizerFast

    folder = minilm_folder()
    return BertModel.from_pretrained(folder).eval().requires_grad_(False), BertTokenizerFast.from_pretrained(folder)


@torch.no_grad()
def text_features(texts: Sequence[str], batch_size: int = 256) -> Tensor:
    """Texts to MiniLM's mean-pooled features `(B, 384)`."""
    (network, tokenizer), parts = _text_network(), []
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
        hidden, mask = network(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        parts.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(parts)


# ---------------------------------------------------------------------- training


def softened(images: np.ndarray, seed: int, variant: int) -> np.ndarray:
    """
    The same pictures as a weak camera would see them: shrunk to one of `SOFT_SIDES` and enlarged, moved and scaled by
    up to a twentieth, with a little noise and another contrast, half of them mirrored.

    Args:
        images: uint8 `(N, H, W, 3)`.
        seed, variant: of the draws.
    """
    count = len(images)
    draws = np.stack([uniform(seed, f"soften {variant} {k}", np.arange(count)) for k in range(7)], 1)
    sides = (draws[:, 0] * len(SOFT_SIDES)).astype(int)
    out = np.empty_like(images)
    for number, side in enumerate(SOFT_SIDES):
        rows = np.flatnonzero(sides == number)
        for part in np.array_split(rows, max(1, len(rows) // 256)):
            if len(part):
                out[part] = _soften(images[part], side, torch.from_numpy(draws[part]).float(), seed + variant)
    return out


def _soften(images: np.ndarray, side: int, draws: Tensor, seed: int) -> np.ndarray:
    pixels = to_pixels(images)
    scale, mirror = 1 + 0.1 * (draws[:, 1] - 0.5), 1 - 2 * (draws[:, 2] < 0.5).float()
    none = torch.zeros_like(scale)
    moves = torch.stack([scale * mirror, none, 0.2 * (draws[:, 3] - 0.5)], 1)
    moves = torch.stack([moves, torch.stack([none, scale, 0.2 * (draws[:, 4] - 0.5)], 1)], 1)
    grid = F.affine_grid(moves, list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    small = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
    pixels = F.interpolate(small, images.shape[1:3], mode="bicubic")
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed * 1009 + side))
    pixels = pixels + 0.06 * draws[:, 5].view(-1, 1, 1, 1) * noise
    contrast = (0.8 + 0.3 * draws[:, 6]).view(-1, 1, 1, 1)
    return to_bytes((0.5 + contrast * (pixels - 0.5)).clamp(0, 1))


def train_scorer(
    images: np.ndarray,
    records: Sequence[Record],
    *,
    steps: int = 2000,
    batch_size: int = 512,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    noise: float = 0.2,
    soft: int = 4,
    seed: int = 0,
) -> ImageTextScorer:
    """
    A scorer of a set of named pictures.

    A text is a name, or a name and a drawing style, or tags. Pairs of one batch that show the same thing are not taken
    for negatives of one another. Beside the pictures themselves it learns softened ones, so that it goes by what is
    shown and not by fine detail, which a picture can lack and still be right.

    Args:
        images: uint8 `(N, H, W, 3)`.
        records: of the pictures.
        steps, batch_size, lr, weight_decay: of AdamW, with a cosine schedule.
        noise: standard deviation of what is added to the features, in units of their own.
        soft: number of softened copies of each picture; see [`softened`].
        seed: of every draw.
    """
    torch.manual_seed(seed)
    copies = [images, images[:, :, ::-1], *(softened(images, seed, variant) for variant in range(soft))]
    pictures = torch.stack([image_features(copy) for copy in copies], 1)
    texts = [_texts_of(record) for record in records]
    unique = sorted({text for kinds in texts for text in kinds})
    rows = {text: i for i, text in enumerate(unique)}
    vectors = text_features(unique)
    choices = [np.array([rows[text] for text in kinds]) for kinds in texts]
    things = np.unique([record.base for record in records], return_inverse=True)[1]
    model = ImageTextScorer(pictures.shape[-1], vectors.shape[-1]).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    scale = pictures.std(), vectors.std()
    for step in range(steps):
        positions = step * batch_size + np.arange(batch_size)
        chosen = np.argsort(hashed(seed, f"scorer {step}", np.arange(len(records))))[:batch_size]
        copy = integers(seed, "scorer copy", positions[: len(chosen)], 0, len(copies))
        draw = uniform(seed, "scorer text", positions[: len(chosen)])
        text_rows = [choices[i][int(u * len(choices[i]))] for i, u in zip(chosen, draw, strict=True)]
        x, y = pictures[chosen, copy], vectors[text_rows]
        x = model.embed_images(x + noise * scale[0] * torch.randn_like(x))
        y = model.embed_texts(y + noise * scale[1] * torch.randn_like(y))
        loss = _contrastive_loss(x @ y.T * model.logit_scale.exp(), torch.from_numpy(things[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _texts_of(record: Record) -> list[str]:
    """What may stand for a picture: half of it names, half of those with the style; else one or all of its tags."""
    name = record.name
    named = [name, f"{name}, {style_words(record.style)}"]
    tags = [" ".join(record.tags[:3]), f"{name} {record.tags[-1]}"] if record.tags else []
    return named * max(1, len(tags)) + tags


def _contrastive_loss(logits: Tensor, things: Tensor) -> Tensor:
    """Cross-entropy both ways; other pairs of the same thing are left out."""
    same = (things[:, None] == things[None]) & ~torch.eye(len(things), dtype=torch.bool)
    logits = logits.masked_fill(same, float("-inf"))
    target = torch.arange(len(things))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


# ---------------------------------------------------------------------- measures


def draw_candidates(records: Sequence[Record], pool: Sequence[Record], count: int, seed: int = 0) -> list[list[str]]:
    """
    For each record its own name, then `count - 1` names of other things, drawn from `pool`.

    Args:
        records: whose pictures are scored.
        pool: where other names come from.
        count: names in all.
        seed: of the draw.
    """
    names = {record.name: record.base for record in pool}
    every = np.array(sorted(names))
    out = []
    for number, record in enumerate(records):
        order = every[np.argsort(hashed(seed, f"candidates {number}", np.arange(len(every))))]
        others = [name for name in order if names[name] != record.base and name != record.name][: count - 1]
        if len(others) < count - 1:
            raise ValueError(f"The data has {len(every)} names, too few for {count} candidates.")
        out.append([record.name, *others])
    return out


@torch.no_grad()
def top_1(scorer: ImageTextScorer, images: np.ndarray, candidates: Sequence[Sequence[str]]) -> float:
    """Share of pictures uint8 `(B, H, W, 3)` that fit the first of their own candidates best."""
    unique = sorted({text for row in candidates for text in row})
    rows = {text: i for i, text in enumerate(unique)}
    texts = scorer.embed_texts(text_features(unique))
    pictures = scorer.embed_images(image_features(images))
    index = torch.tensor([[rows[text] for text in row] for row in candidates])
    return float((torch.einsum("bd,bcd->bc", pictures, texts[index]).argmax(1) == 0).float().mean())
