"""The face of the package, and the rules that keep its rooms apart."""

import ast
import inspect
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import hf_vistok
from hf_vistok.registration import register_all
from hf_vistok.registry import BASE_NAMES, FAMILIES, family_of, find_model, find_model_type, model_entries, public_names

from . import folders

ROOT = Path(hf_vistok.__file__).parent.parent
ROOMS = ("hf_vistok", "modeling", "pipelines", "spaces", "tests", "benchmarks")
# Families that may import another one: the stated bases (a prior or a variant that subclasses or wraps it).
BASES = {
    "one_d_piece": {"titok"},
    "titok": {"maskgit_vqgan"},
    "retok": {"gigatok"},
    "gigatok": {"llamagen"},
    "detailflow": {"llamagen"},
    "restok": {"llamagen"},
    "fqgan": {"llamagen"},
    "unitok": {"llamagen"},
    "meditok": {"unitok"},
    "tokenflow": {"llamagen"},
    "ta_titok": {"titok"},
    "flowtok": {"ta_titok"},
    "comit": {"flextok"},
    "rpiae": {"rae"},
}
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py") if "__pycache__" not in path.parts)


@cache
def imports(path: Path) -> list[tuple[int, str]]:
    """(level, module) of each import in a file; level 0 is absolute. `from . import x` gives "x"."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, name) for name in names]
    return found


def full_names(path: Path) -> set[str]:
    """Absolute names of the modules that a file of the package imports."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = list(parts[:-1]) if parts[0] == "hf_vistok" else ["hf_vistok", *parts[:-1]]
    names = set()
    for level, module in imports(path):
        base = package[: len(package) - level + 1] if level else []
        names.add(".".join([*base, module]))
    return names


# ---------------------------------------------------------------------- lazy names


def test_import_is_light():
    """Best of three, since other processes may keep the machine busy."""
    times = []
    for _ in range(3):
        command = [sys.executable, "-X", "importtime", "-c", "import hf_vistok"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT).stderr
        for name in ("torch", "transformers", "diffusers", "numpy", "PIL", "huggingface_hub"):
            assert not re.search(rf"\| +{name}$", text, re.M), name
        line = next(line for line in text.splitlines() if line.rstrip().endswith("| hf_vistok"))
        times.append(int(line.split("|")[1]) / 1e6)
    assert min(times) < 0.3, times


def test_dir_lists_every_public_name():
    names = set(public_names())
    assert names <= set(dir(hf_vistok)) and names == set(hf_vistok.__all__)
    assert {"AutoImageTokenizer", "AutoImageTokenizerProcessor", "AutoImagePrior", "VisTokPipeline"} <= names


@pytest.mark.parametrize("name", sorted(public_names()))
def test_public_names_resolve_and_are_documented(name):
    value = getattr(hf_vistok, name)
    assert value.__name__ == name
    if not inspect.isclass(value):
        assert value.__doc__, f"{name} has no docstring"
        return
    assert value.__dict__.get("__doc__"), f"{name} has no docstring of its own"
    for attribute, member in vars(value).items():
        if attribute.startswith("_") or not inspect.isfunction(member):
            continue
        inherited = any(attribute in vars(base) for base in value.__mro__[1:])
        generated = member.__module__ != value.__module__
        assert member.__doc__ or inherited or generated, f"{name}.{attribute} has no docstring"


@pytest.mark.parametrize("name", sorted(BASE_NAMES))
def test_base_names_resolve(name):
    import importlib

    assert getattr(hf_vistok, name) is getattr(importlib.import_module(BASE_NAMES[name]), name)


def test_unknown_names():
    with pytest.raises(AttributeError, match="Nonsense"):
        hf_vistok.Nonsense  # noqa: B018
    assert find_model("Nonsense") is None and find_model_type(None) is None
    with pytest.raises(KeyError, match="titok"):
        family_of("nonsense")


def test_star_import_and_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", hf_vistok.__version__)
    assert f'version = "{hf_vistok.__version__}"' in (ROOT / "pyproject.toml").read_text()


# ---------------------------------------------------------------------- registry and registration


def test_names_of_the_registry_are_unique():
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))
    types = [entry.model_type for entry in model_entries() if entry.model_type]
    assert all(name.startswith("vistok_") for name in types), types
    models = [entry.model for entry in model_entries()]
    assert len(models) == len(set(models)) and len(types) == len(set(types))


def test_adapters_and_presets():
    from hf_vistok.conversion.adapter import all_adapters, find_preset

    counts: dict[str, int] = {}
    for adapter in all_adapters():
        assert adapter.system in {family.name for family in FAMILIES}
        for name in adapter.presets:
            counts[name] = counts.get(name, 0) + 1
            assert find_preset(f"{adapter.system}/{name}") == (adapter, adapter.presets[name])
    for name, count in counts.items():
        if count > 1:
            with pytest.raises(ValueError, match=f"{name}' is of {count} systems.*/{name}' or '"):
                find_preset(name)


@pytest.mark.parametrize("entry", [entry for entry in model_entries() if entry.model_type], ids=lambda e: e.model)
def test_registration_with_transformers(entry):
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    register_all()
    register_all()  # a second time does nothing
    config = CONFIG_MAPPING[entry.model_type]
    assert config.__name__ == entry.config and MODEL_MAPPING[config].__name__ == entry.model
    assert type(AutoConfig.for_model(entry.model_type)).__name__ == entry.config
    assert AutoModel is not None
    processor = entry.processor and getattr(hf_vistok, entry.processor.partition(":")[2])
    if processor and hasattr(processor, "preprocess"):
        found = IMAGE_PROCESSOR_MAPPING[config]
        assert processor in (found.values() if isinstance(found, dict) else found)


