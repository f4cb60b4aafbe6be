"""What the Hub's validator says of a model card's metadata, as rules that need no network."""

import re
from typing import Any


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


LICENSES = words(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0
    cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
    mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma
    unknown other
    """
)
TASKS = words(
    """
    text-classification token-classification table-question-answering question-answering zero-shot-classification
    translation summarization feature-extraction text-generation fill-mask sentence-similarity text-to-speech
    text-to-audio automatic-speech-recognition audio-to-audio audio-classification audio-text-to-text
    voice-activity-detection depth-estimation image-classification object-detection image-segmentation text-to-image
    image-to-text image-to-image image-to-video unconditional-image-generation video-classification
    reinforcement-learning robotics tabular-classification tabular-regression text-to-video image-text-to-text
    image-text-to-image image-text-to-video visual-question-answering document-question-answering
    zero-shot-image-classification graph-ml mask-generation zero-shot-object-detection text-to-3d image-to-3d
    image-feature-extraction video-text-to-text video-to-video keypoint-detection visual-document-retrieval
    any-to-any text-ranking time-series-forecasting tabular-to-text other
    """
)
FIELDS = words(
    """
    language license license_name license_link library_name pipeline_tag tags datasets metrics base_model
    base_model_relation new_version model_name model-index thumbnail widget inference co2_eq_emissions
    extra_gated_prompt extra_gated_heading extra_gated_description extra_gated_fields extra_gated_button_content
    """
)
RELATIONS = {"finetune", "adapter", "merge", "quantized"}
HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
NAME = re.compile(r"[a-z0-9-_.]+")


def problems(head: dict[str, Any]) -> list[str]:
    """What is wrong with the metadata of a card; nothing where the list is empty."""
    found = [f"unknown field {name!r}" for name in head if name not in FIELDS]
    found += [f"{name} is empty" for name, value in head.items() if value in (None, "", [], {})]
    return found + license_problems(head) + reference_problems(head)


def license_problems(head: dict[str, Any]) -> list[str]:
    """Of the three licence fields."""
    licence, name, link = (head.get(field) for field in ("license", "license_name", "license_link"))
    found = []
    if licence is not None and licence not in LICENSES:
        found.append(f"license {licence!r} is not on the Hub's list")
    if licence == "other" and not name:
        found.append("license: other needs license_name")
    if licence != "other" and name:
        found.append("license_name is for license: other")
    if name and not NAME.fullmatch(name):
        found.append(f"license_name {name!r} may hold small letters, digits, '-', '_' and '.'")
    if link and not (link.startswith("https://") or link in ("LICENSE", "LICENSE.md")):
        found.append(f"license_link {link!r} is neither an https address nor LICENSE")
    return found


def reference_problems(head: dict[str, Any]) -> list[str]:
    """Of tasks, tags, and the ids of other repositories."""
    found = []
    if "pipeline_tag" in head and head["pipeline_tag"] not in TASKS:
        found.append(f"pipeline_tag {head['pipeline_tag']!r} is no task of the Hub")
    tags = head.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) and 0 < len(tag) <= 96 for tag in tags):
        found.append("tags must be a list of short strings")
    elif len(set(tags)) != len(tags):
        found.append("tags repeat themselves")
    for field in ("base_model", "datasets"):
        value = head.get(field, [])
        values = value if isinstance(value, list) else [value]
        wrong = [one for one in values if not isinstance(one, str) or not HUB_ID.fullmatch(one)]
        found += [f"{field} {one!r} is no id of the Hub" for one in wrong]
    if head.get("base_model_relation", "finetune") not in RELATIONS:
        found.append(f"base_model_relation must be one of {sorted(RELATIONS)}")
    if "model-index" in head:
        found.append("model-index is the old form of evaluation results; today's is .eval_results/*.yaml")
    return found
