"""`hf-vistok push` and `hf-vistok pull`: checkpoints and training runs on the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import new_folder, note, quiet_libraries
from .convert import MARKS, warn_restricted
from .loading import Overwrite, Revision

RUN_MARK = "states"
LEFT_OUT = (".part", ".old", ".pyc")
HARMLESS = {".gitattributes", "README.md", "LICENSE"}

Token = Annotated[str | None, typer.Option(envvar="HF_TOKEN", help="Access token; the stored login by default.")]


def push(
    folder: Annotated[Path, typer.Argument(help="What save_pretrained, `convert` or a training run wrote.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hub, name/of-it.")],
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    revision: Revision = None,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload with hf_vistok",
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the commit as a pull request.")] = False,
    base_model: Annotated[str | None, typer.Option(help="Id of the checkpoint that this one was made from.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Id of a data set of its training; repeat.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the weights, as the Hub calls it.")] = None,
    license_name: Annotated[str | None, typer.Option(help="Its name, with --license other.")] = None,
    license_link: Annotated[str | None, typer.Option(help="Its address, with --license other.")] = None,
    sheet: Annotated[bool, typer.Option(help="Let the checkpoint draw a sheet of pictures for its card.")] = True,
    overwrite: Overwrite = False,
    token: Token = None,
) -> None:
    """Upload a checkpoint or a training run in one commit, with a card, a sheet, figures and provenance."""
    from .publishing import Publication, complete, family_of_folder

    quiet_libraries()
    if license == "other" and not license_name:
        raise typer.BadParameter("--license other needs --license-name")
    is_run = (folder / RUN_MARK).is_dir()
    if not is_run and not any((folder / mark).is_file() for mark in MARKS):
        raise ValueError(f"{folder} holds neither {' nor '.join(MARKS)}: it is no folder of a checkpoint.")
    files: dict[str, Any]
    if is_run:
        files = run_files(folder)
    else:
        wanted = Publication(repo, base_model, list(dataset or []), license, license_name, license_link, sheet)
        files = {**folder_files(folder), **complete(folder, wanted)}
        family = family_of_folder(folder)
        if family is not None and b'"source"' in _content(files.get("provenance.json", b"")):
            warn_restricted(family.name)
    options = {"revision": revision, "create_pr": create_pr, "private": private, "overwrite": overwrite}
    typer.echo(upload(files, repo, message, token, **options))


def folder_files(folder: Path) -> dict[str, Path]:
    """Files of a folder by their name in the repository: hidden ones and what a kill left stay at home."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {
        name: path
        for name, path in found.items()
        if not path.name.endswith(LEFT_OUT) and (name.parts[0] == ".eval_results" or not _is_hidden(name))
    }
    return {name.as_posix(): path for name, path in kept.items()}


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in name.parts)


def _content(value: Path | bytes) -> bytes:
    return value.read_bytes() if isinstance(value, Path) else value


def run_files(folder: Path) -> dict[str, Path | bytes]:
    """
    Of a training run: its last state, its best weights, its log, and a card.

    Raises:
        CheckpointError: where there is no complete state.
    """
    from hf_vistok.training.checkpoint import CheckpointError, read_folder, states

    found = states(folder / RUN_MARK)
    if not found:
        raise CheckpointError(f"{folder} holds no training state.")
    read_folder(found[-1])  # a damaged state is not worth its upload
    parts = [found[-1], folder / "best", folder / "assets"]
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for part in parts
        for path in sorted(part.rglob("*"))
        if path.is_file()
    }
    if (folder / "log.jsonl").is_file():
        files["log.jsonl"] = folder / "log.jsonl"
    return {**files, "README.md": RUN_CARD.format(step=found[-1].name.removeprefix("step_").lstrip("0")).encode()}


RUN_CARD = """---
library_name: hf_vistok
tags:
- training-state
---

# A training run of hf_vistok, after step {step}

Weights, their average, the optimizers and the position in the data: `hf-vistok pull this/repository runs/name` fetches
it, and `hf-vistok train` with its recipe and `--output runs/name` goes on from there. `state.json` holds the recipe. It
is no checkpoint to load: `hf-vistok train --export` makes one.
"""


def upload(
    files: dict[str, Path | bytes],
    repo: str,
    message: str,
    token: str | None,
    *,
    revision: str | None = None,
    create_pr: bool = False,
    private: bool = False,
    overwrite: bool = False,
) -> str:
    """
    Uploads files in one commit. What an interrupted upload has sent already is not sent again.

    Returns:
        the address of the commit, or of the pull request.

    Raises:
        PermissionError: without a token, or where it may not write there.
        FileExistsError: where the repository holds something else and `overwrite` is not given.
        ConnectionError: where the Hub is not reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    with clear_errors(repo):
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if not overwrite and not create_pr:
            refuse_other_content(api, repo, revision, set(files))
        if revision is not None and not create_pr:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo, operations, commit_message=message, revision=revision, create_pr=create_pr or None
        )
    return getattr(commit, "pr_url", None) or commit.commit_url


def refuse_other_content(api: Any, repo: str, revision: str | None, names: set[str]) -> None:
    """
    A slip of the pen should not mix a checkpoint into another repository.

    Raises:
        FileExistsError: where the repository holds files and no checkpoint or run of hf_vistok among them.
    """
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        there = set(api.list_repo_files(repo, revision=revision))
    except RevisionNotFoundError:
        return
    foreign = there - HARMLESS
    if foreign <= names or "provenance.json" in foreign or any(name.startswith("states/") for name in foreign):
        return
    shown = ", ".join(sorted(foreign)[:5])
    raise FileExistsError(f"{repo} exists and holds {shown}, not written by this command; --overwrite adds to it.")


@contextmanager
def clear_errors(repo: str) -> Iterator[None]:
    """Says in one line what the Hub's client says in many."""
    try:
        yield
    except Exception as error:
        status, name = getattr(getattr(error, "response", None), "status_code", None), type(error).__name__
        if name == "LocalTokenNotFoundError" or status == 401:
            raise PermissionError(
                f"{repo} needs a valid token (`hf auth login`, HF_TOKEN, --token), or there is no such repository."
            ) from error
        if status == 403:
            raise PermissionError(f"This token has no access to {repo}, or may not write there.") from error
        if any(word in name for word in ("Connect", "Timeout", "Offline", "RemoteProtocol")):
            raise ConnectionError(f"The Hub is not reached, or hung up ({name}); {repo} is unchanged.") from error
        raise


def pull(
    repo: Annotated[str, typer.Argument(help="Repository on the Hub.")],
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    revision: Revision = None,
    overwrite: Overwrite = False,
    token: Token = None,
) -> None:
    """Download a checkpoint or a training run into a folder, which appears when it is complete."""
    from huggingface_hub import snapshot_download

    from .console import check_new

    check_new(folder, overwrite)
    with new_folder(folder, overwrite, (*MARKS, "log.jsonl", RUN_MARK)) as scratch:
        with clear_errors(repo):
            snapshot_download(repo, revision=revision, local_dir=scratch, token=token)
        remove_bookkeeping(scratch)
    note(f"wrote {folder}")


def remove_bookkeeping(folder: Path) -> None:
    """Removes the client's notes about its download."""
    import shutil

    shutil.rmtree(folder / ".cache", ignore_errors=True)
