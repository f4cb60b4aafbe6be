"""The image-text scorer and what it says of a chain: flat colours, and stand-ins for the frozen networks."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_vistok.data.emoji import Record
from hf_vistok.data.samples import Samples
from hf_vistok.evaluation import alignment, text_to_image
from hf_vistok.evaluation.alignment import ImageTextScorer, draw_candidates, top_1, train_scorer


def records_and_images(count=216):
    """A picture is a flat colour, and its name says which."""
    rng, levels = np.random.default_rng(0), ("no", "some", "much", "full", "half", "all")
    colours = [(r, g, b) for r in range(6) for g in range(6) for b in range(6)][:count]
    records = [
        Record(f"{levels[r]} red {levels[g]} green {levels[b]} blue", "noto", f"{r}{g}{b}", f"{r}{g}{b}", ["colour"])
        for r, g, b in colours
    ]
    images = np.stack([np.full((8, 8, 3), np.array(c) * 50, np.uint8) for c in colours])
    return records, images + rng.integers(0, 3, images.shape, dtype=np.uint8)


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    """Mean colours, and which words stand where."""
    words = ["no", "some", "much", "full", "half", "all", "noto"]

    def texts(lines, batch_size=256):
        rows = [[float(w in line.split(colour)[0].split()[-1:]) for colour in ("red", "green", "blue") for w in words]
                for line in lines]  # fmt: skip
        return torch.tensor(rows)

    def images(pictures, batch_size=64):
        mean = torch.from_numpy(np.ascontiguousarray(pictures)).float().mean((1, 2)) / 50
        return torch.exp(-3 * (mean[..., None] - torch.arange(6.0)).square()).flatten(1)

    monkeypatch.setattr(alignment, "text_features", texts)
    monkeypatch.setattr(alignment, "image_features", images)


@pytest.fixture(scope="module")
def pool():
    return records_and_images()


def test_a_trained_scorer_knows_its_pictures_and_an_untrained_one_does_not(pool):
    records, images = pool
    candidates = draw_candidates(records, records, 100)
    torch.manual_seed(0)
    fresh = ImageTextScorer(18, 21).eval()
    trained = train_scorer(images, records, steps=150, batch_size=128, lr=1e-2)
    assert top_1(fresh, images, candidates) < 0.1
    assert top_1(trained, images, candidates) > 0.9
    shuffled = images[np.random.default_rng(0).permutation(len(images))]
    assert top_1(trained, shuffled, candidates) < 0.15


def test_candidates_are_other_things(pool):
    records = pool[0]
    twin = Record("twin of the first", "flat", records[0].code, records[0].base)
    for record, names in zip(records, draw_candidates(records, [*records, twin], 100), strict=True):
        assert names[0] == record.name and len(set(names)) == 100
        assert "twin of the first" not in names[1:] or record.base != twin.base
    with pytest.raises(ValueError, match="too few for 500 candidates"):
        draw_candidates(records, records, 500)


def test_a_scorer_is_saved_and_loaded(tmp_path, pool):
    model = ImageTextScorer(18, 21, dim=32).eval()
    model.save_pretrained(tmp_path)
    again = ImageTextScorer.from_pretrained(str(tmp_path))
    assert torch.equal(model.score(pool[1][:3], ["no red"]), again.eval().score(pool[1][:3], ["no red"]))


def test_the_shipped_scorer_is_the_one_that_its_card_names():
    folder = Path(alignment.__file__).with_name("emoji_scorer")
    found = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert found in (folder / "README.md").read_text()


class Copier:
    """A pipeline that draws what a prompt says, in its own way of being wrong."""

    def __init__(self, answers):
        self.answers = answers

    def __call__(self, prompts, generator, output_type):
        class Output:
            images = np.stack([self.answers[prompt] for prompt in prompts]) / 255.0

        return Output


@pytest.mark.parametrize(("right", "low", "high"), [(True, 0.9, 1.01), (False, -0.01, 0.2)])
def test_right_pictures_score_and_wrong_ones_do_not(pool, right, low, high):
    records, images = pool
    scorer = train_scorer(images, records, steps=150, batch_size=128, lr=1e-2)
    order = np.arange(len(images)) if right else np.roll(np.arange(len(images)), 37)
    answers = {text_to_image.prompt_of(r): images[i] for r, i in zip(records, order, strict=True)}
    samples = Samples(images, [r.name for r in records], records)
    scores = text_to_image.prompt_scores(Copier(answers), scorer, {"train": samples}, records)
    real, drawn = scores
    assert (real.pictures, drawn.pictures) == ("real", "prior") and real.name > 0.9
    assert low < drawn.name < high
    assert "| train (216) | prior |" in text_to_image.markdown_prompts(scores)
