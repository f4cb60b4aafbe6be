"""Runs the Python blocks of Markdown documents with tiny local folders in place of Hub ids."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import hf_vistok

from . import folders

OPTIONS_OF_ORIGINALS = ("filename", "preset", "config", "revision", "token", "cache_dir")


def blocks(text: str, language: str = "python") -> list[str]:
    """The fenced blocks of a language, without those marked `no-run`."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def front_matter(text: str) -> dict[str, Any]:
    """The YAML head of a card."""
    head = re.match(r"---\n(.*?)\n---\n", text, re.S)
    assert head, "the card needs a YAML head between two lines of ---"
    return yaml.safe_load(head.group(1))


def replace_downloads(monkeypatch, folder_of: Callable[[str, str, dict[str, Any]], Path]) -> None:
    """
    Makes Auto classes and pipelines load tiny folders for ids that do not exist here.

    Args:
        monkeypatch: of pytest.
        folder_of: (kind, id, options) -> folder, for the kinds "tokenizer", "prior" and "pipeline".
    """
    from hf_vistok.pipelines.pipeline_utils import LOADERS
    from hf_vistok.registration import prepare_pipelines

    def replace(cls: type, kind: str) -> None:
        original = cls.from_pretrained

        def load(source, **options):
            if os.path.exists(source):
                return original(source, **options)
            rest = {name: value for name, value in options.items() if name not in OPTIONS_OF_ORIGINALS}
            return original(folder_of(kind, str(source), options), **rest)

        monkeypatch.setattr(cls, "from_pretrained", staticmethod(load))

    replace(hf_vistok.AutoImageTokenizer, "tokenizer")
    replace(hf_vistok.AutoImageTokenizerProcessor, "tokenizer")
    replace(hf_vistok.AutoImagePrior, "prior")
    before = dict(LOADERS)
    prepare_pipelines()
    loaders = dict(LOADERS)
    LOADERS.clear()
    LOADERS.update(before)
    fetch = loaders["fetch"]

    def fetch_local(source, name, **hub):
        return fetch(source, name, **hub) if os.path.exists(source) else None

    def resolve(source, revision=None):
        known = not str(source).startswith("hf-vistok/") or os.path.exists(loaders["resolve"](source))
        return loaders["resolve"](source, revision) if known else str(folder_of("pipeline", source, {}))

    for name, value in {**loaders, "fetch": fetch_local, "resolve": resolve}.items():
        monkeypatch.setitem(LOADERS, name, value)


def run_blocks(text: str, folder: Path, monkeypatch) -> dict[str, Any]:
    """Runs all blocks of a document in one namespace, in a folder with `picture.png` and `pictures/`."""
    pictures = folders.save_pictures(folder / "pictures")
    (folder / "picture.png").write_bytes((pictures / "picture_0.png").read_bytes())
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"__name__": "document"}
    for number, block in enumerate(blocks(text), 1):
        exec(compile(block, f"<block {number}>", "exec"), namespace)
    return namespace
