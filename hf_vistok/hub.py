"""Where a checkpoint comes from: the package, a folder, a file, or the Hub; and only the files that are needed."""

import json
import os
from pathlib import Path
from typing import Any

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
EMBEDDED_PREFIX = "hf-vistok/"
EMBEDDED_FOLDER = Path(__file__).parent / "checkpoints"


def embedded_checkpoints() -> list[str]:
    """Ids of the checkpoints that ship inside the package."""
    if not EMBEDDED_FOLDER.is_dir():
        return []
    found = (
        path.parent.name for name in ("config.json", "model_index.json") for path in EMBEDDED_FOLDER.glob(f"*/{name}")
    )
    return sorted(EMBEDDED_PREFIX + name for name in set(found))


def resolve_source(source: str | os.PathLike, revision: str | None = None) -> str:
    """
    The folder of an embedded checkpoint for its id; any other source as it is.

    A local folder of that name, or an explicit `revision`, wins over the package.
    """
    source = os.fspath(source)
    if not source.startswith(EMBEDDED_PREFIX) or os.path.exists(source) or revision is not None:
        return source
    folder = EMBEDDED_FOLDER / source.removeprefix(EMBEDDED_PREFIX)
    return str(folder) if folder.is_dir() else source


def split_hub_arguments(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits keyword arguments into those of a download and the others."""
    hub = {name: value for name, value in kwargs.items() if name in HUB_ARGUMENTS}
    return hub, {name: value for name, value in kwargs.items() if name not in HUB_ARGUMENTS}


def fetch(source: str, name: str, **hub: Any) -> str | None:
    """
    Path of one file of a folder or Hub repository, downloaded where needed; None where there is no such file.

    Raises:
        OSError: where the repository, the revision or the network is missing, with transformers' message.
    """
    from transformers.utils import cached_file

    if os.path.isdir(source):
        path = Path(source, hub.get("subfolder") or "", name)
        return str(path) if path.is_file() else None
    try:
        return cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "requests"):
            raise
        # transformers words most failures of the network, but not a server that hangs
        raise OSError(f"{source}: {name} could not be read from the Hub: {type(error).__name__}: {error}") from error


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """
    A JSON object from a file.

    Raises:
        ValueError: where it is none.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, it holds a {type(content).__name__}.")
    return content
