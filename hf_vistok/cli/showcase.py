"""`hf-vistok showcase`: what `make demo` runs, on the checkpoints that ship inside the package and with no network."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import note, track

PROMPTS = (
    "red apple",
    "grinning face",
    "cat face",
    "blue heart",
    "pizza",
    "soccer ball",
    "house",
    "palm tree",
    "robot",
    "rocket",
    "sun",
    "ghost",
    "red apple, noto",
    "red apple, fluent flat",
    "rainbow",
    "a green car",
)
STREAMED = ("red apple", "cat face", "soccer ball", "house", "rocket", "blue heart")


def showcase(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to; files in it are renewed.")] = Path(
        "demo"
    ),
    images: Annotated[
        list[Path] | None, typer.Option(help="Pictures or folders in place of the package's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random draws.")] = 0,
) -> None:
    """Tokenize pictures with every embedded checkpoint at several lengths, and draw them side by side."""
    from hf_vistok.hub import EMBEDDED_FOLDER, EMBEDDED_PREFIX, embedded_checkpoints

    from .console import quiet_libraries
    from .loading import find_inputs

    names = embedded_checkpoints()
    if not names:
        raise ValueError(f"This installation has no embedded checkpoints ({EMBEDDED_FOLDER} is empty).")
    paths = find_inputs(list(images or [example_pictures()]))
    quiet_libraries()
    output.mkdir(parents=True, exist_ok=True)
    for name in track(names, "checkpoints"):
        folder = EMBEDDED_FOLDER / name.removeprefix(EMBEDDED_PREFIX)
        show = _show_pipeline if (folder / "model_index.json").is_file() else _show_tokenizer
        for line in show(name, paths, output, seed):
            typer.echo(line)
    note(f"the pictures are in {output.resolve()}")


def example_pictures() -> Path:
    """The folder of the pictures that ship with the package."""
    from .loading import package_folder

    return package_folder("pictures")


def _show_tokenizer(name: str, paths: list[Path], output: Path, seed: int) -> list[str]:
    """A sheet of lengths, and the file of tokens that it was drawn from."""
    import torch

    from .console import new_file
    from .loading import load_tokenizer
    from .sheets import reconstruction_columns, reconstruction_sheet, summary_lines
    from .token_files import write_tokens
    from .tokens import encode_paths, join

    stem = name.split("/")[-1]
    model, processor = load_tokenizer(name, "cpu", None, {})
    torch.manual_seed(seed)
    columns = reconstruction_columns(model, processor, paths)
    _save(output / f"{stem}.png", reconstruction_sheet(columns))
    content = join([encode_paths(model, processor, paths, None)], [path.name for path in paths], {"model": name})
    with new_file(output / f"{stem}.safetensors", overwrite=True) as scratch:
        write_tokens(scratch, ".safetensors", content)
    raw = processor.size["shortest_edge"] ** 2 * 3
    head = f"{name}: {len(paths)} pictures of {raw} bytes each as pixels -> {output / stem}.png, {stem}.safetensors"
    return [head, *summary_lines(columns)]


def _show_pipeline(name: str, paths: list[Path], output: Path, seed: int) -> list[str]:
    """A sheet of generated pictures, and one of reconstructions where the pipeline can encode."""
    import hf_vistok

    from .generate import draw
    from .sheets import caption_sheet

    stem = name.split("/")[-1]
    pipe = hf_vistok.VisTokPipeline.from_pretrained(name)
    prompts, labels = conditions(pipe)
    pictures, captions = draw(pipe, prompts, labels, 1, seed, {})
    _save(output / f"{stem}_generated.png", caption_sheet(pictures, captions))
    lines = [f"{name}: {len(pictures)} pictures drawn -> {output / stem}_generated.png"]
    if hasattr(pipe, "stream") and prompts:
        _save(output / f"{stem}_coarse_to_fine.png", _coarse_to_fine(pipe, list(STREAMED), seed))
        lines.append(f"{name}: the same noise under 1, 2, 4, ... tokens -> {output / stem}_coarse_to_fine.png")
    if getattr(pipe, "image_tokenizer", None) is not None or getattr(pipe, "image_encoder", None) is not None:
        lines += _show_tokenizer(name, paths, output, seed)
    return lines


def _coarse_to_fine(pipe: Any, prompts: list[str], seed: int) -> Any:
    """A row for each prompt: what is drawn while the prior is still writing."""
    import torch

    from .sheets import Column, reconstruction_sheet

    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    columns = []
    for out in pipe.stream(prompts, generator=generators):
        count = out.prior_token_ids.shape[1]
        columns.append(Column([f"{count} token{'s' if count > 1 else ''}"], out.images))
    return reconstruction_sheet(columns)


def conditions(pipe: Any) -> tuple[list[str], list[int]]:
    """Texts or classes to draw, whichever the pipeline takes."""
    import inspect

    if "prompt" in inspect.signature(type(pipe).__call__).parameters:
        return list(PROMPTS), []
    classes = int(getattr(pipe.prior.config, "num_classes", 0))
    return [], list(range(min(8, classes)))


def _save(path: Path, sheet: Any) -> None:
    from .console import new_file

    with new_file(path, overwrite=True) as scratch:
        sheet.save(scratch, format="PNG")
