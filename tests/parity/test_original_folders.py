"""Each variant in a folder of the authors' layout, loaded by the Auto classes: recognised, converted, all weights."""

import json

import pytest
import torch

from hf_vistok import AutoImagePrior, AutoImageTokenizer, PreTrainedImagePrior, PreTrainedImageTokenizer
from hf_vistok.conversion import from_original, get_adapter
from hf_vistok.conversion.adapter import recognise

from .harness import hook_for

AUTO = {"tokenizer": AutoImageTokenizer, "ar_prior": AutoImagePrior, "masked_prior": AutoImagePrior}
# their configuration cannot be told from another system's: users name a preset
UNRECOGNISED = {"retok"}
# priors that are another system's in all but their weights, class and configuration included
KIN = {("one_d_piece", "masked_prior"): "titok", ("meditok", "ar_prior"): "unitok"}


def system_of(variant) -> str:
    return KIN.get((variant.system, variant.component), variant.system)


def loadable(variant):
    hook = hook_for(variant)
    if hook is None or not hook.converts or variant.component not in AUTO or not variant.weights:
        pytest.skip(f"{variant.system} {variant.component} is not loaded by an Auto class")
    return AUTO[variant.component]


def same_weights(model, variant) -> None:
    expected = from_original(variant.system, variant.component, variant.config, dict(variant.weights))
    assert type(model) is type(expected) and isinstance(model, (PreTrainedImageTokenizer, PreTrainedImagePrior))
    ours, theirs = model.state_dict(), expected.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_recognised_by_its_configuration(variant):
    loadable(variant)
    if variant.system in UNRECOGNISED:
        pytest.skip(f"{variant.system} needs a preset")
    found = recognise(variant.config)
    assert found is not None, f"no adapter recognises the configuration of {variant.name}"
    assert (found[0].system, found[1]) == (system_of(variant), variant.component)


def test_loads_from_a_folder_and_from_a_pickle(variant, tmp_path):
    auto = loadable(variant)
    if variant.system in UNRECOGNISED:
        pytest.skip(f"{variant.system} needs a preset")
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps(variant.config))
    save_file({name: tensor.contiguous() for name, tensor in variant.weights.items()}, tmp_path / "weights.safetensors")
    same_weights(auto.from_pretrained(str(tmp_path), filename="weights.safetensors"), variant)
    wrapper = get_adapter(system_of(variant)).wrappers_of(variant.component)[0].split(".")
    content = dict(variant.weights)
    for key in reversed(wrapper):
        content = {key: content}
    torch.save(content, tmp_path / "weights.pt")
    same_weights(auto.from_pretrained(str(tmp_path / "weights.pt"), config=variant.config), variant)
    wrong = AutoImagePrior if auto is AutoImageTokenizer else AutoImageTokenizer
    with pytest.raises(ValueError, match=f"{variant.component} of {system_of(variant)}"):
        wrong.from_pretrained(str(tmp_path), filename="weights.safetensors")
