"""Files of tokens: `.safetensors` (one tensor for all pictures) or `.jsonl` (one line a picture)."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUFFIXES = (".safetensors", ".jsonl")
FORMAT = "hf_vistok tokens 1"


@dataclass
class TokenFile:
    """
    The tokens of some pictures.

    Args:
        tokens: int64 ids `(B, N)` or `(B, N, C)`, or float latents of a continuous tokenizer.
        images: names of the pictures, in the same order.
        model: what they were made with: `model` (id or folder), and `filename, preset, revision` where given.
        token_mask: bool `(B, N)` where lengths differ.
        extras: further tensors that decoding needs, one row a picture.
    """

    tokens: Any
    images: list[str]
    model: dict[str, str] = field(default_factory=dict)
    token_mask: Any = None
    extras: dict[str, Any] = field(default_factory=dict)


def check_suffix(path: Path) -> None:
    """
    Whether the name says which format is meant.

    Raises:
        ValueError: where it does not.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: a file of tokens ends in {' or '.join(SUFFIXES)}.")


def write_tokens(path: Path, kind: str, content: TokenFile) -> None:
    """
    Writes a file of tokens.

    Args:
        path: where to write.
        kind: one of `SUFFIXES`.
        content: what to write; ids are stored in the smallest integer type that holds them.
    """
    (_write_safetensors if kind == ".safetensors" else _write_lines)(path, content)


def _write_safetensors(path: Path, content: TokenFile) -> None:
    from safetensors.torch import save

    name = "latents" if content.tokens.is_floating_point() else "token_ids"
    tensors = {name: _small(content.tokens), **{f"decode.{key}": value for key, value in content.extras.items()}}
    if content.token_mask is not None:
        tensors["token_mask"] = content.token_mask
    metadata = {"format": FORMAT, "images": json.dumps(content.images), "model": json.dumps(content.model)}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    path.write_bytes(save(tensors, metadata))


def _small(tokens: Any) -> Any:
    import torch

    if tokens.is_floating_point():
        return tokens
    high = int(tokens.max()) if tokens.numel() else 0
    return tokens.to(torch.uint8 if high < 2**8 else torch.uint16 if high < 2**16 else torch.int32)


def _write_lines(path: Path, content: TokenFile) -> None:
    if content.extras:
        raise ValueError(f"Decoding also needs {', '.join(content.extras)}: write a .safetensors file.")
    name = "latents" if content.tokens.is_floating_point() else "token_ids"
    with open(path, "w", encoding="utf-8") as file:
        for row, image in enumerate(content.images):
            line = {"image": image, **content.model, name: content.tokens[row].tolist()}
            if content.token_mask is not None:
                line["token_mask"] = content.token_mask[row].int().tolist()
            file.write(json.dumps(line) + "\n")


def read_tokens(path: Path) -> TokenFile:
    """
    Reads a file of tokens.

    Raises:
        ValueError: where it is none, naming what was expected.
    """
    check_suffix(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_lines(path)


def _read_safetensors(path: Path) -> TokenFile:
    from hf_vistok.conversion.loading import open_safetensors

    with open_safetensors(str(path)) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    name = next((name for name in ("token_ids", "latents") if name in tensors), None)
    if name is None:
        raise ValueError(f"{path} should hold `token_ids` or `latents`, it holds {', '.join(tensors) or 'nothing'}.")
    tokens = tensors.pop(name)
    mask = tensors.pop("token_mask", None)
    extras = {key.removeprefix("decode."): value for key, value in tensors.items() if key.startswith("decode.")}
    images = json.loads(metadata.get("images", "[]")) or [f"{row:05d}" for row in range(len(tokens))]
    tokens = tokens if tokens.is_floating_point() else tokens.long()
    return TokenFile(tokens, images, json.loads(metadata.get("model", "{}")), mask, extras)


def _read_lines(path: Path) -> TokenFile:
    import torch

    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if text.strip():
            lines.append(_parse_line(path, number, text))
    if not lines:
        raise ValueError(f"{path} is empty.")
    name = "latents" if "latents" in lines[0] else "token_ids"
    try:
        tokens = torch.tensor([line[name] for line in lines])
        masks = [line["token_mask"] for line in lines] if "token_mask" in lines[0] else None
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: the lines should hold `{name}` of one shape ({error}).") from error
    model = {key: lines[0][key] for key in ("model", "filename", "preset", "revision") if key in lines[0]}
    images = [str(line.get("image", f"{row:05d}")) for row, line in enumerate(lines)]
    return TokenFile(tokens, images, model, None if masks is None else torch.tensor(masks).bool())


def _parse_line(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error}).") from error
    if not isinstance(line, dict) or not ({"token_ids", "latents"} & set(line)):
        raise ValueError(f"{path}, line {number}: expected an object with `token_ids` or `latents`.")
    return line
