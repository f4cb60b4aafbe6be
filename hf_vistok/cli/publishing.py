"""
What a checkpoint is pushed with: a card that says what it is, a sheet that it draws itself, figures, and provenance.

A folder that does not load is not pushed. What is in the folder already stays as it is; a README.md of the user's own
keeps its text and gets the metadata that it lacks.
"""

import json
import re
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

from hf_vistok.hub import read_json
from hf_vistok.provenance import HUB_ID, PROVENANCE, own_version
from hf_vistok.registry import FAMILIES, Family, find_model, find_model_type

from .loading import package_folder

EVALUATION, SHEET, CARD = "evaluation.json", "sheet.png", "README.md"
EVAL_RESULTS = ".eval_results"
TEMPLATE = Path(__file__).parents[1] / "templates" / "card.md"
HEAD = re.compile(r"---\n(.*?)\n---\n", re.S)
TASKS = {"tokenizer": "image-feature-extraction", "prior": "unconditional-image-generation"}
SNIPPETS = {
    "tokenizer": (
        "from hf_vistok import AutoImageTokenizer, AutoImageTokenizerProcessor\n\n"
        'processor = AutoImageTokenizerProcessor.from_pretrained("{repo}")\n'
        'model = AutoImageTokenizer.from_pretrained("{repo}")\n'
        'encoded = model.encode(**processor("picture.png", return_tensors="pt"))'
    ),
    "prior": (
        'from hf_vistok import AutoImagePrior\n\nprior = AutoImagePrior.from_pretrained("{repo}")\n'
        "tokens = prior.generate({condition}).token_ids"
    ),
    "pipeline": (
        'from hf_vistok import VisTokPipeline\n\npipe = VisTokPipeline.from_pretrained("{repo}")\n'
        "image = pipe({condition}).images[0]"
    ),
}


@dataclass
class Publication:
    """
    What the user says about a checkpoint that its files do not.

    Args:
        repo: where it goes.
        base_model: id of what it was made from.
        datasets: ids of what it was trained on.
        license: identifier of the Hub's list, or "other" with `license_name` and `license_link`.
        license_name, license_link: of "other".
        sheet: whether it draws a sheet of pictures.
    """

    repo: str
    base_model: str | None = None
    datasets: list[str] = field(default_factory=list)
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    sheet: bool = True


def complete(folder: Path, wanted: Publication, model: Any | None = None) -> dict[str, bytes]:
    """
    The files that a folder lacks.

    Args:
        folder: that `save_pretrained` or `hf-vistok convert` wrote.
        wanted: see [`Publication`].
        model: what the folder holds; loaded where None.

    Returns:
        name in the repository -> content. `README.md` is among them where it is new or its metadata changes.

    Raises:
        ValueError, OSError: where the folder does not load.
    """
    model = load(folder) if model is None else model
    kind, family = kind_of(model), family_of_folder(folder)
    told = read_json(folder / PROVENANCE) if (folder / PROVENANCE).is_file() else {}
    files: dict[str, bytes] = {}
    drawn = (folder / SHEET).is_file()
    described = "a sheet of pictures"
    if wanted.sheet and not drawn:
        sheet, described = draw_sheet(model, folder)
        if sheet is not None:
            files[SHEET], drawn = sheet, True
    figures = read_json(folder / EVALUATION) if (folder / EVALUATION).is_file() else {}
    files.update(eval_results(figures))
    if not told:
        told = {"written_by": f"hf_vistok {own_version()}"}
        files[PROVENANCE] = (json.dumps(told, indent=2) + "\n").encode()
    head = metadata(kind, family, told, wanted, model)
    old = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else None
    if old is not None and old != family_card(family):
        new = with_metadata(old, head)
        return files if new == old else {**files, CARD: new.encode()}
    text = render(folder, model, kind, family, head, told, figures, described if drawn else None, wanted)
    return {**files, CARD: text.encode()}


def load(folder: Path) -> Any:
    """What a folder holds: a pipeline, a tokenizer, or a prior."""
    import hf_vistok

    if (folder / "model_index.json").is_file():
        return hf_vistok.VisTokPipeline.from_pretrained(str(folder))
    entry = find_model_type(read_json(folder / "config.json").get("model_type"))
    if entry is None:
        raise ValueError(
            f"{folder} holds no model of hf_vistok; `hf-vistok convert` makes one of an original checkpoint."
        )
    if entry.kind == "prior":
        return hf_vistok.AutoImagePrior.from_pretrained(folder)
    return hf_vistok.AutoImageTokenizer.from_pretrained(folder)


def kind_of(model: Any) -> str:
    """ "pipeline", "prior" or "tokenizer"."""
    if hasattr(model, "components"):
        return "pipeline"
    return "prior" if hasattr(model, "generate") else "tokenizer"


