"""MaskGenPipeline, FlowTokPipeline and SeedPipeline on tiny random weights."""

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hf_vistok import (
    FlowTokPipeline,
    MaskGenPipeline,
    SeedPipeline,
    VisTokPipeline,
    build_text_tokenizer,
    vocabulary_of,
)
from hf_vistok.modeling.layers.text import pad_with_zeros

from .tiny import TINY, shaken

TEXTS = ["a red apple", "a blue bird"]
LENGTH, WIDTH = 5, 12
FEW = {"num_inference_steps": 2}


def seeds(count=2):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def text_parts():
    torch.manual_seed(0)
    tokenizer = build_text_tokenizer(vocabulary_of(TEXTS), max_length=LENGTH)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        eos_token_id=2,  # the pooled state is that of the largest id
    )
    return {"tokenizer": tokenizer, "text_encoder": shaken(CLIPTextModelWithProjection(config).eval())}


def made(name):
    torch.manual_seed(1)
    return shaken(TINY[name]())


def maskgen(kind):
    tokenizer, prior = ("ta_titok-kl", "maskgen-kl") if kind == "kl" else ("ta_titok", "maskgen")
    return MaskGenPipeline(made(tokenizer), made(prior), **text_parts())


def flowtok():
    return FlowTokPipeline(made("flowtitok"), made("flowtok"), **text_parts())


def unclip_parts():
    torch.manual_seed(0)
    sizes = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
    unet = UNet2DConditionModel(
        sample_size=4,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        cross_attention_dim=8,
        attention_head_dim=2,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=24,
        **sizes,
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, **sizes
    )
    tokenizer = text_parts()["tokenizer"]
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    )
    return {
        "unet": unet.eval(),
        "vae": vae.eval(),
        "text_encoder": CLIPTextModel(text).eval(),
        "tokenizer": tokenizer,
        "image_normalizer": StableUnCLIPImageNormalizer(12),
        "scheduler": DDIMScheduler(prediction_type="v_prediction"),
        "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    }


PIPELINES = {"maskgen": lambda: maskgen("vq"), "maskgen-kl": lambda: maskgen("kl"), "flowtok": flowtok}


@pytest.fixture(scope="module", params=list(PIPELINES))
def pipe(request):
    pipe = PIPELINES[request.param]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def options(pipe, **given):
    head = {"num_head_steps": 3} if hasattr(getattr(pipe, "prior", None), "sample_head") else {}
    return {**FEW, **head, **given}


def draw(pipe, prompt=TEXTS, **given):
    return pipe(prompt, **options(pipe, output_type="pt", **{"generator": seeds(), **given})).images


def test_pictures(pipe):
    images = pipe(TEXTS[0], num_images_per_prompt=2, generator=seeds(), **options(pipe)).images
    assert [image.size for image in images] == [(32, 32)] * 2
    assert draw(pipe).shape == (2, 3, 32, 32)
    assert pipe(TEXTS, generator=seeds(), return_dict=False, **options(pipe, output_type="latent"))[0].ndim in (2, 3)


def test_seeds_and_batches(pipe):
    together = draw(pipe)
    assert torch.equal(draw(pipe), together)
    assert not torch.equal(draw(pipe, generator=seeds(4)[2:]), together)
    for index, generator in enumerate(seeds()):
        alone = draw(pipe, TEXTS[index], generator=[generator])
        assert torch.allclose(alone, together[index : index + 1], atol=1e-4)


def test_guidance(pipe):
    unguided = 0.0 if pipe.__class__ is MaskGenPipeline and not hasattr(pipe.prior, "sample_head") else 1.0
    assert not torch.equal(draw(pipe, guidance_scale=unguided), draw(pipe, guidance_scale=8.0))


def test_callback(pipe):
    name, seen = pipe._callback_tensor_inputs[0], []

    def callback(pipeline, step, timestep, values):
        seen.append(step)
        return {name: torch.zeros_like(values[name])}

    changed = draw(pipe, callback_on_step_end=callback)
    assert seen == [0, 1] and not torch.equal(changed, draw(pipe))


def test_prompt_embeds(pipe):
    text = pipe.encode_prompt(TEXTS)
    assert torch.equal(draw(pipe, None, prompt_embeds=text), draw(pipe))


def test_save_and_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    for cls in (type(pipe), VisTokPipeline):
        loaded = cls.from_pretrained(str(tmp_path))
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded) is type(pipe)
        assert torch.allclose(draw(loaded), draw(pipe), atol=1e-5)


