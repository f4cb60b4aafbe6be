"""What the commands share: messages, progress bars, output that appears only when it is complete."""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer

T = TypeVar("T")


def report(error: Exception) -> None:
    """One line about an error on stderr."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    expected = isinstance(error, (ValueError, OSError, RuntimeError))
    if not expected or not text:
        text = f"{kind}: {text} (not expected; --debug shows where)" if text else kind
    typer.echo(f"error: {text}", err=True)


def note(text: str) -> None:
    """A line for people, on stderr, so that stdout stays usable in a pipe."""
    typer.echo(text, err=True)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, with a progress bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    yield from rich_track(items, what, total, console=console, disable=not console.is_terminal, transient=True)


def check_new(path: Path, overwrite: bool) -> None:
    """
    Whether an output may be written.

    Raises:
        FileExistsError: where it is there already and `overwrite` is not given, naming the option.
    """
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{path} exists already; --overwrite replaces it.")


@contextmanager
def new_file(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """
    A scratch file that takes the name `path` when the block ends well, and vanishes where it does not.

    Raises:
        FileExistsError: where `path` is there already and `overwrite` is not given.
        IsADirectoryError: where it is a folder.
    """
    check_new(path, overwrite)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a file is to be written there.")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, overwrite: bool = False, marks: tuple[str, ...] = ()) -> Iterator[Path]:
    """
    A scratch folder that takes the name `path` when the block ends well, and vanishes where it does not.

    Args:
        path: of the folder to make.
        overwrite: whether a folder of that name is replaced.
        marks: a folder is replaced only where it is empty or holds one of these files, so that a slip of the pen does
            not delete what is no output of ours.

    Raises:
        FileExistsError: where `path` is there already and may not be replaced.
    """
    check_new(path, overwrite)
    if os.path.lexists(path) and not _replaceable(path, marks):
        raise FileExistsError(
            f"{path} is not replaced: it holds none of {', '.join(marks)}, so it is not such an output."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        scratch.mkdir()
        yield scratch
        if os.path.lexists(path):
            os.replace(path, old)
        try:
            os.replace(scratch, path)
        except OSError:
            if old.is_dir():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _replaceable(path: Path, marks: tuple[str, ...]) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    return not any(path.iterdir()) or any((path / mark).exists() for mark in marks)


def batches(items: list[T], size: int) -> Iterator[list[T]]:
    """Consecutive parts of a list."""
    if size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {size}.")
    for start in range(0, len(items), size):
        yield items[start : start + size]


def quiet_libraries() -> None:
    """Fewer messages of the libraries: ours are meant to be read."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (transformers_logging, diffusers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def table(rows: list[list[Any]], header: list[str], title: str | None = None) -> None:
    """Prints a table: drawn on a terminal, tab-separated elsewhere."""
    if not sys.stdout.isatty():
        for row in [header, *rows]:
            typer.echo("\t".join("" if cell is None else str(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*header, title=title)
    for row in rows:
        drawn.add_row(*("" if cell is None else str(cell) for cell in row))
    Console().print(drawn)
