"""`hf-vistok list` and `hf-vistok info`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import table
from .loading import ConfigFile, Filename, Preset, Revision, chosen, package_folder

START, END = "<!-- families: hf-vistok list --update README.md -->", "<!-- end of families -->"


def list_families(
    presets: Annotated[
        bool, typer.Option("--presets", help="Published checkpoints whose names `preset=` takes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of a table.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The README's table.")] = False,
    update: Annotated[Path | None, typer.Option(help="Renew the table of families in this Markdown file.")] = None,
) -> None:
    """List the families with their status, and the embedded checkpoints."""
    if update is not None:
        update_table(update)
    elif markdown:
        typer.echo(markdown_table())
    elif presets:
        _print_presets(as_json)
    else:
        _print_families(as_json)


def _print_families(as_json: bool) -> None:
    from hf_vistok.hub import embedded_checkpoints
    from hf_vistok.registry import FAMILIES

    if as_json:
        rows = [_family_dict(family) for family in FAMILIES]
        typer.echo(json.dumps({"families": rows, "embedded": embedded_checkpoints()}, indent=1))
        return
    header = ["family", "tokens", "classes", "parity", "checkpoints", "weights", "missing"]
    table([_family_row(family) for family in FAMILIES], header, f"{len(FAMILIES)} families")
    for name in embedded_checkpoints():
        typer.echo(f"in the package: {name}")


def _family_row(family: Any) -> list[str]:
    classes = " ".join(entry.model for entry in family.models)
    weights = family.weights_license + (" (restricted)" if family.restricted else "")
    return [family.name, family.tokens, classes, family.parity or "-", family.published or "-", weights, family.missing]


def _family_dict(family: Any) -> dict[str, Any]:
    from dataclasses import asdict

    content = asdict(family)
    content["models"] = [{"class": entry.model, "kind": entry.kind} for entry in family.models]
    content.pop("extra_names", None)
    return content


def _print_presets(as_json: bool) -> None:
    from hf_vistok.conversion.adapter import all_adapters

    rows = [
        [name, adapter.system, preset.component, preset.repo or "", preset.filename, "unverified" * preset.unverified]
        for adapter in all_adapters()
        for name, preset in adapter.presets.items()
    ]
    header = ["preset", "family", "component", "repository", "file", "status"]
    if as_json:
        typer.echo(json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1))
    else:
        table(rows, header, f"{len(rows)} published checkpoints")


def markdown_table() -> str:
    """The families as a Markdown table, from the registry."""
    from hf_vistok.registry import FAMILIES

    lines = [
        "| family | paper | tokens | classes | parity variants | published checkpoints | licence of the weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        paper = f"[{family.paper}](https://arxiv.org/abs/{family.paper})" if family.paper else "-"
        classes = ", ".join(f"`{entry.model}`" for entry in family.models)
        weights = f"{family.weights_license}{' (**restricted**)' if family.restricted else ''}"
        missing = f"; missing: {family.missing}" if family.missing else ""
        title = f"[{family.title}](model_cards/{family.name}.md)"
        counts = f"{family.parity or '-'} | {family.published or '-'}"
        lines.append(f"| {title} | {paper} | {family.tokens}{missing} | {classes} | {counts} | {weights} |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """
    A Markdown text with a fresh table between its two marks.

    Raises:
        ValueError: where the marks are not there.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"The text needs the lines {START!r} and {END!r}.")
    return f"{before}{START}\n{markdown_table()}\n{END}{after}"


def update_table(path: Path) -> None:
    """Renews the table of families in a Markdown file."""
    text = path.read_text(encoding="utf-8")
    fresh = with_table(text)
    if fresh == text:
        typer.echo(f"{path} is current")
        return
    path.write_text(fresh, encoding="utf-8")
    typer.echo(f"updated {path}")


# ---------------------------------------------------------------------- info


def info(
    name: Annotated[str, typer.Argument(help="A family, or a checkpoint: Hub id, folder or file.")],
    card: Annotated[bool, typer.Option("--card", help="Print the model card of the family.")] = False,
    filename: Filename = None,
    preset: Preset = None,
    config: ConfigFile = None,
    revision: Revision = None,
) -> None:
    """Say what a family or a checkpoint is. Of a checkpoint only the configuration is read, not the weights."""
    from hf_vistok.registry import FAMILIES

    family = next((family for family in FAMILIES if name in (family.name, family.title)), None)
    if family is not None:
        typer.echo(read_card(family.name) if card else "\n".join(family_lines(family)))
        return
    facts = checkpoint_facts(name, chosen(filename, preset, config, revision))
    if card:
        typer.echo(read_card(facts["family"]))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        typer.echo(f"{key:<{width}}  {value}")


