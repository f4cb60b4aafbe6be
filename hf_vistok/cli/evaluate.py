"""`hf-vistok evaluate`: figures of a tokenizer on a data set."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import new_file


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint (id or folder), or the folder of a training run.")],
    data: Annotated[str, typer.Option(help="Folder of pictures, shards or the emoji set; or an id on the Hub.")],
    kind: Annotated[str, typer.Option(help="emoji, folder, hub or shards.")] = "emoji",
    split: Annotated[str, typer.Option(help="names, pairs, held_out or train of the emoji set.")] = "names",
    styles: Annotated[
        list[str] | None, typer.Option("--style", help="A drawing style of the emoji set; repeat; all by default.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Pictures to take, evenly spread; 0 for all.")] = 0,
    tokens: Annotated[list[int] | None, typer.Option(help="Numbers of tokens; 1, 2, 4, ... by default.")] = None,
    prompts: Annotated[
        int, typer.Option(help="Also score pictures drawn from names of the emoji set: so many of each split.")
    ] = 0,
    scorer: Annotated[
        Path | None,
        typer.Option(help="What --prompts measures with, see `hf-vistok scorer`; the package's by default."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at once.")] = 64,
    sheet: Annotated[Path | None, typer.Option(help="Also write a sheet of 12 pictures to this PNG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of a table.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Also write JSON here; `push` takes evaluation.json of a folder into its card.")
    ] = None,
    dataset_id: Annotated[str | None, typer.Option(help="Id of the data on the Hub, for --output.")] = None,
) -> None:
    """Print the PSNR of a tokenizer's reconstructions by the number of tokens; of a chain also how its prompts do."""
    import torch

    from hf_vistok.data.sources import open_source
    from hf_vistok.evaluation.reconstruction import as_rows, markdown_table, reconstruction_scores
    from hf_vistok.training.stages import sample_some

    model = load_tokenizer(checkpoint)
    images = sample_some(open_source(kind, data, model.config.image_size, split=split, styles=styles), limit)
    torch.manual_seed(0)  # the noise of flow decoders
    scores = reconstruction_scores(model, images, tokens, batch_size)
    if sheet is not None:
        write_sheet(model, images, sheet, [score.num_tokens for score in scores])
    figures = {"pictures": len(images), "scores": as_rows(scores)}
    text = score_prompts(checkpoint, data, model.config.image_size, styles, prompts, scorer, figures) if prompts else ""
    if output is not None:
        write_figures(output, figures, kind, data, split, dataset_id)
    if as_json:
        typer.echo(json.dumps(figures))
        return
    part = f", {split} split" if kind in ("emoji", "hub") else ""
    typer.echo(f"{len(images)} pictures of {data}{part}\n")
    typer.echo(markdown_table(scores))
    if text:
        typer.echo(f"\n{text}")


def score_prompts(
    checkpoint: str,
    data: str,
    size: int,
    styles: list[str] | None,
    count: int,
    scorer: Path | None,
    figures: dict[str, Any],
) -> str:
    """The tables of a text-to-image pipeline; its figures go to `figures`."""
    import time

    from hf_vistok.data.sources import EmojiSource
    from hf_vistok.evaluation.alignment import ImageTextScorer
    from hf_vistok.evaluation.text_to_image import (
        markdown_prompts,
        prompt_of,
        prompt_rows,
        prompt_scores,
        seconds_for,
        spread,
    )

    from .generate import load_pipeline

    began = time.perf_counter()
    pipe = load_pipeline(checkpoint, None, {})
    loading = time.perf_counter() - began
    pipe.set_progress_bar_config(disable=True)
    judge = ImageTextScorer.from_pretrained(str(scorer or Path(__file__).parents[1] / "evaluation" / "emoji_scorer"))
    known = EmojiSource(Path(data), size, "train", styles)
    splits = {
        split: spread(EmojiSource(Path(data), size, split, styles), count) for split in ("train", "pairs", "names")
    }
    scores = prompt_scores(pipe, judge.eval(), splits, known.records)
    seconds = seconds_for(pipe, [prompt_of(record) for record in spread(known, 16).records])
    figures |= {"prompts": prompt_rows(scores), "seconds_to_load": loading, "seconds_for_16_pictures": seconds}
    return f"{markdown_prompts(scores)}\n\nloaded in {loading:.1f} s; 16 pictures in {seconds:.1f} s"


def write_figures(
    path: Path, figures: dict[str, Any], kind: str, data: str, split: str, dataset_id: str | None
) -> None:
    """The figures with what they are of; of a local folder only its name."""
    from datetime import UTC, datetime

    from hf_vistok.provenance import own_version

    dataset_id = dataset_id or (data if kind == "hub" else None)
    told = {"data": dataset_id or Path(data).name, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    told |= {"split": split} if kind in ("emoji", "hub") else {}
    told |= {"dataset_id": dataset_id} if dataset_id else {}
    content = {**told, "written_by": f"hf_vistok {own_version()}", **figures}
    with new_file(path, overwrite=True) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(checkpoint: str):
    """A tokenizer from an id, a folder, or the folder of a training run, in eval mode."""
    folder = Path(checkpoint)
    if (folder / "states").is_dir() or (folder / "best").is_dir():
        from hf_vistok.training.export import load_trained

        return load_trained(folder)[0]
    from hf_vistok.auto_classes import AutoImageTokenizer

    return AutoImageTokenizer.from_pretrained(checkpoint).eval()


def write_sheet(model, images, path: Path, lengths: list[int], count: int = 12) -> None:
    """Originals and their reconstructions by number of tokens, one row each."""
    from hf_vistok.evaluation.reconstruction import reconstruct_lengths, to_bytes, to_pixels
    from hf_vistok.training.report import save_sheet

    chosen = images[:: max(1, len(images) // count)][:count]
    rows = [("real", chosen)]
    for length, fake in reconstruct_lengths(model, to_pixels(chosen, model.device), lengths):
        rows.append((str(length), to_bytes(fake)))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_sheet(path, rows, zoom=2)
