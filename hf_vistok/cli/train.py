"""`hf-vistok train`: trains what a recipe describes."""

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe of the package.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<name> by default.")] = None,
    resume: Annotated[str, typer.Option(help="auto, never, or the path of a training state.")] = "auto",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a value: --set optimizer.lr=1.0e-4. Repeat for more.")
    ] = None,
    overfit_one_batch: Annotated[bool, typer.Option(help="Train on the first batch again and again.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print shapes, sizes and the plan, and stop.")] = False,
    stop_after: Annotated[int | None, typer.Option(help="Leave after this many steps, with a saved state.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write the best averaged weights here when done.")] = None,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Train a recipe; after a stop or a kill, the same command goes on. Under torchrun: -m hf_vistok.cli.train."""
    from hf_vistok.training.recipe import load_recipe

    parsed = load_recipe(recipe, overrides)  # a wrong recipe is refused before torch is imported
    if parsed.stage == "chain":
        if overfit_one_batch or stop_after is not None or resume not in ("auto", "never"):
            raise typer.BadParameter(
                "a chain takes --set, --output, --export, --dry-run, --quiet and --resume auto|never."
            )
        _train_chain(parsed, output, resume, dry_run, export, quiet)
        return
    from hf_vistok.training.core import Trainer

    trainer = Trainer(parsed, output, resume=resume, overfit_one_batch=overfit_one_batch, quiet=quiet)
    if dry_run:
        for name, value in trainer.dry_run().items():
            typer.echo(f"{name}: {value}")
        return
    trainer.run(stop_after)
    if export is not None and trainer.main:
        from hf_vistok.training.export import export_checkpoint

        typer.echo(f"wrote {export_checkpoint(trainer.output, export)}")


def _train_chain(
    recipe: Any, output: Path | None, resume: str, dry_run: bool, export: Path | None, quiet: bool
) -> None:
    from hf_vistok.training.chain import part_recipes, train_chain

    if dry_run:
        for part in part_recipes(recipe, output):
            typer.echo(f"{part.stage}: {part.steps} steps of {part.batch_size}, {part.output}")
        return
    typer.echo(f"wrote {train_chain(recipe, output, export, resume=resume, quiet=quiet)}")


if __name__ == "__main__":  # what torchrun starts
    import sys

    from hf_vistok.cli.main import main

    sys.exit(main(["train", *sys.argv[1:]]))
