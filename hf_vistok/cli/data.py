"""`hf-vistok data`: builds data sets."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Build data sets.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Build data sets."""


@app.command()
def emoji(
    output: Annotated[Path | None, typer.Option(help="Folder to make; data/emoji-<size> by default.")] = None,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 64,
    style: Annotated[list[str] | None, typer.Option(help="A drawing style; repeat for more. All by default.")] = None,
    skin_tones: Annotated[bool, typer.Option(help="Keep skin-tone variants.")] = False,
    flags: Annotated[bool, typer.Option(help="Keep flags.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes that render.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a data set of other settings.")] = False,
) -> None:
    """Build the emoji data set from packages of the npm registry. Running it again does nothing."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from hf_vistok.data.emoji import build_emoji

    output = output or Path("data") / f"emoji-{size}"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("packages", total=None)
        info = build_emoji(
            output,
            size=size,
            styles=style or None,
            skin_tones=skin_tones,
            flags=flags,
            workers=workers,
            overwrite=overwrite,
            on_package=lambda name: progress.update(task, description=f"fetching {name}"),
            on_total=lambda total: progress.update(task, description="drawing", total=total),
            on_done=lambda count: progress.advance(task, count),
        )
    splits = ", ".join(f"{count} {name}" for name, count in info["splits"].items())
    typer.echo(f"{output}: {info['images']} pictures of {size} x {size} ({splits}; {info['failed']} not drawable)")