def test_transformers_auto_classes_load_our_folders(tmp_path):
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    register_all()
    folder = folders.save_tokenizer(tmp_path / "tokenizer")
    assert type(AutoConfig.from_pretrained(folder)).__name__ == "OneDPieceConfig"
    assert type(AutoModel.from_pretrained(folder)).__name__ == "OneDPieceModel"
    assert type(AutoImageProcessor.from_pretrained(folder)).__name__ == "ImageTokenizerProcessor"


def test_registration_with_diffusers():
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    from hf_vistok.registration import register_library

    register_library()
    assert "hf_vistok" in LOADABLE_CLASSES


def test_model_index_names_libraries_only(tmp_path):
    folder = folders.save_pipeline(tmp_path / "pipe")
    index = json.loads((folder / "model_index.json").read_text())
    parts = {name: value for name, value in index.items() if isinstance(value, list)}
    assert parts and {value[0] for value in parts.values()} <= {"hf_vistok", "diffusers", "transformers", None}
    assert parts["scheduler"] == ["hf_vistok", "MaskGitScheduler"]
    for embedded in (ROOT / "hf_vistok" / "checkpoints").glob("*/model_index.json"):
        libraries = {value[0] for value in json.loads(embedded.read_text()).values() if isinstance(value, list)}
        assert libraries <= {"hf_vistok", "diffusers", "transformers", None}, embedded


def test_no_folder_is_named_like_a_pipeline_of_diffusers():
    """diffusers would take its own module of that name for the library of our classes."""
    import diffusers

    names = {path.parent.name for path in SOURCES if path.relative_to(ROOT).parts[0] in ("modeling", "pipelines")}
    clashes = [name for name in names if hasattr(diffusers.pipelines, name)]
    assert not clashes, clashes


def test_importing_does_not_switch_code_export_on():
    register_all()
    for entry in model_entries():
        assert getattr(getattr(hf_vistok, entry.model), "_auto_class", None) is None, entry.model


# ---------------------------------------------------------------------- rooms


@pytest.mark.parametrize("room", ["modeling", "pipelines"])
def test_lower_rooms_do_not_know_upper_ones(room):
    allowed = {"modeling": ("hf_vistok.modeling",), "pipelines": ("hf_vistok.modeling", "hf_vistok.pipelines")}[room]
    for path in (ROOT / room).rglob("*.py"):
        ours = {name for name in full_names(path) if name.split(".")[0] in ("hf_vistok", "modeling", "pipelines")}
        wrong = [name for name in ours if not name.startswith(allowed)]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"
        absolute = [module for level, module in imports(path) if level == 0 and module.startswith("hf_vistok")]
        assert not absolute, f"{path.relative_to(ROOT)}: use relative imports instead of {absolute}"


def test_nothing_knows_the_command_line_or_a_space():
    for path in SOURCES:
        room, *rest = path.relative_to(ROOT).parts
        if room in ("tests", "benchmarks", "spaces") or rest[0] == "cli":
            continue
        names = full_names(path)
        assert not [name for name in names if name.startswith(("hf_vistok.cli", "hf_vistok.spaces"))], path


def test_families_import_no_other_family_but_stated_bases():
    modeling = ROOT / "modeling"
    names = {path.name for path in modeling.iterdir() if path.is_dir() and path.name not in ("layers", "__pycache__")}
    for family in sorted(names):
        for path in (modeling / family).rglob("*.py"):
            used = {name.split(".")[2] for name in full_names(path) if name.startswith("hf_vistok.modeling.")}
            wrong = (used & names) - {family} - BASES.get(family, set())
            assert not wrong, (
                f"{path.relative_to(ROOT)} imports {wrong}: move it to layers/, or state the base in BASES"
            )
    for path in (modeling / "layers").rglob("*.py"):
        used = {name.split(".")[2] for name in full_names(path) if name.startswith("hf_vistok.modeling.")}
        assert not used & names, f"{path.relative_to(ROOT)} imports from {used & names}"


def test_no_torchvision_no_timm_and_no_remote_code_switch():
    for path in SOURCES:
        names = {name.split(".")[0] for name in full_names(path)}
        assert not names & {"torchvision", "timm"}, path
        if path.name != "test_face.py":
            assert "register_for_auto_class" not in path.read_text(encoding="utf-8"), path


# ---------------------------------------------------------------------- size


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 600, f"{text.count(chr(10))} lines; the limit is 600"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            documented = ast.get_docstring(node) is not None
            lines = node.end_lineno - node.lineno + 1 - documented * (first.end_lineno - first.lineno + 1)
            assert lines <= 80, f"{node.name} has {lines} lines besides its docstring"


def test_comments_name_no_place_of_this_machine():
    for path in SOURCES:
        if path.name != "test_face.py":
            found = re.findall(r"(?<![\w.])/(?:work|tmp|root|home)/\w+", path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_types_are_shipped():
    for folder in ("hf_vistok", "modeling", "pipelines"):
        assert (ROOT / folder / "py.typed").is_file()
