"""`hf-vistok export`: a checkpoint for people without this package, with its code or as ONNX graphs."""

from pathlib import Path
from typing import Annotated

import typer

from .console import check_new, new_folder, note, quiet_libraries
from .loading import ConfigFile, Filename, Overwrite, Preset, Revision, chosen

MARKS = ("config.json", "export.json")


def export(
    source: Annotated[str, typer.Argument(help="A checkpoint of hf_vistok or of the original authors.")],
    output: Annotated[Path, typer.Argument(help="Folder to make.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="ONNX graphs instead of code: encoder, decoder, prior.")] = False,
    filename: Filename = None,
    preset: Preset = None,
    config: ConfigFile = None,
    revision: Revision = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint that runs without hf_vistok: with its code (trust_remote_code), or with --onnx as graphs."""
    check_new(output, overwrite)
    quiet_libraries()
    options = chosen(filename, preset, config, revision)
    if onnx:
        from hf_vistok.export.onnx import export_onnx, require_onnx

        require_onnx()
        model = load_any(source, options)
        with new_folder(output, overwrite, MARKS) as scratch:
            written = export_onnx(model, scratch)
            processor = None if hasattr(model, "components") else load_processor(source, model, options)
            if processor is not None:
                processor.save_pretrained(scratch)
        note(f"wrote {output}: {', '.join(written)}")
        return
    from hf_vistok.export.code import export_code

    model = load_model(source, options)
    with new_folder(output, overwrite, MARKS) as scratch:
        export_code(model, scratch, load_processor(source, model, options))
    note(f"wrote {output}: {type(model).__name__} with its code; AutoModel loads it with trust_remote_code=True")


def load_model(source: str, options: dict):
    """
    A tokenizer or a prior, whichever the source holds.

    Raises:
        ValueError, OSError: what the Auto class says where it is neither.
    """
    from hf_vistok import AutoImagePrior, AutoImageTokenizer

    _, _, entry = AutoImageTokenizer._open(source, options)
    if entry is not None:
        return (AutoImagePrior if entry.kind == "prior" else AutoImageTokenizer).from_pretrained(source, **options)
    from hf_vistok.auto_classes import PRIOR_COMPONENTS
    from hf_vistok.conversion.loading import OriginalCheckpoint
    from hf_vistok.hub import fetch, resolve_source, split_hub_arguments

    resolved = resolve_source(source, options.get("revision"))
    bare = Path(resolved).is_file() or options.get("preset") or options.get("config")
    if bare or fetch(resolved, "model_index.json", **split_hub_arguments(options)[0]) is None:
        component = OriginalCheckpoint(source, **options).component
        return (AutoImagePrior if component in PRIOR_COMPONENTS else AutoImageTokenizer).from_pretrained(
            source, **options
        )
    return AutoImageTokenizer.from_pretrained(source, **options)


def load_any(source: str, options: dict):
    """A pipeline where the source holds one, otherwise a model."""
    from hf_vistok.hub import fetch, resolve_source, split_hub_arguments

    resolved = resolve_source(source, options.get("revision"))
    if not Path(resolved).is_file() and not options.get("preset") and not options.get("config"):
        hub, _ = split_hub_arguments(options)
        if fetch(resolved, "model_index.json", **hub) is not None:
            from hf_vistok import VisTokPipeline

            return VisTokPipeline.from_pretrained(source, **hub)
    return load_model(source, options)


def load_processor(source: str, model, options: dict):
    """The processor of a tokenizer, None for a prior."""
    from hf_vistok import AutoImageTokenizerProcessor, PreTrainedImageTokenizer

    is_tokenizer = isinstance(model, PreTrainedImageTokenizer)
    return AutoImageTokenizerProcessor.from_pretrained(source, **options) if is_tokenizer else None
