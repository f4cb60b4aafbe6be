"""Every published checkpoint's configuration is told from all others: the base of a kin is asked last."""

import pytest

from hf_vistok.conversion.adapter import all_adapters, recognise

from .parity.test_original_folders import AUTO, KIN, UNRECOGNISED

PRESETS = [
    (adapter.system, name, preset)
    for adapter in all_adapters()
    for name, preset in adapter.presets.items()
    if preset.component in AUTO and adapter.system not in UNRECOGNISED
]


@pytest.mark.parametrize(("system", "name", "preset"), PRESETS, ids=[f"{system}/{name}" for system, name, _ in PRESETS])
def test_presets_are_recognised_as_their_own(system, name, preset):
    found = recognise(preset.config)
    assert found is not None, f"no adapter recognises {system}/{name}"
    assert (found[0].system, found[1]) == (KIN.get((system, preset.component), system), preset.component)
