"""`hf-vistok tokenize`, `detokenize`, `reconstruct`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import batches, check_new, new_file, new_folder, note, track
from .loading import (
    BatchSize,
    ConfigFile,
    Device,
    Dtype,
    Filename,
    Overwrite,
    Preset,
    Revision,
    Seed,
    chosen,
    find_inputs,
    load_tokenizer,
)
from .token_files import TokenFile, check_suffix, read_tokens, write_tokens

Model = Annotated[
    str, typer.Argument(help="A checkpoint: Hub id, folder or file, of hf_vistok or the original authors.")
]
Pictures = Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")]
OptionalPictures = Annotated[list[Path] | None, typer.Argument(help="Pictures, or folders of pictures.")]
PICTURES_MARK = "tokens.json"


def tokenize(
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .safetensors or .jsonl; a folder with --dataset.")
    ],
    images: OptionalPictures = None,
    dataset: Annotated[
        str | None, typer.Option(help="Tokenise this data set for training: a folder, or an id on the Hub.")
    ] = None,
    kind: Annotated[str, typer.Option(help="Of the data set: folder, shards, hub or emoji.")] = "folder",
    split: Annotated[str, typer.Option(help="Of a Hub data set or the emoji set.")] = "train",
    image_column: Annotated[str, typer.Option(help="Of a Hub data set.")] = "image",
    caption_column: Annotated[str | None, typer.Option(help="Of a Hub data set, or of a folder's metadata.")] = None,
    require_captions: Annotated[bool, typer.Option(help="Leave out pictures without a caption.")] = False,
    shard_size: Annotated[int, typer.Option(help="Pictures of a shard of the set.")] = 4096,
    mirror: Annotated[bool, typer.Option(help="Tokenise the mirror images of a data set too.")] = False,
    store: Annotated[str, typer.Option(help="Type of a data set's latents on disk: float16 or float32.")] = "float16",
    num_tokens: Annotated[int | None, typer.Option(help="Keep the first so many tokens; all by default.")] = None,
    batch_size: BatchSize = 8,
    filename: Filename = None,
    preset: Preset = None,
    config: ConfigFile = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn pictures into tokens. With --dataset, the same command goes on after a stop and leaves what is complete."""
    options = chosen(filename, preset, config, revision)
    names = {name: str(value) for name, value in {"model": model, **options}.items()}
    if (dataset is None) == (not images):
        raise typer.BadParameter("give pictures, or --dataset.")
    if dataset is not None:
        from .token_sets import tokenize_dataset

        tokenizer, _ = load_tokenizer(model, device, dtype, options)
        columns = {
            "split": split if kind in ("hub", "emoji") else None,
            "image_column": image_column if kind == "hub" else None,
            "caption_column": caption_column,
            "require_captions": require_captions or None,
        }
        settings = {"shard_size": shard_size, "batch_size": batch_size, "num_tokens": num_tokens, "mirror": mirror}
        tokenize_dataset(tokenizer, output, dataset, names, kind=kind, columns=columns, store=store, **settings)
        return
    check_suffix(output)
    check_new(output, overwrite)
    paths = find_inputs(images)
    tokenizer, processor = load_tokenizer(model, device, dtype, options)
    encoded = [
        encode_paths(tokenizer, processor, part, num_tokens)
        for part in track(list(batches(paths, batch_size)), "tokenizing")
    ]
    content = join(encoded, [str(path) for path in paths], names)
    with new_file(output, overwrite) as scratch:
        write_tokens(scratch, output.suffix, content)
    shape = " x ".join(map(str, content.tokens.shape[1:]))
    note(
        f"wrote {output}: {len(paths)} picture(s), {shape} {'values' if content.tokens.is_floating_point() else 'ids'}"
    )


