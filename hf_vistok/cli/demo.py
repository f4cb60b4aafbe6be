"""`hf-vistok demo`: starts a Space on this machine, or makes one on the Hub."""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import note
from .loading import package_folder

SOURCES = ("hf_vistok", "modeling", "pipelines", "spaces", "model_cards")
BUILD_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE")
VARIABLES = {"text_to_image": "HF_VISTOK_MODEL", "tokenizer_lab": "HF_VISTOK_TOKENIZERS"}
MARK = "# the wheel beside this file, by its address: pip sees no other files of a Space"


def demo(
    name: Annotated[str, typer.Argument(help="Which Space: text_to_image or tokenizer_lab.")] = "text_to_image",
    model: Annotated[
        str | None, typer.Option(help="Checkpoint in place of the embedded one; for the lab several, with commas.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; the first free one from 7860 by default.")] = None,
    push: Annotated[str | None, typer.Option(metavar="NAME/OF-IT", help="Make this Space on the Hub instead.")] = None,
    wheel: Annotated[
        Path | None, typer.Option(help="Wheel of hf_vistok to upload; built from the working copy by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Renew the files of a Space that exists.")] = False,
    token: Annotated[
        str | None, typer.Option(envvar="HF_TOKEN", help="Access token; the stored login by default.")
    ] = None,
) -> None:
    """Try a checkpoint in the browser, or share the page as a Space with --push."""
    folder = space_folder(name)
    if push is not None:
        typer.echo(push_space(folder, push, wheel, overwrite, token))
        return
    if wheel is not None or overwrite:
        raise typer.BadParameter("--wheel and --overwrite belong to --push")
    start(folder, model, host, port)


def space_names() -> list[str]:
    """The Spaces that ship with the package."""
    return sorted(path.parent.name for path in package_folder("spaces").glob("*/app.py"))


def space_folder(name: str) -> Path:
    """
    The folder of a Space.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in space_names():
        raise ValueError(f"There is no Space {name!r}; there are {', '.join(space_names())}.")
    return package_folder("spaces") / name


# ---------------------------------------------------------------------- here


def start(folder: Path, model: str | None, host: str, port: int | None) -> None:
    """
    Runs a Space in this process until it is interrupted.

    Raises:
        RuntimeError: without gradio.
        ValueError: where the checkpoint is not there.
    """
    import importlib.util
    import runpy

    if importlib.util.find_spec("gradio") is None:
        raise RuntimeError("The demo needs gradio: pip install 'hf_vistok[demo]' (or pip install 'gradio[mcp]>=6.31').")
    variable = VARIABLES.get(folder.name)
    if model is not None and variable is not None:
        os.environ[variable] = model
    elif folder.name == "text_to_image" and not os.environ.get(variable):
        check_embedded("hf-vistok/emoji-64")
    os.environ["GRADIO_SERVER_NAME"] = host
    if port is not None:
        os.environ["GRADIO_SERVER_PORT"] = str(port)
    sys.path.insert(0, str(folder))
    note(f"starting {folder.name}; Ctrl-C ends it")
    runpy.run_path(str(folder / "app.py"), run_name="__main__")


def check_embedded(name: str) -> None:
    """Raises a ValueError where a checkpoint does not ship with this installation."""
    from hf_vistok.hub import embedded_checkpoints

    if name not in embedded_checkpoints():
        raise ValueError(f"{name} is not inside this installation; name a checkpoint with --model.")


# ---------------------------------------------------------------------- on the Hub


def push_space(folder: Path, repo: str, wheel: Path | None, overwrite: bool, token: str | None) -> str:
    """
    Uploads a Space and the wheel that it runs on, in one commit.

    Returns:
        its address.

    Raises:
        FileExistsError: where the Space is there already and `overwrite` is not given.
        ValueError: for a wheel that is none of hf_vistok, or where none can be built.
    """
    import tempfile

    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with tempfile.TemporaryDirectory() as scratch:
        wheel = build_wheel(Path(scratch)) if wheel is None else checked_wheel(wheel)
        api = HfApi(token=token)
        try:
            repo = api.create_repo(repo, repo_type="space", space_sdk="gradio", exist_ok=overwrite).repo_id
        except HfHubHTTPError as error:
            if getattr(error.response, "status_code", None) != 409:
                raise
            raise FileExistsError(f"The Space {repo} exists already; --overwrite renews its files.") from error
        files: dict[str, Any] = {name: str(path) for name, path in space_files(folder).items()}
        files[wheel.name] = str(wheel)
        address = f"{api.endpoint}/spaces/{repo}/resolve/main/{wheel.name}"
        files["requirements.txt"] = requirements(folder, address).encode()
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repo, operations, repo_type="space", commit_message="Upload with hf_vistok")
    return f"{api.endpoint}/spaces/{repo}"


def space_files(folder: Path) -> dict[str, Path]:
    """Files of a Space by their name in the repository."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path for path in sorted(found) if not path.name.startswith(".")}


def requirements(folder: Path, address: str) -> str:
    """requirements.txt of a Space with the wheel by its address: never a bare name, which anybody could register."""
    own = [line for line in (folder / "requirements.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    return "\n".join([MARK, f"hf_vistok @ {address}", *own]) + "\n"


def checked_wheel(path: Path) -> Path:
    """
    The wheel.

    Raises:
        ValueError: where it is no wheel of hf_vistok.
    """
    import zipfile

    if not (
        path.is_file() and path.name.startswith("hf_vistok-") and path.suffix == ".whl" and zipfile.is_zipfile(path)
    ):
        raise ValueError(f"{path} is no wheel of hf_vistok.")
    return path


def build_wheel(scratch: Path) -> Path:
    """
    A wheel of the working copy that this runs from.

    Raises:
        ValueError: for an installed package, which has no sources to build from; or where the build fails.
    """
    import importlib.util
    import subprocess

    root = Path(__file__).parents[2]
    if not (root / "pyproject.toml").is_file():
        raise ValueError("hf_vistok runs from an installed wheel here: name that file with --wheel.")
    source, out = scratch / "source", scratch / "out"
    source.mkdir()
    for name in BUILD_FILES:
        shutil.copy(root / name, source)
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.part", "*.pyi")
    for name in SOURCES:
        shutil.copytree(root / name, source / name, ignore=skipped)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "-q", "-w", str(out)]
    if importlib.util.find_spec("setuptools") is not None:  # building with what is installed needs no network
        command.append("--no-build-isolation")
    note("building the wheel")
    done = subprocess.run(command, capture_output=True, text=True)
    built = sorted(out.glob("hf_vistok-*.whl"))
    if done.returncode or not built:
        raise ValueError(f"The wheel could not be built: {(done.stderr or done.stdout).strip()[-600:]}")
    return built[0]
