"""Every card under the rules of the Hub's validator; figures in cards are those of the files beside them."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

import hf_vistok
from hf_vistok.cli.publishing import Publication, complete, eval_results, family_card, with_metadata
from hf_vistok.registry import FAMILIES

from .. import folders
from ..documents import front_matter
from .rules import problems

ROOT = Path(hf_vistok.__file__).parent.parent
CHECKPOINTS = sorted((ROOT / "hf_vistok" / "checkpoints").glob("*/README.md"))
CARDS = [*sorted((ROOT / "model_cards").glob("*.md")), *CHECKPOINTS]


@pytest.mark.parametrize("path", CARDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_metadata(path):
    text = path.read_text(encoding="utf-8")
    head = front_matter(text)
    assert problems(head) == []
    data = ModelCard(text).data  # the client's own parser
    assert data.library_name == "hf_vistok" and data.pipeline_tag == head["pipeline_tag"]


@pytest.mark.parametrize(
    ("head", "word"),
    [
        ({"license": "apache 2.0"}, "list"),
        ({"license": "other"}, "license_name"),
        ({"license": "mit", "license_name": "mit"}, "license: other"),
        ({"license": "other", "license_name": "My Licence"}, "small letters"),
        ({"license": "other", "license_name": "mine", "license_link": "http://x"}, "https"),
        ({"pipeline_tag": "image-tokenization"}, "no task"),
        ({"tags": "vq"}, "list"),
        ({"tags": ["vq", "vq"]}, "repeat"),
        ({"base_model": "/srv/models/mine"}, "no id"),
        ({"datasets": ["my data"]}, "no id"),
        ({"libary_name": "hf_vistok"}, "unknown field"),
        ({"tags": []}, "empty"),
        ({"model-index": [{"name": "x"}]}, "eval_results"),
    ],
)
def test_the_rules_find_mistakes(head, word):
    assert any(word in problem for problem in problems(head))


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.parent.name)
def test_figures_are_those_of_the_file(path):
    """`hf-vistok evaluate --output evaluation.json` wrote them; the card repeats each row."""
    file = path.with_name("evaluation.json")
    if not file.is_file():
        pytest.skip("no evaluation.json beside this card: a pipeline's figures come from the commands that it names")
    text = path.read_text(encoding="utf-8")
    figures = json.loads(file.read_text())
    for row in figures["scores"]:
        assert f"{row['psnr']:.2f}" in text, f"{row['num_tokens']} tokens: {row['psnr']:.2f} dB"
    for row in figures.get("prompts", ()):
        assert f"| {row['split']} ({row['count']}) | {row['pictures']} | {row['name']:.1%} |" in text


def test_made_cards(tmp_path):
    """What `push` makes of folders passes the rules, too."""
    for name, save in (("tok", folders.save_tokenizer), ("prior", folders.save_prior), ("pipe", folders.save_pipeline)):
        folder = save(tmp_path / name)
        wanted = Publication(
            f"me/{name}", "me/base", ["me/data"], "other", "my-licence", "https://me.org/licence", False
        )
        text = complete(folder, wanted)["README.md"].decode()
        assert problems(front_matter(text)) == []
        assert ModelCard(text).data.license_name == "my-licence"
        assert "Licence of the weights: my-licence" in text and "{{" not in text and "\n\n\n\n" not in text


def test_a_card_of_the_users_own_keeps_its_words():
    text = "---\nlicense: mit\ntags: [mine]\n---\n# Mine\n\nWords.\n"
    new = with_metadata(text, {"license": "apache-2.0", "library_name": "hf_vistok", "tags": ["x"]})
    head = front_matter(new)
    assert head == {"license": "mit", "tags": ["mine"], "library_name": "hf_vistok"} and new.endswith(
        "\n# Mine\n\nWords.\n"
    )
    assert with_metadata(new, {"library_name": "hf_vistok"}) == new
    assert with_metadata("# Bare\n", {"license": "mit"}) == "---\nlicense: mit\n---\n\n# Bare\n"


def test_eval_results_are_read_by_the_client():
    scores = [{"num_tokens": n, "psnr": 20.0 + n} for n in (1, 2)]
    files = eval_results({"dataset_id": "me/data", "scores": scores, "date": "2026-01-02T03:04:05+00:00"})
    assert set(files) == {".eval_results/reconstruction.yaml", ".eval_results/reconstruction_1_tokens.yaml"}
    for content in files.values():
        (entry,) = parse_eval_result_entries(yaml.safe_load(content))
        assert entry.dataset_id == "me/data" and entry.task_id == "reconstruction_psnr" and entry.value in (21.0, 22.0)
    assert eval_results({"scores": scores}) == {}, "a local data set has no id that the Hub knows"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family_cards_are_found(family):
    assert family_card(family)