def family_of_folder(folder: Path) -> Family | None:
    """The family of a saved model; of a pipeline, that of its prior or decoder."""
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json")
        names = [index[part][1] for part in ("transformer", "image_tokenizer", "prior") if _is_ours(index.get(part))]
        entry = next((found for found in map(find_model, names) if found is not None), None)
    else:
        entry = find_model_type(read_json(folder / "config.json").get("model_type"))
    return next((family for family in FAMILIES if entry in family.models), None)


def _is_ours(part: Any) -> bool:
    return isinstance(part, list) and len(part) == 2 and part[0] == "hf_vistok" and isinstance(part[1], str)


def family_card(family: Family | None) -> str | None:
    """The whole card of a family."""
    path = package_folder("model_cards") / f"{family.name}.md" if family else None
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else None


# ---------------------------------------------------------------------- metadata


def metadata(kind: str, family: Family | None, told: dict[str, Any], wanted: Publication, model: Any) -> dict[str, Any]:
    """
    The head of the card, under the Hub's field names.

    A licence is that of the family's weights where the checkpoint was converted from them; of weights of one's own
    nobody but their maker can say it.
    """
    found: dict[str, Any] = {"library_name": "hf_vistok", "pipeline_tag": task_of(kind, model)}
    converted = "source" in told
    given = HEAD.match(family_card(family) or "") if converted else None
    theirs = yaml.safe_load(given.group(1)) if given else {}
    if wanted.license:
        names = {"license": wanted.license, "license_name": wanted.license_name, "license_link": wanted.license_link}
    else:
        names = {name: theirs.get(name) for name in ("license", "license_name", "license_link")}
    found.update({name: value for name, value in names.items() if value})
    base = wanted.base_model or told.get("base_model")
    if base and HUB_ID.fullmatch(base):
        found["base_model"] = base
    datasets = wanted.datasets or [name for name in told.get("datasets", []) if HUB_ID.fullmatch(name)]
    if datasets:
        found["datasets"] = list(datasets)
    tags = ["image-tokenizer" if kind == "tokenizer" else "image-generation"]
    if family is not None:
        tags += [family.name.replace("_", "-"), *([f"arxiv:{family.paper}"] if family.paper else [])]
    return {**found, "tags": tags}


def task_of(kind: str, model: Any) -> str:
    """The `pipeline_tag`."""
    if kind == "pipeline" and type(model).__name__ == "ImageReconstructionPipeline":
        return "image-to-image"
    prior = getattr(model, "prior", None) if kind == "pipeline" else model
    text = getattr(prior, "is_text_conditional", False) or getattr(model, "tokenizer", None) is not None
    return "text-to-image" if kind != "tokenizer" and text else TASKS.get(kind, TASKS["prior"])


def with_metadata(text: str, head: dict[str, Any]) -> str:
    """A card with the fields that it lacks; what it says stays."""
    match = HEAD.match(text)
    old = (yaml.safe_load(match.group(1)) or {}) if match else {}
    missing = {name: value for name, value in head.items() if name not in old}
    if not missing:
        return text
    lines = yaml.safe_dump(missing, sort_keys=False, allow_unicode=True).rstrip("\n")
    if match is None:
        return f"---\n{lines}\n---\n\n{text}"
    return f"---\n{match.group(1)}\n{lines}\n---\n{text[match.end() :]}"


