"""`hf-vistok stats`: the statistics of a tokenizer's latents, which generators need, as part of a checkpoint."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import check_new, note, track
from .loading import (
    BatchSize,
    ConfigFile,
    Device,
    Dtype,
    Filename,
    Overwrite,
    Preset,
    Revision,
    chosen,
    find_inputs,
    load_tokenizer,
)


def stats(
    tokenizer: Annotated[str, typer.Argument(help="A continuous tokenizer: Hub id, embedded id or folder.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, and folders of them.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the tokenizer with its statistics.")
    ] = None,
    generator: Annotated[
        Path | None, typer.Option(help="Folder of a generator or a pipeline of ours that gets them, in place.")
    ] = None,
    state: Annotated[
        Path, typer.Option(help="File of the running sums; a run that was interrupted goes on from it.")
    ] = Path("latent_statistics.safetensors"),
    sample: Annotated[bool, typer.Option("--sample", help="Draw from the posterior, in place of its mean.")] = False,
    limit: Annotated[int, typer.Option(help="Pictures to take, evenly spread; 0 for all.")] = 0,
    batch_size: BatchSize = 16,
    filename: Filename = None,
    preset: Preset = None,
    config: ConfigFile = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
) -> None:
    """Compute mean and deviation of a tokenizer's latents over pictures; streaming, exact, resumable."""
    from hf_vistok.evaluation.latent_statistics import StatisticsRun, check_raw, store

    if output is not None:
        check_new(output, overwrite)
    paths = find_inputs(images)
    if limit and limit < len(paths):
        paths = [paths[i * len(paths) // limit] for i in range(limit)]
    options = chosen(filename, preset, config, revision)
    model, processor = load_tokenizer(tokenizer, device, dtype, options)
    check_raw(model)
    origin = {"model": tokenizer, **{name: str(value) for name, value in options.items()}}
    run = StatisticsRun(model, paths, state, processor=processor, origin=origin, batch_size=batch_size, sample=sample)
    if run.done:
        note(f"{state}: {run.done} of {len(paths)} pictures are in, going on")
    progress = iter(track(range(-(-(len(paths) - run.done) // batch_size)), "pictures"))
    found = run.run(lambda count: next(progress, None))
    next(progress, None)
    if output is not None:
        note(f"{output}: {store(model, found)}, of {found.count} pictures")
        model.save_pretrained(output)
        processor.save_pretrained(output)
    if generator is not None:
        note(f"{generator}: {give_to_generator(generator, found)}, of {found.count} pictures")
    mean, std = found.channel_mean.tolist(), found.channel_std.tolist()
    typer.echo(json.dumps({"pictures": found.count, "mean": mean, "std": std}))


def give_to_generator(folder: Path, statistics: Any) -> str:
    """
    Sets the statistics of a saved generator, or of the generator of a saved pipeline.

    Raises:
        ValueError: where the folder holds neither.
    """
    from hf_vistok.evaluation.latent_statistics import store
    from hf_vistok.registration import load_transformer

    target = folder / "transformer" if (folder / "model_index.json").is_file() else folder
    if not (target / "config.json").is_file():
        raise ValueError(f"{folder} holds no generator of hf_vistok (no config.json).")
    model = load_transformer(str(target))
    if not hasattr(model, "set_latent_statistics"):
        raise ValueError(f"{folder}: a {type(model).__name__} takes no statistics of latents.")
    told = store(model, statistics)
    model.save_config(target)
    return told
