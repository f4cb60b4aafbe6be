"""Send-VAE: the mapper trains, shapes of the paper, statistics, its generator in the pipeline."""

import pytest
import torch

from hf_vistok import LatentFlowPipeline, SendVaeConfig, SendVaeModel
from hf_vistok.conversion.sendvae import read_latent_statistics, sit_fields, vae_fields

from .test_pipeline_latent_flow import transformer
from .tiny import TINY, shaken
from .tiny_dit_family import REPA
from .tiny_sendvae import MAPPER, SIZES


def test_the_mapper_and_the_latents_train():
    torch.manual_seed(0)
    model = TINY["sendvae-mapper"]().train()
    colours = torch.rand(4, 3, 1, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = colours.repeat_interleave(8, 3).expand(-1, -1, 16, 16)  # two halves
    teacher = torch.randn(4, 16, 12, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    for _ in range(61):
        output = model(pixels, teacher, noise=torch.zeros(4, 4, 8, 8))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in output.losses.items()})
    assert set(history[0]) == {"reconstruction_loss", "kl_loss", "alignment_loss"}
    assert history[-1]["alignment_loss"] < 0.6 * history[0]["alignment_loss"]
    assert history[-1]["reconstruction_loss"] < 0.8 * history[0]["reconstruction_loss"]
    assert model.quant_conv.weight.grad.abs().sum() > 0


def test_alignment_reaches_the_encoder_through_the_mapper():
    model = shaken(TINY["sendvae-mapper"]().train())
    output = model(torch.rand(2, 3, 16, 16), torch.randn(2, 16, 12))
    output.losses["alignment_loss"].backward()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0 and model.decoder.conv_in.weight.grad is None


def test_mapper_noise_is_of_training_only():
    model = shaken(SendVaeModel(SendVaeConfig(**SIZES, **{**MAPPER, "mapper_noise": 1.0})).eval())
    inputs = {"teacher_features": torch.randn(2, 16, 12), "noise": torch.zeros(2, 4, 8, 8)}
    pixels = torch.rand(2, 3, 16, 16)

    def loss():
        return model(pixels, **inputs).losses["alignment_loss"]

    assert torch.equal(loss(), loss())
    model.train()
    assert not torch.equal(loss(), loss())


def test_errors():
    model = TINY["sendvae"]()
    with pytest.raises(ValueError, match="mapper_target_size"):
        model(torch.rand(1, 3, 16, 16), torch.randn(1, 16, 12))
    with pytest.raises(ValueError, match="hf-vistok stats"):
        model.normalize_latents(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="4 channels"):
        model.set_latent_statistics([0.0], [1.0])
    with pytest.raises(ValueError, match="above 0"):
        model.set_latent_statistics([0.0] * 4, [0.0] * 4)
    with pytest.raises(ValueError, match="shape"):
        TINY["sendvae-mapper"]()(torch.rand(1, 3, 16, 16), torch.randn(1, 9, 12))


def test_statistics_are_saved(tmp_path):
    model, file = TINY["sendvae"](), tmp_path / "vae-latents-stats.pt"
    shape = (1, 4, 1, 1)
    torch.save({"latents_scale": torch.full(shape, 0.5), "latents_bias": torch.full(shape, 3.0)}, file)
    model.set_latent_statistics(*read_latent_statistics(file))
    model.save_pretrained(tmp_path / "vae")
    again = SendVaeModel.from_pretrained(tmp_path / "vae")
    latents = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(again.normalize_latents(latents), (latents - 3) / 2)
    torch.testing.assert_close(again.denormalize_latents(again.normalize_latents(latents)), latents)


def test_attention_lies_where_the_nominal_resolution_says():
    published = SendVaeConfig(**vae_fields({"arch": "f16d32"}))
    assert published.attention_flags == [False] * 4 + [True] and published.downsample_factor == 16
    assert not any(SendVaeConfig(**vae_fields({"arch": "f8d4"})).attention_flags)


def test_arguments_of_a_training_run():
    args = {"model": "SiT-XL/1", "vae": "f16d32", "resolution": 256, "enc_type": "dinov2-vit-b", "cfg_prob": 0.1}
    fields = sit_fields(args)
    assert (fields["sample_size"], fields["in_channels"], fields["patch_size"]) == (16, 32, 1)
    assert fields["projector_dims"] == (768,) and fields["num_layers"] == 28


def test_pipeline():
    flow = transformer(**REPA, sample_size=8, guidance_scale=1.5)
    pipe = LatentFlowPipeline(shaken(TINY["sendvae"]()), flow)
    pipe.set_progress_bar_config(disable=True)
    images = [pipe([1, 2], generator=torch.Generator().manual_seed(0), output_type="pt").images for _ in range(2)]
    assert images[0].shape == (2, 3, 16, 16) and torch.equal(*images)
