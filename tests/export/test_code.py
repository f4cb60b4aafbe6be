"""Code export: what is exported runs where hf_vistok cannot be imported, and gives the same."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_vistok import PreTrainedImagePrior, PreTrainedImageTokenizer
from hf_vistok.cli.main import main
from hf_vistok.export.code import REMOTE_IMPORT, export_code, flatten
from hf_vistok.registry import model_entries

from .. import folders
from ..common import Case
from ..tiny import TINY
from .without_package import generators, run

# One of each shape; the slow test takes every class.
SHAPES = {
    "discrete tokenizer": "titok-vq",
    "any prefix": "one_d_piece",
    "tokens on a grid": "maskgit_vqgan",
    "several codebooks": "fqgan-triple",
    "continuous tokenizer": "titok-kl",
    "frozen vision tower": "rae",
    "flow decoder": "flextok",
    "masked prior": "maskgit-bert",
    "autoregressive prior": "llamagen-prior",
    "autoregressive prior of several codebooks": "far",
    "prior of continuous tokens": "maskgen-kl",
    "flow transformer": "dit_family",
}


def calls(case: Case) -> list[tuple[str, dict, int]]:
    """(method, arguments, number of generators) of what a model is for."""
    model = case.model
    if isinstance(model, PreTrainedImagePrior):
        return [("generate", case.generate_options(2), 2)]
    if not isinstance(model, PreTrainedImageTokenizer):
        return [("forward", case.forward_inputs(2), 0)]
    torch.manual_seed(0)
    encoded = case.encode(2)
    found = [("encode", {"pixel_values": case.pixels(2), **case.tiny.kwargs("encode", 2)}, 0)]
    if case.decodes:
        options = case.decode_options(encoded, 2)
        draws = 2 if options.pop("generator", None) else 0
        found.append(("decode", {"latents": encoded.latents, "token_mask": encoded.token_mask, **options}, draws))
    return found


def export(name: str, folder: Path, picture: Path) -> Path:
    """An exported tiny model, with what it says at home."""
    case = Case(name)
    processor = case.processor() if isinstance(case.model, PreTrainedImageTokenizer) else None
    export_code(case.model, folder, processor)
    said = [(method, kwargs, draws, run(case.model, method, kwargs, draws)) for method, kwargs, draws in calls(case)]
    told = {"calls": said, "library": "transformers" if hasattr(case.model, "config_class") else "diffusers"}
    told["picture"] = None
    if processor is not None:
        told |= {"picture": str(picture), "pixel_values": processor(str(picture), return_tensors="pt").pixel_values}
    torch.save(told, folder / "expected.pt")
    return folder


def run_without_package(made: list[Path], home: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_MODULES_CACHE")}
    environment |= {"HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    script = Path(inspect.getfile(run))
    done = subprocess.run(
        [sys.executable, str(script), *map(str, made)],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout


def check_all(names: list[str], tmp_path: Path) -> None:
    picture = folders.save_pictures(tmp_path / "pictures", 1) / "picture_0.png"
    made = [export(name, tmp_path / name, picture) for name in names]
    (tmp_path / "home").mkdir()
    assert run_without_package(made, tmp_path / "home").splitlines() == [f"ok {name}" for name in names]


def test_one_of_each_shape(tmp_path):
    check_all(list(SHAPES.values()), tmp_path)


@pytest.mark.slow
def test_every_model(tmp_path):
    check_all([name for name in TINY if name not in SHAPES.values()], tmp_path)


@pytest.mark.parametrize("entry", model_entries(), ids=lambda entry: entry.model)
def test_every_class_can_be_written_flat(entry):
    """No two modules share a name, and transformers finds all imports (it reads them by a pattern)."""
    starts = [entry.model_module, *([entry.config_module] if entry.config else [])]
    sources = flatten(starts)
    for name, text in sources.items():
        compile(text, name, "exec")
        assert not re.search(r"^\s*from (\.\.|hf_vistok)|^\s*import hf_vistok", text, re.M)
        for first, second in REMOTE_IMPORT.findall(text):
            assert f"{first or second}.py" in sources


def test_modules_have_names_of_their_own():
    from hf_vistok import modeling

    root = Path(modeling.__file__).parent
    paths = [path for path in root.rglob("*.py") if path.name != "__init__.py"]
    names = [f"layers_{path.name}" if path.parent.name == "layers" else path.name for path in paths]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)


def test_command(tmp_path, capsys):
    saved = folders.save_tokenizer(tmp_path / "saved")
    assert main(["export", str(saved), str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_one_d_piece.OneDPieceModel"
    assert (tmp_path / "out" / "modeling_one_d_piece.py").is_file()
    assert "trust_remote_code=True" in (tmp_path / "out" / "README.md").read_text()
    assert main(["export", str(saved), str(tmp_path / "out")]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nothing"), str(tmp_path / "other")]) == 1
    assert not (tmp_path / "other").exists()


def test_at_home_the_package_is_used(tmp_path):
    """A folder with code loads as any other one here; its code is not run."""
    import hf_vistok

    folder = export_code(folders.one_d_piece(), tmp_path / "out")
    for path in folder.glob("*.py"):
        path.write_text("raise RuntimeError('this ran')")
    assert type(hf_vistok.AutoImageTokenizer.from_pretrained(folder)) is hf_vistok.OneDPieceModel


def test_other_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no model of hf_vistok"):
        export_code(torch.nn.Linear(2, 2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_seeds_are_those_of_the_suite():
    assert [g.initial_seed() for g in generators(2)] == [0, 1]
