"""`hf-vistok generate`."""

import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import check_new, new_file, new_folder, note, quiet_libraries
from .loading import Device, Dtype, Filename, Overwrite, Preset, Revision, Seed, chosen, pick_device, pick_dtype

PICTURES_MARK = "pictures.json"


def generate(
    model: Annotated[str, typer.Argument(help="A pipeline or a generator: Hub id, embedded id or folder.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="Texts, for generators that take text.")] = None,
    class_label: Annotated[list[int] | None, typer.Option(help="A class; repeat for more.")] = None,
    image_tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer of a generator that comes without one: Hub id or folder.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .png file for one sheet, or a folder of pictures.")
    ] = Path("generated.png"),
    count: Annotated[int, typer.Option(help="Pictures for each prompt or class.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; as published by default.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Guidance; as published by default.")] = None,
    num_tokens: Annotated[int | None, typer.Option(help="Draw from the first so many tokens.")] = None,
    seed: Seed = 0,
    filename: Filename = None,
    preset: Preset = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw pictures of classes or texts."""
    check_new(output, overwrite)
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}.")
    if not prompt and not class_label:
        raise typer.BadParameter("give a prompt or --class-label")
    quiet_libraries()
    options = {**chosen(filename, preset, None, revision), **pick_dtype(dtype)}
    pipe = load_pipeline(model, image_tokenizer, options).to(pick_device(device))
    wanted = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "num_tokens": num_tokens}
    pictures, captions = draw(pipe, list(prompt or []), list(class_label or []), count, seed, wanted)
    save_pictures(output, overwrite, pictures, captions, count)
    note(f"wrote {output}: {len(pictures)} picture(s)")


def load_pipeline(source: str, image_tokenizer: str | None, options: dict[str, Any]) -> Any:
    """
    The pipeline of a folder or repository; of a generator alone, the pipeline of its kind with the tokenizer named.

    Raises:
        ValueError: where a generator comes without `image_tokenizer`, or is of no known kind.
    """
    import hf_vistok
    from hf_vistok.hub import fetch, resolve_source
    from hf_vistok.registration import is_flow

    hub = {"revision": options["revision"]} if "revision" in options else {}
    resolved = resolve_source(source, options.get("revision"))
    if not Path(resolved).is_file() and fetch(resolved, "model_index.json", **hub) is not None:
        parts = {} if image_tokenizer is None else {"image_tokenizer": image_tokenizer}
        return hf_vistok.VisTokPipeline.from_pretrained(source, **parts, **options)
    if image_tokenizer is None:
        raise ValueError(f"{source} is no pipeline; name the tokenizer of this generator with --image-tokenizer.")
    if is_flow(source, options.get("preset"), options.get("revision")):
        return hf_vistok.LatentFlowPipeline.from_pretrained(source, image_tokenizer=image_tokenizer, **options)
    prior = hf_vistok.AutoImagePrior.from_pretrained(source, **options)
    return pipeline_of(prior)(hf_vistok.AutoImageTokenizer.from_pretrained(image_tokenizer), prior)


def pipeline_of(prior: Any) -> type:
    """The pipeline class of a prior."""
    import hf_vistok

    if isinstance(prior, hf_vistok.MaskGitPrior):
        return hf_vistok.MaskGitPipeline
    if isinstance(prior, hf_vistok.PreTrainedARPrior):
        return hf_vistok.AutoregressivePipeline
    raise ValueError(f"There is no pipeline for a {type(prior).__name__} alone.")


def draw(
    pipe: Any, prompts: list[str], labels: list[int], count: int, seed: int, options: dict[str, Any]
) -> tuple[list[Any], list[str]]:
    """
    Calls a pipeline.

    Raises:
        ValueError: where it takes no texts, no classes, or none of an option that is given.
    """
    import torch

    takes = inspect.signature(type(pipe).__call__).parameters
    given = {name: value for name, value in options.items() if value is not None}
    given |= {name: value for name, value in (("prompt", prompts), ("class_labels", labels)) if value}
    unknown = [name for name in given if name not in takes]
    if unknown:
        raise ValueError(
            f"{type(pipe).__name__} does not take {', '.join(unknown)}; it takes {', '.join(list(takes)[1:])}."
        )
    if count > 1 or "num_images_per_prompt" in takes:
        given["num_images_per_prompt"] = count
    generator = torch.Generator().manual_seed(seed)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    pictures = pipe(**given, generator=generator).images
    captions = [text for text in (prompts or [f"class {label}" for label in labels]) for _ in range(count)]
    return list(pictures), captions


def save_pictures(output: Path, overwrite: bool, pictures: list[Any], captions: list[str], columns: int) -> None:
    """One sheet for a `.png` name, a folder of PNG files for any other."""
    from .sheets import caption_sheet
    from .tokens import write_index

    if output.suffix.lower() == ".png":
        with new_file(output, overwrite) as scratch:
            caption_sheet(pictures, captions, columns if columns > 1 else 4).save(scratch, format="PNG")
        return
    with new_folder(output, overwrite, (PICTURES_MARK,)) as scratch:
        names = [f"{index:05d}.png" for index in range(len(pictures))]
        for name, picture in zip(names, pictures, strict=True):
            picture.save(scratch / name)
        write_index(scratch / PICTURES_MARK, dict(zip(names, captions, strict=True)))
