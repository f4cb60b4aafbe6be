"""GigaTok, ReToK, ResTok, DetailFlow, RAR: what the common suite does not ask."""

import pytest
import torch

from hf_vistok import AutoregressivePipeline
from hf_vistok.conversion.adapter import find_preset
from hf_vistok.modeling.detailflow.configuration_detailflow import DetailFlowConfig
from hf_vistok.modeling.detailflow.configuration_detailflow_prior import DetailFlowPriorConfig
from hf_vistok.modeling.layers.cfg_schedules import STRENGTHS, scheduled_scale
from hf_vistok.modeling.layers.rotation_trick import rotate_to
from hf_vistok.modeling.restok.configuration_restok_prior import ResTokPriorConfig

from .common import shaken
from .tiny import TINY

PAIRS = {
    "gigatok-prior": "gigatok",
    "restok-prior": "restok",
    "detailflow-prior": "detailflow",
    "rar": "maskgit_vqgan",
}


def tiny(name):
    torch.manual_seed(0)
    return shaken(TINY[name]())


@pytest.mark.parametrize("prior", PAIRS)
def test_pipeline(prior):
    tokenizer = TINY[PAIRS[prior]]()
    pipe = AutoregressivePipeline(image_tokenizer=tokenizer, prior=tiny(prior))
    pipe.set_progress_bar_config(disable=True)
    seen = []
    images = pipe(
        class_labels=[1, 2],
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        callback_on_step_end=lambda pipe, step, time, values: seen.append(values["token_ids"].shape[1]) or {},
    ).images
    assert len(images) == 2 and bool(torch.as_tensor(images).isfinite().all())
    assert len(seen) == len(pipe.prior.step_lengths(pipe.prior.num_tokens)) and seen[-1] == pipe.prior.num_tokens


@pytest.mark.parametrize("name", ["gigatok-prior", "gigatok-prior-rotary", "restok-prior", "detailflow-prior", "rar"])
def test_cache_changes_nothing(name):
    model = tiny(name)
    greedy = {"temperature": 0, "cfg_scale": 3.0}
    expected = model.generate([1, 2], **greedy, cache=False).token_ids
    for cache in ("dynamic", "static"):
        assert torch.equal(model.generate([1, 2], **greedy, cache=cache).token_ids, expected)
    halves = model.step_lengths(model.num_tokens)
    half = sum(halves[: len(halves) // 2])
    first = model.generate([1, 2], **greedy, num_tokens=half).token_ids
    assert torch.equal(first, expected[:, :half])
    assert torch.equal(model.generate([1, 2], **greedy, prior_token_ids=first).token_ids, expected)


def test_published_numbers_of_steps():
    assert len(DetailFlowPriorConfig().step_lengths) == 23
    assert ResTokPriorConfig().step_lengths == [1, 1, 1, 1, 4, 8, 16, 32, 64]
    with pytest.raises(ValueError, match="end with a step"):
        tiny("detailflow-prior").generate([1], num_tokens=6)


def test_schedules():
    for name in STRENGTHS:
        values = [scheduled_scale(name, 3.0, ratio / 10, window_start=0.25, window_end=0.75) for ratio in range(11)]
        assert min(values) > 1 and max(values) <= 3.0
    with pytest.raises(ValueError, match="cfg_schedule"):
        tiny("gigatok-prior").generate([1], cfg_schedule="nonsense", cfg_scale=2.0)


def test_rotation_trick():
    """Values of the codes; the gradient is rotated and scaled, so that it keeps its angle to the latent's direction."""
    torch.manual_seed(0)
    latents, codes = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    moved = rotate_to(latents, codes)
    torch.testing.assert_close(moved, codes, atol=1e-5, rtol=1e-5)
    gradient = torch.randn(5, 4)
    moved.backward(gradient)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(latents.grad, latents), cosine(gradient, codes), atol=1e-5, rtol=1e-4)


def test_detailflow_tokens_and_sizes():
    """The published map of counts to sides, both ways, and pictures of their own size."""
    config = DetailFlowConfig()
    sizes = {count: (config.target_size(count), config.picture_size(count)) for count in (8, 16, 24, 120, 128)}
    assert sizes == {8: (21, 32), 16: (44, 48), 24: (67, 80), 120: (251, 256), 128: (256, 256)}
    assert config.tokens_for_size(256) == 128 and config.picture_size(config.tokens_for_size(48)) == 48
    model = tiny("detailflow")
    ids = model.encode(torch.rand(1, 3, 32, 32)).token_ids
    for count in model.valid_num_tokens:
        assert model.decode_tokens(ids[:, :count]).sample.shape[-1] == model.config.picture_size(count)
    assert model.decode_tokens(ids[:, :2], image_size=32).sample.shape[-1] == 32
    coarse = model.encode(torch.rand(1, 3, 16, 16)).token_ids
    assert coarse.shape[1] == model.config.tokens_for_size(16) < model.num_tokens
    with pytest.raises(ValueError, match="start=5"):
        model.correction_streams(torch.rand(1, 3, 32, 32), 5)


def test_retok_training_masks():
    model = tiny("retok")  # 8 tokens, 5 twins: of tokens 3 to 7
    mask = model.padded_mask(torch.tensor([8, 5, 2]))
    assert mask.sum(1).tolist() == [8, 8, 7]
    assert mask[1].int().tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]


def test_rar_orders():
    model = tiny("rar")
    ids, labels = torch.randint(24, (2, 16)), torch.tensor([1, 2])
    raster = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, labels, raster).logits, model(ids, labels).logits)
        assert not torch.allclose(model(ids, labels, raster.flip(1)).logits, model(ids, labels).logits)
    orders = model.random_orders(64, 0.5)
    assert torch.equal(orders.sort(1).values, torch.arange(16).expand(64, -1))
    assert 10 < int((orders == torch.arange(16)).all(1).sum()) < 54


def test_presets_of_two_systems():
    assert find_preset("retok/VQ_SB256")[0].system == "retok"
    assert find_preset("gigatok/VQ_SB256")[0].system == "gigatok"