def eval_results(figures: dict[str, Any]) -> dict[str, bytes]:
    """
    `.eval_results/*.yaml` of what `hf-vistok evaluate --output` wrote, where the data set is one of the Hub.

    One file for each number of tokens; the one for all tokens has no notes.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    if not figures.get("dataset_id"):
        return {}
    rows = sorted(figures["scores"], key=lambda row: row["num_tokens"])
    files = {}
    for row in rows:
        whole = row is rows[-1]
        entry = EvalResultEntry(
            dataset_id=figures["dataset_id"],
            task_id=figures.get("task_id", "reconstruction_psnr"),
            value=round(row["psnr"], 3),
            date=figures.get("date"),
            notes=None if whole else f"first {row['num_tokens']} tokens",
        )
        name = "reconstruction" if whole else f"reconstruction_{row['num_tokens']}_tokens"
        content = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        files[f"{EVAL_RESULTS}/{name}.yaml"] = content.encode()
    return files


# ---------------------------------------------------------------------- the text


def render(
    folder: Path,
    model: Any,
    kind: str,
    family: Family | None,
    head: dict[str, Any],
    told: dict[str, Any],
    figures: dict[str, Any],
    sheet: str | None,
    wanted: Publication,
) -> str:
    """A card from the template."""
    from huggingface_hub import ModelCard, ModelCardData

    paper = f", [arXiv {family.paper}](https://arxiv.org/abs/{family.paper})" if family and family.paper else ""
    summary = f"A {type(model).__name__} of hf_vistok{f' ({family.title}{paper})' if family else ''}."
    texts = {"pipeline": '"a red apple"', "prior": "encoder_hidden_states=states"}
    condition = texts.get(kind, "") if head["pipeline_tag"] == "text-to-image" else "class_labels=[0]"
    card = ModelCard.from_template(
        ModelCardData(**head),
        template_path=str(TEMPLATE),
        title=wanted.repo.split("/")[-1],
        summary=summary,
        sheet=sheet,
        snippet=SNIPPETS[kind].format(repo=wanted.repo, condition=condition),
        facts=facts(folder, model, kind),
        table=figures_table(figures),
        evaluated=figures_text(figures),
        provenance=provenance_lines(told),
        licence=licence_text(family, told, head),
    )
    return str(card)


def facts(folder: Path, model: Any, kind: str) -> list[tuple[str, str]]:
    """Name and value of what a reader asks first."""
    from safetensors import safe_open

    count = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            count += sum(_size(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    found = [("class", f"`{type(model).__name__}`"), ("parameters", f"{count / 1e6:.2f} M")]
    if kind == "tokenizer":
        found.append(("pictures", f"{model.config.image_size} x {model.config.image_size} pixels"))
        tokens = f"{model.num_tokens}{', any prefix' if model.is_prefix_ordered else ''}"
        found.append(("tokens", tokens))
        bits = model.bits_per_image
        size = f"continuous, {model.latent_dim}-dimensional" if bits is None else f"{bits / 8:.0f} bytes a picture"
        found.append(("size of the tokens", size))
    if kind == "pipeline":
        parts = [f"{name}: `{type(part).__name__}`" for name, part in model.components.items() if part is not None]
        found.append(("components", ", ".join(parts)))
    return found


def _size(shape: list[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def figures_table(figures: dict[str, Any]) -> str:
    """The table of an `evaluation.json`, empty where there is none."""
    from hf_vistok.evaluation.reconstruction import ReconstructionScore, markdown_table

    rows = figures.get("scores") or []
    return markdown_table([ReconstructionScore(**row) for row in rows]) if rows else ""


def figures_text(figures: dict[str, Any]) -> str:
    """What the figures are of."""
    data = ", ".join(str(figures[name]) for name in ("data", "split") if figures.get(name))
    return f"Mean PSNR of {figures.get('pictures', '?')} pictures ({data or 'see evaluation.json'}), pixels in [0, 1]."


def provenance_lines(told: dict[str, Any]) -> list[str]:
    """`provenance.json` as lines."""
    names = {"source": "converted from", "recipe": "recipe", "step": "steps", "commit": "commit of the code"}
    lines = []
    for name, value in told.items():
        if isinstance(value, (str, int, float)) or (isinstance(value, list) and value):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{names.get(name, name.replace('_', ' '))}: {shown}")
    return [*lines, f"all of it: `{PROVENANCE}`"]


def licence_text(family: Family | None, told: dict[str, Any], head: dict[str, Any]) -> str:
    """Whose licence the weights are under."""
    if "source" in told and family is not None:
        limits = " **They are not free for every use.**" if family.restricted else ""
        return (
            f"The weights are those of {family.title}'s authors, under their terms: {family.weights_license}.{limits} "
            f"`hf-vistok info {family.name} --card` shows the family's card with limits and pitfalls."
        )
    licence = head.get("license_name") or head.get("license")
    return f"{f'Licence of the weights: {licence}.' if licence else 'No licence was stated.'} The code is Apache-2.0."


# ---------------------------------------------------------------------- the sheet


def draw_sheet(model: Any, folder: Path) -> tuple[bytes | None, str]:
    """A PNG that the checkpoint draws itself, and what it shows; None where it cannot draw alone."""
    from .sheets import caption_sheet, reconstruction_columns, reconstruction_sheet
    from .showcase import conditions, example_pictures

    kind = kind_of(model)
    if kind == "tokenizer" and model.decodes_to == "pixels" and not model.decode_conditioning:
        import hf_vistok

        processor = hf_vistok.AutoImageTokenizerProcessor.from_pretrained(folder)
        paths = sorted(example_pictures().glob("*.png"))[:4]
        lengths = _some_lengths(model)
        columns = reconstruction_columns(model, processor, paths, lengths)
        return _png(reconstruction_sheet(columns)), "pictures, and what it makes of their tokens"
    if kind == "pipeline" and hasattr(model, "prior"):
        from .generate import draw

        prompts, labels = conditions(model)
        pictures, captions = draw(model, prompts, labels, 1, 0, {})
        return _png(caption_sheet(pictures, captions)), "one picture each, seed 0, settings as published, none left out"
    return None, ""


def _some_lengths(model: Any) -> list[int]:
    from hf_vistok.evaluation.reconstruction import doubling_lengths

    lengths = doubling_lengths(model)
    return lengths[:: max(1, len(lengths) // 4)][:4] + [lengths[-1]] if len(lengths) > 5 else lengths


def _png(sheet: Any) -> bytes:
    buffer = BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
