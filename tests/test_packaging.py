"""The wheel: it builds from the tracked files, holds the data folders, installs elsewhere and works there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hf_vistok

from . import folders

ROOT = Path(hf_vistok.__file__).parent.parent
pytestmark = pytest.mark.slow


def tracked_files() -> list[Path]:
    """What git knows of (a wheel must not depend on what lies about), or all files outside a repository."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = [name for name in done.stdout.split("\0") if name]
    return [Path(name) for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = tracked_files()
    if not files:
        pytest.skip("needs a git working copy")
    for path in files:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "-q",
        "--disable-pip-version-check",
        "-w",
        str(out),
    ]
    try:
        import setuptools  # noqa: F401 - building with what is installed needs no network

        build.append("--no-build-isolation")
    except ImportError:
        pass
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("hf_vistok-*.whl"))


def test_the_wheel_holds_everything(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = {str(path) for path in tracked_files()}
    for folder in ("hf_vistok/checkpoints", "hf_vistok/training/recipes", "hf_vistok/pictures"):
        data = {name for name in tracked if name.startswith(f"{folder}/")}
        assert data <= names, sorted(data - names)
    for folder in ("modeling", "pipelines", "spaces", "model_cards"):
        inside = {f"hf_vistok/{name}" for name in tracked if name.startswith(f"{folder}/")}
        assert inside and inside <= names, sorted(inside - names)
    for package in ("hf_vistok", "hf_vistok/modeling", "hf_vistok/pipelines"):
        assert f"{package}/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "modeling/", "pipelines/"))]
    assert not [name for name in names if "__pycache__" in name or name.startswith("hf_vistok/hf_vistok")]


def test_the_installed_wheel_works(wheel, tmp_path):
    """In a folder of its own, in front of everything else: cards, pictures and commands come from the wheel."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "-q",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    model, pictures = folders.save_tokenizer(work / "model"), folders.save_pictures(work / "pictures", 1)
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}

    def run(*arguments: object) -> str:
        code = (
            "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in repr(f)];"
            "import hf_vistok.cli.main as m; assert m.__file__.startswith(sys.argv[1]); sys.exit(m.main(sys.argv[2:]))"
        )
        words = [sys.executable, "-c", code, str(site), *map(str, arguments)]
        done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("info", "titok", "--card").startswith("# TiTok")
    assert run("reconstruct", model, pictures, "-o", "sheet.png").splitlines()[1].split()[0] == "1"
    assert (work / "sheet.png").is_file()
    embedded = [line for line in run("list").splitlines() if line.startswith("in the package: ")]
    if embedded:
        run("showcase", "--output", "demo")
        assert list((work / "demo").glob("*.png"))
