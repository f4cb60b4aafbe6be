"""Model cards: the YAML head, licences, a card for each family, and code blocks that run on tiny folders."""

import re
from pathlib import Path

import pytest
import torch

import hf_vistok
from hf_vistok.registry import FAMILIES

from .documents import blocks, front_matter, replace_downloads, run_blocks
from .tiny import TINY

ROOT = Path(hf_vistok.__file__).parent.parent
CARDS = sorted((ROOT / "model_cards").glob("*.md"))
CHECKPOINTS = sorted((ROOT / "hf_vistok" / "checkpoints").glob("*/README.md"))
LICENSES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "openrail", "openrail++", "creativeml-openrail-m", "llama2",
    "llama3", "llama3.1", "llama3.2", "gemma", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "other", "unknown",
}  # fmt: skip
TASKS = {
    "image-feature-extraction", "unconditional-image-generation", "text-to-image", "image-to-image", "image-to-text",
    "image-text-to-text", "any-to-any", "image-classification", "image-segmentation", "feature-extraction",
    "zero-shot-image-classification", "text-to-video", "text-to-3d", "image-to-3d", "text-generation", "fill-mask",
}  # fmt: skip
# Which tiny model stands for an id of a card, where it is not the first one of the family and kind.
STAND_INS = {"maskgit-vqgan-imagenet-f16-256": "maskgit_vqgan"}


def kind_of(model) -> str:
    if isinstance(model, hf_vistok.PreTrainedImageTokenizer):
        return "tokenizer"
    return "prior" if isinstance(model, hf_vistok.PreTrainedImagePrior) else "other"


def stand_in(card: str, kind: str, source: str, options: dict) -> str:
    """Name of the tiny model for an id: named in STAND_INS, called like the card, of its system, or a masked prior."""
    chosen = STAND_INS.get(options.get("preset") or source)
    if chosen:
        return chosen
    called = [name for name in TINY if name == card or name.startswith(f"{card}-")]
    same = [name for name, tiny in TINY.items() if tiny.system == card]
    for name in [*called, *same, "maskgit-bert"]:
        if kind_of(TINY[name]()) == kind:
            return name
    raise AssertionError(f"no tiny {kind} for {source} of {card}")


def save_tiny(name: str, folder: Path) -> Path:
    if not folder.exists():
        torch.manual_seed(0)
        model = TINY[name]()
        model.save_pretrained(folder)
        if kind_of(model) == "tokenizer":
            processor = TINY[name].processor
            processor = processor() if processor else hf_vistok.ImageTokenizerProcessor.for_config(model.config)
            processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    text = path.read_text(encoding="utf-8")
    if not blocks(text):
        pytest.skip("no blocks to run")

    def folder_of(kind, source, options):
        name = stand_in(path.stem, kind, source, options)
        return save_tiny(name, tmp_path / f"tiny_{name}")

    replace_downloads(monkeypatch, folder_of)
    run_blocks(text, tmp_path, monkeypatch)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_has_a_card(family):
    path = ROOT / "model_cards" / f"{family.name}.md"
    assert path.is_file(), f"model_cards/{family.name}.md is missing"
    text = path.read_text(encoding="utf-8")
    if family.paper:
        assert f"arxiv:{family.paper}" in front_matter(text)["tags"]
    if family.restricted:
        body = text.split("---\n", 2)[2]
        assert re.search(r"licen[cs]e|non-commercial|research", body[:700], re.I), (
            "say the restriction in the first lines"
        )


@pytest.mark.parametrize("path", CARDS + CHECKPOINTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_head(path):
    text = path.read_text(encoding="utf-8")
    head = front_matter(text)
    assert head["library_name"] == "hf_vistok"
    assert head["license"] in LICENSES, head["license"]
    if head["license"] == "other":
        assert head.get("license_name"), "license: other needs license_name"
    assert head.get("pipeline_tag") in TASKS, head.get("pipeline_tag")
    tags = head.get("tags", [])
    assert tags and all(isinstance(tag, str) for tag in tags)
    assert re.search(r"^# \S", text, re.M), "the card needs a title"


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_numbers_of_the_authors_are_marked(path):
    text = path.read_text(encoding="utf-8")
    if re.search(r"\b[rg]FID\b[^\n]*\d|\|[^|\n]*\b[rg]FID\b", text):
        assert re.search(r"reported\s+by\s+the\s+authors", text, re.I), "mark the authors' numbers as theirs"