def test_bad_input(pipe):
    for bad in ({"prompt": None}, {"prompt": 3}, {"prompt": ""}, {"generator": seeds(3)}, {"output_type": "jpg"}):
        with pytest.raises(ValueError):
            pipe(**options(pipe, **{"prompt": TEXTS, **bad}))
    with pytest.raises(ValueError, match="num_images_per_prompt"):
        pipe(TEXTS, num_images_per_prompt=0)


def test_components_that_do_not_fit():
    with pytest.raises(ValueError, match="text-aware"):
        MaskGenPipeline(made("titok"), made("maskgen"))
    with pytest.raises(ValueError):
        MaskGenPipeline(made("ta_titok"), made("maskgen-kl"))
    with pytest.raises(ValueError):
        FlowTokPipeline(made("ta_titok"), made("flowtok"))
    with pytest.raises(ValueError, match="unCLIP"):
        SeedPipeline(**unclip_parts(), image_tokenizer=made("titok"))


def test_padding_is_zero():
    ids, mask = torch.tensor([[5, 1, 9, 9, 9]]), torch.tensor([[1, 1, 1, 0, 0]])
    assert pad_with_zeros(ids, mask).tolist() == [[5, 1, 9, 0, 0]]


def test_completion_keeps_given_ids():
    pipe = maskgen("vq")
    pipe.set_progress_bar_config(disable=True)
    ids = pipe(TEXTS, generator=seeds(), output_type="latent", **FEW).images
    given = ids.clone()
    given[:, 3:] = pipe.prior.mask_token_id
    found = pipe(TEXTS, generator=seeds(), prior_token_ids=given, output_type="latent", **FEW).images
    assert torch.equal(found[:, :3], ids[:, :3])


def test_flow_scheduler_has_two_grids():
    flow = made("flowtok")
    scheduler = flow.make_scheduler(4, FlowMatchEulerDiscreteScheduler())
    assert torch.allclose(scheduler.timesteps, torch.linspace(0, 1 - 1e-5, 4))
    assert torch.allclose(1 - scheduler.sigmas, torch.linspace(1e-5, 1, 5), atol=1e-6)


@pytest.fixture(scope="module")
def seed_pipe():
    pipe = SeedPipeline(**unclip_parts(), image_tokenizer=made("seed"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_seed_pixels_of_ids(seed_pipe, tmp_path):
    ids = torch.randint(24, (2, 6), generator=torch.Generator().manual_seed(0))
    images = seed_pipe(ids, generator=seeds(), output_type="pt", **FEW).images
    assert images.shape == (2, 3, 8, 8)
    embeds = seed_pipe.image_tokenizer.decode_tokens(ids).sample
    assert torch.equal(seed_pipe(image_embeds=embeds, generator=seeds(), output_type="pt", **FEW).images, images)
    alone = seed_pipe(ids[1:], generator=seeds()[1:], output_type="pt", **FEW).images
    assert torch.allclose(alone, images[1:], atol=1e-4)
    seed_pipe.save_pretrained(tmp_path)
    loaded = VisTokPipeline.from_pretrained(str(tmp_path))
    loaded.set_progress_bar_config(disable=True)
    assert torch.allclose(loaded(ids, generator=seeds(), output_type="pt", **FEW).images, images, atol=1e-5)


def test_seed_pixels_of_pictures_and_negatives(seed_pipe):
    pixels = TINY["seed"].pixels(seed_pipe.image_tokenizer, 1)
    plain = seed_pipe(pixel_values=pixels, generator=seeds(1), output_type="pt", **FEW).images
    negative = seed_pipe(
        pixel_values=pixels, negative_image_embeds=torch.ones(1, 12), generator=seeds(1), output_type="pt", **FEW
    ).images
    assert plain.shape == negative.shape and not torch.equal(plain, negative)
    with pytest.raises(ValueError, match="exactly one"):
        seed_pipe()
