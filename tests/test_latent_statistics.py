"""Statistics of latents: exact, streaming, resumable, part of a checkpoint."""

import json

import pytest
import torch

from hf_vistok import (
    AutoImageTokenizer,
    ImageTokenizerProcessor,
    LatentFlowPipeline,
    LatentFlowTransformer,
    RaeConfig,
    RaeModel,
)
from hf_vistok.cli.main import main
from hf_vistok.evaluation.latent_statistics import StatisticsRun, store
from hf_vistok.modeling.layers.latent_statistics import RunningMoments

from .folders import save_pictures
from .test_pipeline_latent_flow import transformer
from .tiny import TINY, shaken
from .tiny_dit_family import LIGHTNING


def model_of(name):
    torch.manual_seed(0)
    return shaken(TINY[name]().eval())


def run_of(model, paths, state=None, **options):
    processor = ImageTokenizerProcessor.for_config(model.config)
    return StatisticsRun(model, paths, state, processor=processor, **{"batch_size": 2, "save_every": 1, **options})


@pytest.fixture
def pictures(tmp_path):
    return sorted(save_pictures(tmp_path / "pictures", 5).glob("*.png"))


def test_moments_are_exact():
    data = torch.randn(50, 3, 4, 4, dtype=torch.float64) * 5 + 1000  # far from 0: sums of squares would fail
    moments = RunningMoments((3, 4, 4))
    for batch in data.split([1, 7, 20, 22]):
        moments.update(batch)
    torch.testing.assert_close(moments.mean, data.mean(0), atol=1e-10, rtol=1e-13)
    torch.testing.assert_close(moments.var, data.var(0, correction=0), atol=1e-10, rtol=1e-10)
    over, flat = moments.over_positions(), data.transpose(0, 1).flatten(1)
    torch.testing.assert_close(over.mean, flat.mean(1), atol=1e-10, rtol=1e-13)
    torch.testing.assert_close(over.std, flat.std(1, correction=0), atol=1e-10, rtol=1e-10)
    with pytest.raises(ValueError, match="NaN"):
        moments.update(torch.full((1, 3, 4, 4), float("nan")))
    with pytest.raises(ValueError, match="Observations"):
        moments.update(torch.zeros(1, 3))


@pytest.mark.parametrize("name", ["sendvae", "uniflow", "wrapped-kl"])
def test_equals_all_at_once(name, pictures):
    model = model_of(name)
    found = run_of(model, pictures).run()
    with torch.no_grad():
        pixels = ImageTokenizerProcessor.for_config(model.config)(pictures, return_tensors="pt")["pixel_values"]
        latents = model.encode(pixels).latents.double()
    assert found.count == 5
    torch.testing.assert_close(found.mean, latents.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.var, latents.var(0, correction=0), atol=1e-5, rtol=1e-4)
    axes = (0, 2, 3) if model.latent_layout == "grid" else (0, 1)
    torch.testing.assert_close(found.channel_mean, latents.mean(axes), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.channel_std, latents.var(axes, correction=0).sqrt(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sample", [False, True])
def test_resumes(pictures, tmp_path, sample):
    model, state = model_of("sendvae"), tmp_path / "state.safetensors"
    whole = run_of(model, pictures, sample=sample).run()
    assert run_of(model, pictures, state, sample=sample).run(limit=1).count == 2
    again = run_of(model, pictures, state, sample=sample)
    seen = []
    resumed = again.run(seen.append)
    assert seen == [4, 5] and torch.equal(resumed.mean, whole.mean) and torch.equal(resumed.var, whole.var)
    assert run_of(model, pictures, state, sample=sample).run(lambda count: pytest.fail("done already")).count == 5
    with pytest.raises(ValueError, match="belongs to another"):
        run_of(model, pictures[:3], state, sample=sample)


def test_refusals(pictures):
    with pytest.raises(ValueError, match="writes ids"):
        run_of(model_of("titok"), pictures)
    with pytest.raises(ValueError, match="no pictures"):
        run_of(model_of("sendvae"), [])
    with pytest.raises(ValueError, match="posterior"):
        run_of(model_of("uniflow"), pictures, sample=True).run()


def test_part_of_a_checkpoint(pictures, tmp_path):
    told = {}
    for name in ("sendvae", "wrapped-kl", "rae-mae"):
        model = model_of(name)
        found = run_of(model, pictures).run()
        told[name] = store(model, found)
        model.save_pretrained(tmp_path / name)
        again = AutoImageTokenizer.from_pretrained(tmp_path / name)
        if name == "rae-mae":
            torch.testing.assert_close(again.statistics.var, found.var.float())
        elif name == "sendvae":
            assert again.config.latents_mean == pytest.approx(found.channel_mean.tolist())
        else:
            assert again.config.latent_statistics["std"] == pytest.approx(found.channel_std.tolist())
    assert len(set(told.values())) == 3


def test_command(pictures, tmp_path, capsys):
    model = model_of("sendvae")
    model.save_pretrained(tmp_path / "vae")
    ImageTokenizerProcessor.for_config(model.config).save_pretrained(tmp_path / "vae")
    flow = transformer(**{**LIGHTNING, "latents_mean": None, "latents_std": None}, sample_size=8)
    flow.save_pretrained(tmp_path / "flow")
    state, out = tmp_path / "sums.safetensors", tmp_path / "out"
    command = ["stats", str(tmp_path / "vae"), str(tmp_path / "pictures"), "--state", str(state), "--device", "cpu"]
    assert main([*command, "-o", str(out), "--generator", str(tmp_path / "flow"), "--batch-size", "2"]) == 0
    said = json.loads(capsys.readouterr().out)
    want = run_of(model, pictures).run()
    assert said["pictures"] == 5 and said["mean"] == pytest.approx(want.channel_mean.tolist(), abs=1e-5)
    tokenizer = AutoImageTokenizer.from_pretrained(out)
    assert tokenizer.config.latents_std == pytest.approx(want.channel_std.tolist(), rel=1e-4)
    flow = LatentFlowTransformer.from_pretrained(tmp_path / "flow")
    assert flow.config.latents_mean == pytest.approx(said["mean"])
    pipe = LatentFlowPipeline(tokenizer, flow)
    pipe.set_progress_bar_config(disable=True)
    assert pipe([1], output_type="pt").images.shape == (1, 3, 16, 16)
    assert main([*command, "-o", str(out)]) == 1  # it is there already


def test_a_generator_takes_its_tokenizers_statistics():
    vae, flow = model_of("sendvae"), transformer(**{**LIGHTNING, "latents_mean": None}, sample_size=8)
    pipe = LatentFlowPipeline(vae, flow)
    with pytest.raises(ValueError, match="hf-vistok stats"):
        pipe([1])
    vae.set_latent_statistics([0.5] * 4, [2.0] * 4)
    pipe = LatentFlowPipeline(vae, flow)
    pipe.check_statistics()
    assert pipe.transformer.config.latents_mean == [0.5] * 4


def test_statistics_of_a_trained_tokenizer_are_kept():
    from hf_vistok.evaluation.latent_statistics import check_raw

    assert isinstance(TINY["rae"]().config, RaeConfig) and RaeModel.set_statistics
    with pytest.raises(ValueError, match="already"):
        check_raw(TINY["rae"]())
