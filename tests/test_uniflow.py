"""UniFlow: the flow of patches, its schedules and guidance, training with self-distillation, its latents generated."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from hf_vistok import LatentFlowPipeline, UniFlowConfig
from hf_vistok.modeling.uniflow.modeling_uniflow import flow_schedule, self_distillation_loss, sigma_interval

from .test_pipeline_latent_flow import transformer
from .tiny import TINY, shaken


def tiny(name="uniflow"):
    torch.manual_seed(0)
    return shaken(TINY[name]().eval())


def pixels(count=2):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_patches_are_channel_by_channel():
    model, picture = TINY["uniflow"](), torch.arange(768.0).view(1, 3, 16, 16)
    patches = model.to_patches(picture)
    assert torch.equal(patches[0, 1], picture[0, :, :4, 4:8].flatten())
    assert torch.equal(model.to_pixels(patches), picture)


def test_schedules():
    assert flow_schedule(4) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert flow_schedule(2, "pow_0.25") == pytest.approx([0, 1 - 0.5**4, 1])
    assert sigma_interval((1.0, 3.0)) == ((0.25, 0.5),) and sigma_interval(None) == ()
    for bad in ("pow_0", "cosine"):
        with pytest.raises(StrictDataclassClassValidationError, match="schedule"):
            UniFlowConfig(schedule=bad)


def test_guidance_is_one_forward_and_by_hand():
    model, rows = tiny(), []
    latents = model.encode(pixels()).latents
    noise = torch.randn(2, 16, 48)
    model.flow.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    guided = model.decode(latents, noise=noise, guidance_scale=1.5).sample
    assert rows == [4]
    with torch.no_grad():
        condition = model.condition(latents)
        zero = torch.zeros(2)
        cond = model.patch_velocity(noise, zero, condition)
        uncond = model.patch_velocity(noise, zero, 0 * condition)
    want = model.to_pixels(noise + uncond + 1.5 * (cond - uncond))
    torch.testing.assert_close(guided, want, atol=1e-4, rtol=1e-4)


def test_seeds_and_steps():
    model = tiny()
    latents = model.encode(pixels()).latents

    def draw(seed=0, **options):
        return model.decode(latents, generator=torch.Generator().manual_seed(seed), **options).sample

    assert torch.equal(draw(), draw()) and not torch.equal(draw(), draw(1))
    assert not torch.equal(draw(), draw(num_inference_steps=3))
    flat = torch.randn(32, 48)  # the authors' layout of noise
    ours = model.decode(latents, noise=flat).sample
    assert torch.equal(ours, model.decode(latents, noise=flat.view(2, 16, 48)).sample)
    with pytest.raises(ValueError, match="noise must be"):
        model.decode(latents, noise=torch.randn(2, 3))


def test_self_distillation_favours_deep_layers_and_those_astray():
    same, other = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    assert float(self_distillation_loss([same] * 3, [same] * 3, 1.0)) == pytest.approx(0, abs=1e-6)
    first = self_distillation_loss([other, same], [same, same], 0.0)
    last = self_distillation_loss([same, other], [same, same], 0.0)
    assert float(last) == pytest.approx(2 * float(first), rel=1e-5)
    assert self_distillation_loss([other, same], [same, same], 5.0) > first


def test_trains_and_the_teacher_stays():
    torch.manual_seed(0)
    model = TINY["uniflow"]().train()
    teacher, images = model.make_teacher(), torch.randn(4, 3, 1, 1).expand(-1, -1, 16, 16)
    before = [p.clone() for p in teacher.parameters()]
    assert not any(p.requires_grad for p in teacher.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    noise, t = torch.randn(4, 16, 48), torch.linspace(0.1, 0.9, 4)
    history = []
    for _ in range(80):
        with torch.no_grad():
            states = torch.stack(teacher(images)[1:], 1)
        output = model(images, states, noise=noise, t=t)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in output.losses.items()})
    assert set(history[0]) == {"flow_loss", "distillation_loss"}
    assert history[0]["distillation_loss"] == pytest.approx(0, abs=1e-5)
    assert history[-1]["flow_loss"] < 0.7 * history[0]["flow_loss"]
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_self_distillation_holds_the_encoder():
    """The paper's effect: with it, the encoder's features stay nearer to where they started."""
    drift = {}
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        model = TINY["uniflow"]().train()
        teacher, images = model.make_teacher(), pixels(4)
        noise, t = torch.randn(4, 16, 48), torch.full((4,), 0.5)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        with torch.no_grad():
            states = torch.stack(teacher(images)[1:], 1)
        for _ in range(30):
            losses = model(images, states, noise=noise, t=t).losses
            optimizer.zero_grad()
            (losses["flow_loss"] + weight * losses["distillation_loss"]).backward()
            optimizer.step()
        drift[weight] = float(losses["distillation_loss"].detach())
    assert drift[10.0] < 0.7 * drift[0.0]


def test_times_are_fat_tailed():
    t = TINY["uniflow"]().draw_times(torch.linspace(0, 0.9999, 1000))
    assert t.min() >= 0 and t.max() <= 1 and ((t < 0.02) | (t > 0.98)).float().mean() > 0.003


def test_other_sizes_of_the_encoder():
    model = tiny()
    assert model.encoder(torch.randn(1, 3, 24, 16))[-1].shape == (1, 1 + 24, 32)


def test_latents_can_be_generated():
    flow = transformer(in_channels=6)
    pipe = LatentFlowPipeline(tiny(), flow)
    pipe.set_progress_bar_config(disable=True)
    assert pipe([1, 2], output_type="latent").images.shape == (2, 16, 6)
    first, again = (pipe([1, 2], output_type="pt", generator=torch.Generator().manual_seed(0)).images for _ in range(2))
    assert first.shape == (2, 3, 16, 16) and torch.equal(first, again)
