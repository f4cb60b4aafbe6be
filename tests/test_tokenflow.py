"""TokenFlow: what the common suite does not ask."""

import argparse
from fractions import Fraction

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_vistok.conversion import get_adapter
from hf_vistok.conversion.adapter import ConversionError
from hf_vistok.conversion.loading import read_state_dict
from hf_vistok.conversion.tokenflow import tokenflow_fields
from hf_vistok.modeling.tokenflow.configuration_tokenflow import TokenFlowConfig

from .common import shaken
from .tiny import TINY
from .tiny_tokenflow import SIZES, tokenflow

NAMES = ("tokenflow", "tokenflow-siglip")


@pytest.fixture(params=NAMES)
def case(request):
    torch.manual_seed(0)
    model = shaken(TINY[request.param]())
    return model, TINY[request.param].pixels(model, 2)


@torch.no_grad()
def test_first_scales(case):
    """A number of tokens keeps whole scales: their ids, and their share of the sum."""
    model, pixels = case
    full = model.encode(pixels)
    assert model.valid_num_tokens == [1, 5, 21]
    for count in model.valid_num_tokens:
        short = model.encode(pixels, num_tokens=count)
        assert torch.equal(short.token_ids, full.token_ids[:, :count])
        torch.testing.assert_close(short.latents, model.ids_to_latents(short.token_ids), atol=1e-5, rtol=1e-4)
        again = model.decode_tokens(short.token_ids)
        torch.testing.assert_close(again.sample, model.decode(short.latents).sample, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="1 or 5 or 21"):
        model.encode(pixels, num_tokens=4)


@torch.no_grad()
def test_a_length_per_image_and_masks(case):
    model, pixels = case
    encoded = model.encode(pixels, num_tokens=torch.tensor([5, 21]))
    mask, ids = encoded.token_mask, encoded.token_ids
    assert mask.sum(1).tolist() == [5, 21] and torch.equal(ids, model.encode(pixels).token_ids)
    torch.testing.assert_close(encoded.latents[:1], model.ids_to_latents(ids[:1, :5]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoded.latents, model.ids_to_latents(ids, mask), atol=1e-5, rtol=1e-4)
    together = model.decode_tokens(ids, mask).sample
    torch.testing.assert_close(together, model.decode(encoded.latents, mask).sample, atol=1e-4, rtol=1e-4)
    other = torch.where(mask, ids, (ids + 1) % model.codebook_size)
    torch.testing.assert_close(model.decode_tokens(other, mask).sample, together)
    hole, part = mask.clone(), mask.clone()
    hole[1, 3], part[0, 5] = False, True
    for wrong in (hole, part, torch.zeros_like(mask), mask[:, :5], mask.float()):
        with pytest.raises(ValueError, match="token_mask"):
            model.ids_to_latents(ids, wrong)


@torch.no_grad()
def test_one_index_for_two_codebooks(case):
    """The index minimises the sum of both distances; codes have unit length in each half, at every scale."""
    model, pixels = case
    encoded = model.encode(pixels)
    codes = model.get_codebook_entry(encoded.token_ids)
    for half in codes.split([8, 4], -1):
        torch.testing.assert_close(half.norm(dim=-1), torch.ones(2, 21))
    pooled = encoded.pre_quant.mean((2, 3))
    unit = torch.cat([torch.nn.functional.normalize(half, dim=-1) for half in pooled.split([8, 4], -1)], -1)
    every = model.get_codebook_entry(torch.arange(48)[None])[0]
    semantic, pixel = (torch.cdist(unit[:, part], every[:, part]) ** 2 for part in (slice(0, 8), slice(8, 12)))
    assert torch.equal((semantic + pixel).argmin(1), encoded.token_ids[:, 0])


@torch.no_grad()
def test_semantic_and_pixel_halves(case):
    model, pixels = case
    latents = model.encode(pixels).latents
    other = latents.clone()
    other[:, :8] += 0.5
    assert torch.equal(model.decode(other).sample, model.decode(latents).sample)
    other = latents.clone()
    other[:, 8:] += 0.5
    assert torch.equal(model.decode_features(other), model.decode_features(latents))
    assert model.decode(latents).features.shape == (2, 16, 12)


def test_scale_drop_and_the_second_stage(case):
    model, pixels = case
    assert model.config.scale_drop == 0.1
    torch.manual_seed(0)
    draws = torch.stack([model.draw_scales() for _ in range(300)])
    assert bool((draws[:, 0] == 1).all()) and 0.05 < float(1 - draws.min(1).values.mean()) < 0.17
    with torch.no_grad():
        dropped = model.encode(pixels, keep_scales=torch.tensor([1.0, 1.0, 0.0]))
        torch.testing.assert_close(dropped.latents, model.encode(pixels, num_tokens=5).latents)
    model.config.train_pixel_decoder_only = True
    model.train()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"decoder"}


def test_configurations_that_cannot_be():
    for wrong in ({"scales": (1, 2, 3)}, {"scales": (2, 1, 4)}, {"teacher": "vitamin"}, {"teacher": "siglip"}):
        with pytest.raises(StrictDataclassError):
            TokenFlowConfig(**{**SIZES, **wrong})
    with pytest.raises(ConversionError, match="clipb_224, siglip_384"):
        tokenflow_fields({"teacher": "vitamin_xlarge_256"})


def test_published_numbers_of_tokens():
    presets = get_adapter("tokenflow").presets
    counts = {name: TokenFlowConfig(**tokenflow_fields(preset.config)) for name, preset in presets.items()}
    assert counts["tokenflow_clipb_32k_enhanced"].scale_ends[-1] == 817
    assert counts["tokenflow_siglip_32k"].scale_ends[-1] == 2227
    assert counts["tokenflow_siglip_32k"].pixel_size == 432
    native = {**presets["tokenflow_clipb_32k_enhanced"].config, "infer_interpolate": False}
    assert TokenFlowConfig(**tokenflow_fields(native)).scale_ends[-1] == 561


def test_codes_without_unit_length():
    model = shaken(tokenflow(codebook_l2_norm=False)())
    pixels = TINY["tokenflow"].pixels(model, 1)
    with torch.no_grad():
        encoded = model.encode(pixels)
        torch.testing.assert_close(model.ids_to_latents(encoded.token_ids), encoded.latents, atol=1e-5, rtol=1e-4)


def test_arguments_beside_the_tensors(tmp_path):
    """The authors' files hold the Namespace of their training; nothing else than values is let through."""
    path, weight = tmp_path / "tokenflow.pt", torch.ones(2)
    args = argparse.Namespace(lr=1e-4, teacher="clipb_224")
    torch.save({"args": args, "model": {"w": 0 * weight}, "ema": {"w": weight}}, path)
    assert torch.equal(read_state_dict(str(path), get_adapter("tokenflow").wrappers)["w"], weight)
    torch.save({"args": Fraction(1, 2), "ema": {"w": weight}}, path)
    with pytest.raises(ConversionError, match="more than tensors"):
        read_state_dict(str(path))
