"""`hf-vistok demo`, and that each Space's folder can be pushed as it is."""

import re
import zipfile
from pathlib import Path

import pytest
import yaml

from hf_vistok.cli.demo import checked_wheel, requirements, space_files, space_folder, space_names
from hf_vistok.cli.main import main

from ..hub.conftest import client, hub  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[2]
WORKFLOW = """
    import sys
    sys.path.insert(0, {root!r})
    from hf_vistok.cli.main import main
    wheel = {wheel!r}
    codes = [main(["demo", "tokenizer_lab", "--push", "me/lab", "--wheel", wheel]),
             main(["demo", "tokenizer_lab", "--push", "me/lab", "--wheel", wheel]),
             main(["demo", "tokenizer_lab", "--push", "me/lab", "--wheel", wheel, "--overwrite"])]
    print(codes)
"""


@pytest.fixture
def wheel(tmp_path):
    """A file that could be a wheel."""
    path = tmp_path / "hf_vistok-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hf_vistok/__init__.py", "")
    return path


@pytest.mark.parametrize("name", space_names())
def test_folders_can_be_pushed(name):
    folder = space_folder(name)
    files = space_files(folder)
    assert {"app.py", "requirements.txt", "README.md"} <= set(files)
    assert not [path for path in files if path.endswith((".pyc", ".pyi"))]
    front = yaml.safe_load(files["README.md"].read_text(encoding="utf-8").split("---\n")[1])
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and front["license"] == "apache-2.0"
    assert len(front["short_description"]) <= 60 and front["title"]
    own = files["requirements.txt"].read_text(encoding="utf-8")
    assert f"gradio[mcp]=={front['sdk_version']}" in own
    assert not re.search(r"(?m)^hf[_-]vistok\s*($|[=<>~!])", own), "a bare name could be anybody's"
    pinned = re.search(r"gradio==(\S+)", (ROOT / "constraints.txt").read_text())
    assert pinned[1] == front["sdk_version"]


def test_requirements_name_the_wheel_by_its_address():
    text = requirements(space_folder("tokenizer_lab"), "https://hub/spaces/me/lab/resolve/main/hf_vistok-1.whl")
    assert "hf_vistok @ https://hub/spaces/me/lab/resolve/main/hf_vistok-1.whl\n" in text
    assert "gradio[mcp]==" in text


def test_push(hub, client, wheel):  # noqa: F811
    printed = client(WORKFLOW.format(root=str(ROOT), wheel=str(wheel)))
    assert "[0, 1, 0]" in printed and f"{hub.url}/spaces/me/lab" in printed
    repo = hub.repos["spaces/me/lab"]
    files = repo.commits[repo.refs["main"]]
    assert {"app.py", "bench.py", "views.py", "actions.py", "README.md", wheel.name} <= set(files)
    line = f"hf_vistok @ {hub.url}/spaces/me/lab/resolve/main/{wheel.name}"
    assert line in files["requirements.txt"].decode().splitlines()


def test_push_without_a_token(hub, client, wheel):  # noqa: F811
    printed = client(WORKFLOW.format(root=str(ROOT), wheel=str(wheel)), token=None, check=False)
    assert "[1, 1, 1]" in printed and "Traceback" not in printed and not hub.repos


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "text_to_image, tokenizer_lab"),
        (["tokenizer_lab", "--push", "me/lab", "--wheel", "README.md"], "no wheel of hf_vistok"),
        (["tokenizer_lab", "--push", "me/lab", "--wheel", "missing.whl"], "no wheel of hf_vistok"),
    ],
)
def test_errors(arguments, message, capsys):
    assert main(["demo", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_options_of_push_alone(capsys):
    assert main(["demo", "tokenizer_lab", "--overwrite"]) == 2


def test_without_gradio(monkeypatch, capsys):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else found(name, *rest)
    )
    assert main(["demo", "tokenizer_lab"]) == 1
    assert "pip install" in capsys.readouterr().err


def test_without_the_embedded_pipeline(monkeypatch, capsys):
    monkeypatch.setattr("hf_vistok.hub.embedded_checkpoints", lambda: [])
    monkeypatch.delenv("HF_VISTOK_MODEL", raising=False)
    assert main(["demo", "text_to_image"]) == 1
    assert "--model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_wheel_is_built_from_the_working_copy(tmp_path):
    from hf_vistok.cli.demo import build_wheel

    built = checked_wheel(build_wheel(tmp_path))
    names = set(zipfile.ZipFile(built).namelist())
    for path in ("spaces/common.py", "spaces/text_to_image/app.py", "pictures/cat.png", "modeling/modeling_utils.py"):
        assert f"hf_vistok/{path}" in names
