"""Loading tokenizers and pictures for the commands."""

from pathlib import Path
from typing import Annotated, Any

import typer

Filename = Annotated[str | None, typer.Option(help="Which weight file of an original repository.")]
Preset = Annotated[str | None, typer.Option(help="Configuration of a published checkpoint, for bare weight files.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="The authors' configuration, JSON or YAML.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps, ...; the best there is by default.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; as the checkpoint says by default.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
BatchSize = Annotated[int, typer.Option(help="Pictures at once.")]
Seed = Annotated[int, typer.Option(help="Seed of random draws.")]


def chosen(filename: str | None, preset: str | None, config: Path | None, revision: str | None) -> dict[str, Any]:
    """The options that name a checkpoint, without those that are not given."""
    options = {"filename": filename, "preset": preset, "config": config, "revision": revision}
    return {name: value for name, value in options.items() if value is not None}


def pick_device(name: str | None) -> str:
    """
    The device to run on.

    Raises:
        ValueError: for a name that torch does not know or that this machine lacks.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return str(torch.empty(0, device=name).device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def pick_dtype(name: str | None) -> dict[str, Any]:
    """`{"dtype": ...}` for a type's name, empty for None."""
    import torch

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is not None and name not in types:
        raise ValueError(f"--dtype must be one of {', '.join(types)}, got {name!r}.")
    return {} if name is None else {"dtype": types[name]}


def load_tokenizer(source: str, device: str | None, dtype: str | None, options: dict[str, Any]) -> tuple[Any, Any]:
    """A tokenizer on its device, and its processor."""
    from hf_vistok import AutoImageTokenizer, AutoImageTokenizerProcessor

    from .console import quiet_libraries

    quiet_libraries()
    device, types = pick_device(device), pick_dtype(dtype)
    model = AutoImageTokenizer.from_pretrained(source, **types, **options)
    processor = AutoImageTokenizerProcessor.from_pretrained(source, **options)
    return model.to(device).eval(), processor


def package_folder(name: str) -> Path:
    """A folder of data that ships with the package: inside it once installed, beside it in a working copy."""
    package = Path(__file__).parents[1]
    return package / name if (package / name).is_dir() else package.parent / name


def find_inputs(paths: list[Path]) -> list[Path]:
    """
    Picture files: those named, and those below the folders named, in order.

    Raises:
        ValueError: where a path does not exist, or a folder holds no pictures.
    """
    from hf_vistok.data.pictures import EXTENSIONS, find_pictures

    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = find_pictures(path)
            if not inside:
                raise ValueError(f"{path} holds no pictures ({', '.join(EXTENSIONS)}).")
            found.extend(inside)
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"No such picture: {path}")
    return found