def detokenize(
    tokens: Annotated[Path, typer.Argument(help="A file that `tokenize` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of PNG files to make.")],
    model: Annotated[str | None, typer.Option(help="The tokenizer; the one named in the file by default.")] = None,
    num_tokens: Annotated[int | None, typer.Option(help="Draw from the first so many tokens.")] = None,
    batch_size: BatchSize = 8,
    filename: Filename = None,
    preset: Preset = None,
    config: ConfigFile = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Turn tokens back into pictures."""
    import torch

    check_new(output, overwrite)
    content = read_tokens(tokens)
    source, options = model or content.model.get("model"), chosen(filename, preset, config, revision)
    if source is None:
        raise ValueError(f"{tokens} does not say what it was made with; give --model.")
    if model is None:
        options = {**{key: value for key, value in content.model.items() if key != "model"}, **options}
    tokenizer, processor = load_tokenizer(source, device, dtype, options)
    torch.manual_seed(seed)
    with new_folder(output, overwrite, (PICTURES_MARK,)) as scratch:
        names = []
        for rows in track(list(batches(list(range(len(content.images))), batch_size)), "drawing"):
            sample = decode_rows(tokenizer, content, rows, num_tokens)
            for row, picture in zip(rows, processor.postprocess(sample), strict=True):
                names.append(f"{row:05d}_{Path(content.images[row]).stem}.png")
                picture.save(scratch / names[-1])
        write_index(scratch / PICTURES_MARK, {"tokens": str(tokens), "model": source, "pictures": names})
    note(f"wrote {output}: {len(content.images)} picture(s)")


def reconstruct(
    model: Model,
    images: Pictures,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")] = Path("reconstruction.png"),
    num_tokens: Annotated[
        list[int] | None, typer.Option(help="A length to show; repeat for more. 1, 2, 4, ... and all by default.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Show at most so many pictures.")] = 16,
    batch_size: BatchSize = 8,
    filename: Filename = None,
    preset: Preset = None,
    config: ConfigFile = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw a sheet of pictures beside their reconstructions from several numbers of tokens, with bytes per picture."""
    import torch

    from .sheets import reconstruction_columns, reconstruction_sheet, summary_lines

    check_new(output, overwrite)
    paths, options = find_inputs(images), chosen(filename, preset, config, revision)
    tokenizer, processor = load_tokenizer(model, device, dtype, options)
    torch.manual_seed(seed)
    columns = reconstruction_columns(
        tokenizer, processor, paths[:limit], num_tokens, batch_size, lambda items: track(items, "reconstructing")
    )
    with new_file(output, overwrite) as scratch:
        reconstruction_sheet(columns).save(scratch, format="PNG")
    for line in summary_lines(columns):
        typer.echo(line)
    note(f"wrote {output}")


# ---------------------------------------------------------------------- helpers


def encode_paths(tokenizer: Any, processor: Any, paths: list[Path], num_tokens: int | None) -> Any:
    """Encodes picture files; the output of `encode`."""
    import torch

    pixels = processor([str(path) for path in paths], return_tensors="pt").pixel_values
    with torch.no_grad():
        return tokenizer.encode(pixels.to(tokenizer.device), num_tokens)


def join(encoded: list[Any], images: list[str], model: dict[str, str]) -> TokenFile:
    """The outputs of several batches as one file's content."""
    import torch

    field = "latents" if encoded[0].token_ids is None else "token_ids"
    shapes = sorted({tuple(getattr(part, field).shape[1:]) for part in encoded})
    if len(shapes) > 1:
        raise ValueError(f"The pictures have tokens of different shapes, {shapes}: write one file for each size.")
    masks = [part.token_mask for part in encoded]
    extras = [part.decode_kwargs or {} for part in encoded]
    return TokenFile(
        torch.cat([getattr(part, field).cpu() for part in encoded]),
        images,
        model,
        None if masks[0] is None else torch.cat(masks).cpu(),
        {key: torch.cat([torch.as_tensor(part[key]).cpu() for part in extras]) for key in extras[0]},
    )


def decode_rows(tokenizer: Any, content: TokenFile, rows: list[int], num_tokens: int | None) -> Any:
    """The `sample` of some rows of a file of tokens, from the first `num_tokens` of them."""
    import torch

    if num_tokens is not None:
        tokenizer._check_num_tokens(num_tokens)
    tokens, mask = content.tokens[rows], content.token_mask
    mask = None if mask is None else mask[rows]
    if num_tokens is not None:
        tokens, mask = tokens[:, :num_tokens], None if mask is None else mask[:, :num_tokens]
    extras = {key: value[rows] for key, value in content.extras.items()}
    decode = tokenizer.decode if tokens.is_floating_point() else tokenizer.decode_tokens
    with torch.no_grad():
        mask = None if mask is None else mask.to(tokenizer.device)
        return decode(tokens.to(tokenizer.device), mask, **extras).sample


def write_index(path: Path, content: dict[str, Any]) -> None:
    """Writes a small JSON file."""
    import json

    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
