"""README, CONTRIBUTING: code blocks run, commands exist, the table of families is current, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import typer

import hf_vistok
from hf_vistok.cli.listing import with_table
from hf_vistok.cli.main import app

from . import folders
from .documents import blocks, replace_downloads, run_blocks

ROOT = Path(hf_vistok.__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def test_python_blocks_run(tmp_path, monkeypatch):
    made = {
        "tokenizer": folders.save_tokenizer(tmp_path / "tiny_tokenizer"),
        "prior": folders.save_prior(tmp_path / "tiny_prior"),
        "pipeline": folders.save_pipeline(tmp_path / "tiny_pipeline"),
    }
    assert len(blocks(README)) == 5
    replace_downloads(monkeypatch, lambda kind, source, options: made[kind])
    run_blocks(README, tmp_path, monkeypatch)
    assert (tmp_path / "again.png").is_file() and (tmp_path / "four_tokens.png").is_file()


def commands() -> list[str]:
    lines = []
    for page in PAGES:
        for block in blocks((ROOT / page).read_text(encoding="utf-8"), "bash"):
            lines += [line.split("  #")[0].strip() for line in block.splitlines() if line.startswith("hf-vistok ")]
    return lines


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line):
    """Each command line of the documents parses; nothing runs."""
    _, name, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[name]
    if hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, arguments)


def test_the_table_of_families_is_current():
    assert with_table(README) == README, "run: hf-vistok list --update README.md"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), f"{page} links to {target}"


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for line in blocks(README, "bash")[0].splitlines():
        assert f"\n{line.split()[1]}:" in makefile
