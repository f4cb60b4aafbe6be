"""Every variant under the reference root against the original's outputs; every published list of tensors."""

import pytest

from hf_vistok.conversion import from_original_parts, get_adapter
from hf_vistok.registry import FAMILIES

from .conftest import ROOT
from .harness import REPORT, check, hook_for, read_key_list, weights_that_do_not_matter

ABSENT = f"no reference at {ROOT}: set HF_VISTOK_REFERENCE"
IMPLEMENTED = {family.name for family in FAMILIES if family.adapter}


def test_reference_is_there():
    if not ROOT.is_dir():
        pytest.skip(ABSENT)


def test_outputs_equal_the_original(variant):
    hook = hook_for(variant)
    if hook is None:
        REPORT[variant.name] = {
            "component": variant.component,
            "compared": {},
            "not_compared": {},
            "status": "no hooks",
        }
        pytest.skip(f"no hooks for {variant.system} {variant.component}")
    REPORT[variant.name] = {"component": variant.component, "compared": {}, "not_compared": {}, "status": "failed"}
    REPORT[variant.name] = result = check(variant, hook)
    assert result["status"] == "passed", "\n".join(result.get("failures", []))
    assert result["compared"], "nothing was compared"


@pytest.mark.slow
def test_every_weight_matters(variant):
    hook = hook_for(variant)
    if hook is None or not variant.weights:
        pytest.skip(f"no hooks or no weights for {variant.system} {variant.component}")
    assert weights_that_do_not_matter(variant, hook) == []


def test_published_keys_are_taken_exactly(key_list):
    system = key_list.parent.parent.name
    if system not in IMPLEMENTED:
        pytest.skip(f"{system} is not implemented")
    presets, missing = get_adapter(system).presets, get_adapter(system).missing
    if key_list.stem in missing:
        pytest.skip(f"{system} {key_list.stem}: {missing[key_list.stem]}")
    if key_list.stem not in presets:
        pytest.fail(f"no preset {key_list.stem!r} for {system}; there are {sorted(presets)}")
    preset = presets[key_list.stem]
    state = read_key_list(key_list)
    assert state, "the list is empty"
    parts = from_original_parts(system, preset.component, preset.config, state)
    assert all(parameter.is_meta for part in parts.values() for parameter in part.parameters())