def family_lines(family: Any) -> list[str]:
    """What the registry knows about a family, as lines."""
    lines = [f"{family.title}: {family.tokens}"]
    if family.restricted:
        lines.append(f"RESTRICTED: the authors' weights are under: {family.weights_license}")
    lines += [
        f"paper:    {'https://arxiv.org/abs/' + family.paper if family.paper else 'none'}",
        f"licences: code {family.code_license}; weights {family.weights_license} (the originals; ours: Apache-2.0)",
        f"parity:   {family.parity} reference variant(s); published checkpoints that load: {family.published}",
    ]
    lines += [f"{entry.kind + ':':<11}{entry.model}" for entry in family.models]
    if family.missing:
        lines.append(f"missing:  {family.missing}")
    for preset, content in _presets(family).items():
        lines.append(
            f"preset:   {preset}  {content.repo or ''}{' (unverified)' if content.unverified else ''}".rstrip()
        )
    return [*lines, f"card:     hf-vistok info {family.name} --card"]


def _presets(family: Any) -> dict[str, Any]:
    if not family.adapter:
        return {}
    from hf_vistok.conversion.adapter import get_adapter

    return dict(get_adapter(family.name).presets)


def read_card(family: str) -> str:
    """
    The card of a family, without its YAML head.

    Raises:
        ValueError: where there is none.
    """
    path = package_folder("model_cards") / f"{family}.md"
    if not path.is_file():
        raise ValueError(f"There is no model card {family}.md in the package.")
    text = path.read_text(encoding="utf-8")
    return text.split("---\n", 2)[2].lstrip() if text.startswith("---\n") else text


def checkpoint_facts(source: str, options: dict[str, Any]) -> dict[str, Any]:
    """What the configuration of a checkpoint says; the model is built without memory for its weights."""
    from hf_vistok.hub import fetch, read_json, resolve_source, split_hub_arguments

    hub, rest = split_hub_arguments(options)
    resolved = resolve_source(source, options.get("revision"))
    index = None if Path(resolved).is_file() or rest else fetch(resolved, "model_index.json", **hub)
    if index is not None:
        return _pipeline_facts(source, read_json(index))
    model, system, layout = skeleton(source, options)
    facts = {"checkpoint": source, "layout": layout, "family": system, "class": type(model).__name__}
    facts["parameters"] = f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    return {**facts, **_model_facts(model)}


def _pipeline_facts(source: str, index: dict[str, Any]) -> dict[str, Any]:
    parts = {name: value[1] for name, value in index.items() if isinstance(value, list) and value[1]}
    return {"checkpoint": source, "layout": "pipeline", "class": index.get("_class_name"), **parts}


def skeleton(source: str, options: dict[str, Any]) -> tuple[Any, str, str]:
    """A checkpoint's model on the meta device, its family, and "hf_vistok" or "original"."""
    import torch

    from hf_vistok.auto_classes import AutoImageTokenizer
    from hf_vistok.conversion.build import plan_of
    from hf_vistok.conversion.loading import OriginalCheckpoint
    from hf_vistok.hub import split_hub_arguments
    from hf_vistok.registration import load_config_class, load_model_class
    from hf_vistok.registry import FAMILIES

    resolved, _, entry = AutoImageTokenizer._open(source, options)
    if entry is not None and entry.config is not None:
        config = load_config_class(entry).from_pretrained(resolved, **split_hub_arguments(options)[0])
        family = next(family.name for family in FAMILIES if entry in family.models)
        with torch.device("meta"):
            return load_model_class(entry)(config), family, "hf_vistok"
    checkpoint = OriginalCheckpoint(resolved, **options)
    part = next(iter(plan_of(checkpoint.adapter, checkpoint.component, checkpoint.config).parts.values()))
    with torch.device("meta"):
        model = part.model(**part.config) if isinstance(part.config, dict) else part.model(part.config)
    return model, checkpoint.adapter.system, f"original ({checkpoint.component})"


def _model_facts(model: Any) -> dict[str, Any]:
    names = ("codebook_size", "num_codebooks", "num_tokens", "latent_dim", "latent_layout", "is_prefix_ordered")
    facts = {name: getattr(model, name) for name in (*names, "mask_mode", "decodes_to") if hasattr(model, name)}
    bits = getattr(model, "bits_per_image", None)
    if bits is not None:
        facts["bytes_per_image"] = f"{bits / 8:.1f}"
    for name in ("image_size", "pixel_range", "num_classes"):
        if getattr(model.config, name, None) is not None:
            facts[name] = getattr(model.config, name)
    return facts
