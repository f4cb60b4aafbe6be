"""`hf-vistok convert`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import check_new, new_folder, note, quiet_libraries
from .loading import ConfigFile, Dtype, Filename, Overwrite, Preset, Revision, chosen, package_folder, pick_dtype

MARKS = ("config.json", "model_index.json")


def convert(
    source: Annotated[str, typer.Argument(help="An original checkpoint: Hub id, folder or file.")],
    output: Annotated[Path, typer.Argument(help="Folder to make.")],
    filename: Filename = None,
    preset: Preset = None,
    config: ConfigFile = None,
    revision: Revision = None,
    dtype: Dtype = None,
    half: Annotated[
        bool, typer.Option("--half", help="Store float16 tensors that load as float32: half the size.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write an original checkpoint as a folder of hf_vistok, with its processor and generation settings."""
    check_new(output, overwrite)
    if half and dtype not in (None, "float32"):
        raise typer.BadParameter("--half stores a float32 model; leave --dtype out.")
    check_apart(source, output)
    from hf_vistok.conversion.loading import OriginalCheckpoint, load_original_parts
    from hf_vistok.provenance import conversion_provenance, write_provenance

    quiet_libraries()
    options = chosen(filename, preset, config, revision)
    refuse_ours(source, options)
    parts = own_parts(load_original_parts(source, **options, **pick_dtype(dtype)))
    checkpoint = OriginalCheckpoint(source, **options)
    processor, family = checkpoint.processor(), checkpoint.adapter.system
    with new_folder(output, overwrite, MARKS) as scratch:
        for index, (name, module) in enumerate(parts.items()):
            save_part(module, scratch if index == 0 else scratch / name, half)
        if processor is not None:
            processor.save_pretrained(scratch)
        write_card(scratch, family)
        write_provenance(scratch, conversion_provenance(source, options, family))
    classes = ", ".join(type(module).__name__ for module in parts.values())
    note(f"wrote {output}: {classes} of {family}{'' if processor is None else ', with its processor'}")
    warn_restricted(family)


def check_apart(source: str, output: Path) -> None:
    """Raises a ValueError where writing `output` would touch the folder that is read."""
    if Path(source).exists():
        read, written = Path(source).resolve(), output.resolve()
        if read == written or written in read.parents:
            raise ValueError(f"The output {output} holds the checkpoint that is read, {source}.")


def refuse_ours(source: str, options: dict[str, Any]) -> None:
    """Raises a ValueError for a checkpoint that needs no conversion."""
    from hf_vistok.auto_classes import AutoImageTokenizer

    _, _, entry = AutoImageTokenizer._open(source, options)
    if entry is not None:
        raise ValueError(f"{source} is a checkpoint of hf_vistok already ({entry.model}).")


def own_parts(parts: dict[str, Any]) -> dict[str, Any]:
    """The parts without those that are only views of the main one."""
    main, *_ = parts.values()
    inside = {id(module) for module in main.modules()}
    return {name: module for name, module in parts.items() if module is main or id(module) not in inside}


def save_part(module: Any, folder: Path, half: bool) -> None:
    """Saves one module, where wanted with float16 tensors that load as float32."""
    if not half:
        module.save_pretrained(folder)
        return
    from hf_vistok.training.export import save_half

    save_half(module, folder)


def write_card(folder: Path, family: str) -> None:
    """Puts the family's card beside the weights, as README.md."""
    text = card_text(family)
    if text is not None:
        (folder / "README.md").write_text(text, encoding="utf-8")


def card_text(family: str) -> str | None:
    """The whole card of a family, None where there is none."""
    path = package_folder("model_cards") / f"{family}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def warn_restricted(family: str) -> None:
    """A line about weights that may not be used freely."""
    from hf_vistok.registry import family_of

    found = family_of(family)
    if found.restricted:
        note(f"note: the weights of {found.title} are under: {found.weights_license}. Check before you share them.")
