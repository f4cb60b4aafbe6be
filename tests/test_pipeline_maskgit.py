"""MaskGitPipeline, its scheduler and ImageReconstructionPipeline on tiny random weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hf_vistok import (
    AutoImageTokenizer,
    AutoImageTokenizerProcessor,
    ImageReconstructionPipeline,
    MaskGitPipeline,
    MaskGitPrior,
    MaskGitPriorConfig,
    MaskGitScheduler,
    OneDPieceConfig,
    OneDPieceModel,
    VisTokPipeline,
)
from hf_vistok.modeling.layers.guidance import combine


def tiny_tokenizer(codebook_size: int = 64) -> OneDPieceModel:
    torch.manual_seed(0)
    widths = {
        f"{part}_{key}": value
        for part in ("encoder", "decoder")
        for key, value in {"patch_size": 8, "hidden_size": 32, "num_layers": 2, "num_heads": 4}.items()
    }
    config = OneDPieceConfig(
        image_size=32, num_latent_tokens=8, token_size=6, codebook_size=codebook_size, pixel_head="patch", **widths
    )
    return OneDPieceModel(config).eval()


def tiny_prior(architecture: str = "bert") -> MaskGitPrior:
    torch.manual_seed(1)
    config = MaskGitPriorConfig(
        architecture=architecture,
        codebook_size=64,
        num_image_tokens=8,
        num_classes=5,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    prior = MaskGitPrior(config).eval()
    prior.set_published_settings(
        num_inference_steps=4,
        cfg_scale=3.0,
        cfg_schedule="linear",
        cfg_power=3.0,
        choice_temperature=2.0,
        anneal_logits=True,
    )
    return prior


@pytest.fixture(scope="module")
def pipe() -> MaskGitPipeline:
    pipe = MaskGitPipeline(tiny_tokenizer(), tiny_prior())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pictures_and_seeds(pipe):
    first = pipe(class_labels=[1, 2], generator=seeded(), output_type="pt").images
    again = pipe(class_labels=[1, 2], generator=seeded(), output_type="pt").images
    other = pipe(class_labels=[1, 2], generator=seeded(1), output_type="pt").images
    assert first.shape == (2, 3, 32, 32) and torch.equal(first, again) and not torch.equal(first, other)
    assert isinstance(pipe(class_labels=3, generator=seeded()).images[0], Image.Image)
    assert pipe(class_labels=3, output_type="np", return_dict=False)[0].shape == (1, 32, 32, 3)


def test_published_settings_are_used(pipe):
    assert pipe.scheduler.config.num_inference_steps == 4 and pipe.scheduler.config.cfg_schedule == "linear"
    seen = []
    pipe(class_labels=[0], callback_on_step_end=lambda p, i, t, kwargs: seen.append(kwargs["token_ids"]))
    assert len(seen) == 4
    opened = [int((ids == pipe.prior.mask_token_id).sum()) for ids in seen]
    assert opened == sorted(opened, reverse=True) and opened[-1] == 0


def test_one_generator_per_picture(pipe):
    both = pipe(class_labels=[1, 2], generator=[seeded(5), seeded(6)], output_type="latent").images
    second = pipe(class_labels=[2], generator=[seeded(6)], output_type="latent").images
    assert torch.equal(both[1:], second)


def test_callback_may_change_ids(pipe):
    fixed = torch.zeros(1, 8, dtype=torch.long)
    out = pipe(class_labels=[0], output_type="latent", callback_on_step_end=lambda *a: {"token_ids": fixed}).images
    assert torch.equal(out, fixed)


@pytest.mark.parametrize("architecture", ["bert", "uvit"])
def test_batched_guidance_equals_two_passes(architecture):
    prior, labels = tiny_prior(architecture), torch.tensor([1, 4])
    ids = torch.full((2, 8), prior.mask_token_id)
    ids[:, :3] = 7
    sampler = prior.sampler(cfg_scale=2.0, cfg_schedule="power-cosine")
    null = torch.full_like(labels, 5)
    with torch.no_grad():
        both = sampler.guided_logits(lambda g: prior.predict(torch.cat([ids, ids]), torch.cat([labels, null])), 1)
        apart = combine(prior.predict(ids, labels), prior.predict(ids, null), sampler.cfg_at(1))
    torch.testing.assert_close(both, apart, atol=1e-5, rtol=1e-5)


def test_prefix_and_given_ids(pipe):
    ids = pipe.generate_prior_tokens([1], generator=seeded())
    coarse = pipe(prior_token_ids=ids, num_tokens=2, output_type="pt").images
    full = pipe(prior_token_ids=ids, output_type="pt").images
    assert coarse.shape == full.shape and not torch.equal(coarse, full)
    started = torch.full((1, 8), pipe.prior.mask_token_id)
    started[:, :2] = 5
    assert (pipe.generate_prior_tokens([1], prior_token_ids=started)[:, :2] == 5).all()


def test_save_and_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    libraries = {value[0] for value in index.values() if isinstance(value, list)}
    assert libraries <= {"hf_vistok", "diffusers", "transformers"}
    assert isinstance(AutoImageTokenizer.from_pretrained(tmp_path), OneDPieceModel)
    assert AutoImageTokenizerProcessor.from_pretrained(tmp_path).size["shortest_edge"] == 32
    for cls in (MaskGitPipeline, VisTokPipeline):
        again = cls.from_pretrained(str(tmp_path))
        again.set_progress_bar_config(disable=True)
        assert type(again) is MaskGitPipeline
        want = pipe(class_labels=[1], generator=seeded(), output_type="pt").images
        assert torch.equal(again(class_labels=[1], generator=seeded(), output_type="pt").images, want)


def test_from_original_folders(tmp_path):
    from hf_vistok.conversion.titok import generator_config, tokenizer_config

    prior, tokenizer = tiny_prior(), tiny_tokenizer()
    config = generator_config("ViT", 8, num_steps=3, guidance_scale=2.0, guidance_decay="linear")
    config["model"]["generator"].update(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, condition_num_classes=5
    )
    config["model"]["vq_model"]["codebook_size"] = 64
    names = {"lm_head.": "model.lm_head.", "model.bert.": "model."}
    state = {}
    for name, tensor in prior.state_dict().items():
        old = next((name.replace(ours, theirs, 1) for ours, theirs in names.items() if name.startswith(ours)), name)
        state[old] = tensor.contiguous()
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(state, tmp_path / "model.safetensors")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    pipe = MaskGitPipeline.from_pretrained(str(tmp_path), image_tokenizer=str(tmp_path / "tokenizer"))
    assert pipe.scheduler.config.num_inference_steps == 3 and pipe.scheduler.config.anneal_logits
    assert torch.equal(pipe.prior.lm_head.weight, prior.lm_head.weight)
    with pytest.raises(ValueError, match="image_tokenizer="):
        MaskGitPipeline.from_pretrained(str(tmp_path))
    assert tokenizer_config("base", "base", 1)["dataset"]["preprocessing"]["crop_size"] == 256


def test_scheduler_by_itself(tmp_path):
    scheduler = MaskGitScheduler(num_inference_steps=3, mask_token_id=64)
    scheduler.save_pretrained(tmp_path)
    scheduler = MaskGitScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(5)
    ids = torch.full((2, 8), 64)
    for t in scheduler.timesteps:
        ids = scheduler.step(torch.randn(2, 8, 64), t, ids, seeded()).prev_sample
    assert len(scheduler.timesteps) == 5 and int(ids.max()) < 64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"class_labels": [9]}, "must lie in"),
        ({"class_labels": [0.5]}, "integers"),
        ({}, "Give class_labels"),
        ({"class_labels": [0], "output_type": "gif"}, "output_type"),
        ({"class_labels": [0], "num_inference_steps": 0}, "at least 1"),
        ({"class_labels": [0], "guidance_scale": float("nan")}, "finite"),
        ({"class_labels": [0], "num_tokens": 99}, "num_tokens"),
        ({"class_labels": [0, 1], "generator": [torch.Generator()]}, "generators"),
        ({"class_labels": [0], "prior_token_ids": torch.zeros(1, 3, dtype=torch.long)}, "shape"),
    ],
)
def test_bad_calls(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        pipe(**call)


def test_components_must_fit():
    with pytest.raises(ValueError, match="codebook_size"):
        MaskGitPipeline(tiny_tokenizer(128), tiny_prior())
    from diffusers import DDIMScheduler

    with pytest.raises(ValueError, match="MaskGitScheduler"):
        MaskGitPipeline(tiny_tokenizer(), tiny_prior(), DDIMScheduler())


def test_reconstruction(tmp_path):
    pipe = ImageReconstructionPipeline(tiny_tokenizer())
    picture = Image.fromarray(np.full((50, 40, 3), 200, np.uint8))
    assert pipe([picture, picture]).images[1].size == (32, 32)
    few = pipe([picture], num_tokens=2, output_type="pt").images
    assert not torch.equal(few, pipe([picture], output_type="pt").images)
    budgets = pipe([picture, picture], num_tokens=torch.tensor([2, 8]), output_type="pt").images
    torch.testing.assert_close(budgets[:1], few, atol=1e-5, rtol=1e-4)
    pipe.save_pretrained(tmp_path)
    assert isinstance(VisTokPipeline.from_pretrained(str(tmp_path)), ImageReconstructionPipeline)
