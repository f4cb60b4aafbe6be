"""
The command line `hf-vistok`.

Each command lives in a small module beside this one; what is heavy (torch, transformers) is imported inside it, so that
`--help` is quick. Exit codes: 0 done, 1 an error that is reported in one line, 2 wrong usage.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .console import report
from .convert import convert
from .data import app as data_app
from .demo import demo
from .evaluate import evaluate
from .export import export
from .generate import generate
from .listing import info, list_families
from .push import pull, push
from .scorer import scorer
from .showcase import showcase
from .stats import stats
from .tokens import detokenize, reconstruct, tokenize
from .train import train

ABOUT = "Visual tokenizers and the generators that run on them: any published checkpoint, one set of commands."
app = typer.Typer(name="hf-vistok", help=ABOUT, no_args_is_help=True, pretty_exceptions_enable=False)
app.command("list")(list_families)
for _command in (
    info,
    tokenize,
    detokenize,
    reconstruct,
    generate,
    convert,
    export,
    push,
    pull,
    train,
    evaluate,
    scorer,
    stats,
    showcase,
    demo,
):
    app.command()(_command)
app.add_typer(data_app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        import hf_vistok

        typer.echo(hf_vistok.__version__)
        raise typer.Exit


@app.callback(help=ABOUT)
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere.")] = False,
) -> None:
    """Options before the command; `--debug` is taken out by `main`, wherever it stands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Runs the command line.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        the exit code: 0 done, 1 an error (one line on stderr; `--debug` adds the traceback), 2 wrong usage.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app(args=arguments, prog_name="hf-vistok")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        report(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
