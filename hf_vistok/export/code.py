"""
Code export: a checkpoint whose folder holds the code that runs it.

transformers loads such a folder with `trust_remote_code=True` where hf_vistok is not installed. It copies only what a
file imports by `from .name import ...`, from one flat folder. So the files of the family, and what they use of the
layers and base classes, are written flat, with their relative imports rewritten.
"""

import ast
import importlib.util
import json
import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE = "hf_vistok.modeling"
REMOTE_IMPORT = re.compile(r"^\s*(?:from\s+\.(\S+)\s+import|import\s+\.(\S+)\s*$)", re.M)  # as transformers reads it
HEADER = """# Exported from hf_vistok {version} (Apache-2.0): {origin}. Written by `export_code`; changes belong there.
"""
USAGE = """
## Without hf_vistok

The folder holds its own code, so these lines need transformers, diffusers and accelerate only. Look at the code before
you trust it.

```python
{lines}
```
"""


def export_code(model: Any, folder: str | os.PathLike, processor: Any = None) -> Path:
    """
    Saves a model with the code that runs it, for an environment without hf_vistok.

    A tokenizer or prior is then loaded by `transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)`, its
    processor by `AutoImageProcessor` in the same way; a flow or diffusion transformer by `diffusers.AutoModel`.

    Args:
        model: a model of hf_vistok, or a subclass of yours that lives in an importable module of the package.
        folder: to write into; made where it is not there. Other files in it stay.
        processor: of a tokenizer; made from the model's configuration by default.

    Returns:
        the folder.

    Raises:
        ValueError: for an object that is no model of hf_vistok.
    """
    entry = _entry_of(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor = processor or _processor_of(model, entry)
    if processor is not None:
        processor.save_pretrained(folder)
    write_code(model, folder, processor)
    return folder


def write_code(model: Any, folder: Path, processor: Any = None) -> list[str]:
    """
    Writes the code of a model beside its files and names it in their `auto_map`.

    Args:
        model: a model of hf_vistok that `folder` holds.
        folder: with `config.json`, and `preprocessor_config.json` where there is a processor.
        processor: whose code is wanted as well.

    Returns:
        names of the files written.
    """
    _entry_of(model)
    classes = {"AutoModel": type(model)}
    if hasattr(type(model), "config_class"):
        classes["AutoConfig"] = type(model.config)
    starts = [cls.__module__ for cls in classes.values()]
    if processor is not None:
        starts.append(type(processor).__module__)
    sources = flatten(starts)
    if "AutoConfig" not in classes:
        _name_all_files(sources, f"{flat_name(type(model).__module__)}.py")
    for name, text in sources.items():
        (folder / name).write_text(text, encoding="utf-8")
    _set_auto_map(folder / "config.json", classes)
    if processor is not None:
        _set_auto_map(folder / "preprocessor_config.json", {"AutoImageProcessor": type(processor)})
    _explain(folder, classes, processor)
    return sorted(sources)


def flatten(modules: list[str]) -> dict[str, str]:
    """
    Source files for a flat folder: those of some modules, and all that they import relatively.

    Args:
        modules: dotted names under `hf_vistok.modeling`.

    Returns:
        file name -> text.

    Raises:
        ValueError: for a module outside the package, or an import that cannot be written flat.
    """
    found: dict[str, str] = {}
    todo = list(modules)
    while todo:
        module = todo.pop()
        name = f"{flat_name(module)}.py"
        if name not in found:
            found[name], needed = _flat_source(module)
            todo.extend(needed)
    return found


def flat_name(module: str) -> str:
    """Name of a module in the flat folder: its last part; what lives in `layers/` says so."""
    if not module.startswith(f"{PACKAGE}."):
        raise ValueError(f"{module} is not part of {PACKAGE}: its code cannot be exported.")
    *folders, stem = module.removeprefix(f"{PACKAGE}.").split(".")
    return f"layers_{stem}" if folders == ["layers"] else stem


def _flat_source(module: str) -> tuple[str, list[str]]:
    """The rewritten text of a module, and the modules that it imports."""
    path = Path(importlib.util.find_spec(module).origin)
    text = path.read_text(encoding="utf-8")
    lines, needed = text.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        absolute = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else names
        if names and any(name.split(".")[0] == "hf_vistok" for name in absolute):
            raise ValueError(f"{module} imports {absolute} absolutely: its code cannot be exported.")
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        target = importlib.util.resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
        if importlib.util.find_spec(target).submodule_search_locations is not None:
            raise ValueError(f"{module} imports the package {target}; name the module in it.")
        needed.append(target)
        row = node.lineno - 1
        lines[row] = re.sub(r"from\s+\.\S*", f"from .{flat_name(target)}", lines[row], count=1)
    origin = module.removeprefix("hf_vistok.").replace(".", "/") + ".py"
    text = HEADER.format(version=_version(), origin=origin) + "".join(lines)
    seen = {a or b for a, b in REMOTE_IMPORT.findall(text)}
    if seen != {flat_name(target) for target in needed}:
        raise ValueError(f"{module}: transformers would read the imports {sorted(seen)}, which differ from the code's.")
    return text, needed


def _name_all_files(sources: dict[str, str], top: str) -> None:
    """Names all files in the first one: diffusers copies what that file seems to import, and looks no further."""
    others = "".join(f"from .{name.removesuffix('.py')} import ...\n" for name in sorted(sources) if name != top)
    sources[top] += f'''\n"""\nThe files that diffusers has to copy with this one:\n\n{others}"""\n'''


def _version() -> str:
    try:
        return version("hf_vistok")
    except PackageNotFoundError:
        return "(not installed)"


def _entry_of(model: Any) -> Any:
    """The registry's entry of a model's class or of the nearest class that it derives from."""
    from hf_vistok.registry import find_model

    for cls in type(model).__mro__:
        entry = find_model(cls.__name__)
        if entry is not None and entry.model_module == cls.__module__:
            return entry
    raise ValueError(f"{type(model).__name__} is no model of hf_vistok; a pipeline's models are exported one by one.")


def _processor_of(model: Any, entry: Any) -> Any:
    from hf_vistok.registration import load_processor_class

    cls = load_processor_class(entry)
    return cls.for_config(model.config) if entry.kind == "tokenizer" and hasattr(cls, "for_config") else None


def _set_auto_map(path: Path, classes: dict[str, type]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["auto_map"] = {auto: f"{flat_name(cls.__module__)}.{cls.__name__}" for auto, cls in classes.items()}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _explain(folder: Path, classes: dict[str, type], processor: Any) -> None:
    """Adds the lines that load the folder to its README.md, once."""
    library = "transformers" if "AutoConfig" in classes else "diffusers"
    autos = "AutoImageProcessor, AutoModel" if processor is not None else "AutoModel"
    lines = [f"from {library} import {autos}", ""]
    if processor is not None:
        lines.append('processor = AutoImageProcessor.from_pretrained("this/repository", trust_remote_code=True)')
    lines.append('model = AutoModel.from_pretrained("this/repository", trust_remote_code=True)')
    usage = USAGE.format(lines="\n".join(lines))
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {type_name(classes)}\n"
    if usage not in text:
        card.write_text(text.rstrip("\n") + "\n" + usage, encoding="utf-8")


def type_name(classes: dict[str, type]) -> str:
    """Name of the exported model's class."""
    return classes["AutoModel"].__name__
