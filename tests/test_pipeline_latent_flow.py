"""LatentFlowPipeline on tiny random weights: DiT family over an AutoencoderKL, over RAE, and of texts."""

import json

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from hf_vistok import (
    AutoImageTokenizer,
    LatentFlowPipeline,
    LatentFlowTransformer,
    RaeModel,
    VisTokPipeline,
    build_text_tokenizer,
    vocabulary_of,
)
from hf_vistok.modeling.layers.guidance import GuidanceRule

from .test_pipeline_text_tokens import LENGTH, TEXTS, WIDTH, text_parts
from .tiny import TINY, shaken
from .tiny_dit_family import DIFFUSION, LIGHTNING, REPA, SIZES, WIDE
from .tiny_wrapped import BLOCKS


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds or (0, 1)]


def transformer(seed=1, **options):
    torch.manual_seed(seed)
    return shaken(LatentFlowTransformer(**{**SIZES, **options}).eval(), seed)


def vae():
    torch.manual_seed(0)
    return AutoencoderKL(**BLOCKS, sample_size=8).eval()


def rae(**options):
    torch.manual_seed(0)
    model = shaken(TINY["rae"]().eval())
    model.set_statistics(torch.randn(32, 4, 4), torch.rand(32, 4, 4) + 0.5)
    return model


KINDS = {
    "lightning": lambda: LatentFlowPipeline(vae(), transformer(**LIGHTNING, guidance_scale=2.0)),
    "interval": lambda: LatentFlowPipeline(
        vae(), transformer(**LIGHTNING, guidance_scale=3.0, guidance_intervals=[[0.0, 0.4]], guidance_active="outside")
    ),
    "sde": lambda: LatentFlowPipeline(vae(), transformer(**REPA, guidance_scale=1.8)),
    "diffusion": lambda: LatentFlowPipeline(vae(), transformer(**DIFFUSION, guidance_scale=1.5)),
    "rae": lambda: LatentFlowPipeline(
        rae(),
        transformer(**WIDE, in_channels=32, guidance="autoguidance", guidance_scale=1.5),
        transformer(2, **WIDE, in_channels=32, num_layers=1),
    ),
    "text": lambda: LatentFlowPipeline(
        vae(),
        transformer(num_classes=0, text_dim=WIDTH, text_length=LENGTH, rotary=True, guidance_scale=2.0),
        **text_parts(),
    ),
}


@pytest.fixture(scope="module", params=list(KINDS))
def pipe(request):
    pipe = KINDS[request.param]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def conditions(pipe, count=2):
    if pipe.transformer.config.text_dim is None:
        return {"class_labels": [1, 3][:count]}
    return {"prompt": TEXTS[:count]}


def draw(pipe, count=2, **given):
    options = {"generator": seeded(*range(count)), "output_type": "pt", "num_inference_steps": 3}
    return pipe(**{**conditions(pipe, count), **options, **given}).images


def test_pictures(pipe):
    size = 32 if isinstance(pipe.image_tokenizer, RaeModel) else 8
    assert draw(pipe).shape == (2, 3, size, size)
    assert [image.size for image in draw(pipe, output_type="pil")] == [(size, size)] * 2
    many = pipe(**conditions(pipe, 1), num_images_per_prompt=2, generator=seeded(), return_dict=False, output_type="np")
    assert many[0].shape == (2, size, size, 3)
    latents = draw(pipe, output_type="latent")
    assert latents.shape == (2, pipe.transformer.config.in_channels, 4, 4)


def test_seeds_and_batches(pipe):
    together = draw(pipe)
    assert torch.equal(draw(pipe), together)
    assert not torch.equal(draw(pipe, generator=seeded(5, 6)), together)
    alone = draw(pipe, 1, generator=seeded(0))
    torch.testing.assert_close(alone, together[:1], atol=1e-4, rtol=1e-4)
    one = torch.Generator().manual_seed(3)
    again = torch.Generator().manual_seed(3)
    assert torch.equal(draw(pipe, generator=one), draw(pipe, generator=again))


def test_guidance_on_and_off(pipe):
    off = draw(pipe, guidance_scale=1.0, output_type="latent")
    assert not torch.equal(draw(pipe, guidance_scale=4.0, output_type="latent"), off)
    published = draw(pipe, output_type="latent")
    scale = pipe.transformer.config.guidance_scale
    assert torch.equal(draw(pipe, guidance_scale=scale, output_type="latent"), published)


def test_callback(pipe):
    seen = []

    def callback(pipeline, step, t, values):
        seen.append((step, t))
        return {"latents": torch.zeros_like(values["latents"])}

    changed = draw(pipe, callback_on_step_end=callback, output_type="latent")
    want = pipe.transformer.denormalize_latents(torch.zeros_like(changed))
    torch.testing.assert_close(changed, want)
    assert [step for step, _ in seen] == list(range(len(seen))) and len(seen) >= 2


def test_save_and_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {value[0] for value in index.values() if isinstance(value, list)} <= {"hf_vistok", "transformers", None}
    assert type(AutoImageTokenizer.from_pretrained(tmp_path)) is type(pipe.image_tokenizer)
    for cls in (LatentFlowPipeline, VisTokPipeline):
        loaded = cls.from_pretrained(str(tmp_path))
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded) is LatentFlowPipeline
        torch.testing.assert_close(draw(loaded), draw(pipe), atol=1e-5, rtol=1e-5)


def test_offload_order_names_every_model(pipe):
    order = pipe.model_cpu_offload_seq.split("->") + pipe._exclude_from_cpu_offload
    models = {name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert models <= set(order)


# ---------------------------------------------------------------------- guidance


def counted(model):
    """Rows of each forward of a model."""
    rows = []
    model.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    return rows


@pytest.mark.parametrize(("options", "rows"), [({}, 1), ({"guidance_scale": 2.0}, 2), ({"third": 1.0}, 3)])
def test_guidance_is_one_forward(options, rows):
    flow = transformer(**LIGHTNING)
    seen, noise = counted(flow), torch.randn(2, 4, 4, 4)
    third = options.pop("third", None)
    negative = None if third is None else {"class_labels": [4, 4]}
    flow.sample_latents(noise, [1, 2], negative=negative, negative_guidance_scale=third, **options)
    assert set(seen) == {2 * rows}


def said(flow, x, label):
    with torch.no_grad():
        return flow(x, torch.full((len(x),), 0.5), torch.full((len(x),), label), return_dict=False)[0]


def test_rules_by_hand():
    flow, x = transformer(**LIGHTNING), torch.randn(2, 4, 4, 4)
    weak = transformer(3, **LIGHTNING)
    c, u, n = (said(flow, x, label) for label in (1, flow.null_class, 4))
    labels, avoid = torch.tensor([1, 1]), torch.tensor([4, 4])

    def guided(rule, **kwargs):
        with torch.no_grad():
            return flow.guided(x, 0.5, labels, rule, **kwargs)

    rules = {
        "cfg": (guided(GuidanceRule(3.0)), u + 3 * (c - u)),
        "channels": (guided(GuidanceRule(3.0, channels=2)), torch.cat([(u + 3 * (c - u))[:, :2], c[:, 2:]], 1)),
        "interval": (guided(GuidanceRule(3.0, intervals=((0.6, 1.0),))), c),
        "outside": (guided(GuidanceRule(3.0, intervals=((0.6, 1.0),), active="outside")), u + 3 * (c - u)),
        "weak": (
            guided(GuidanceRule(3.0, "autoguidance"), weak_model=weak),
            3 * c - 2 * said(weak, x, 1),
        ),
        "negative": (guided(GuidanceRule(3.0), negative=avoid), n + 3 * (c - n)),
        "beside": (guided(GuidanceRule(3.0, negative_scale=0.5), negative=avoid), u + 3 * (c - u) - 0.5 * (n - u)),
    }
    for name, (ours, want) in rules.items():
        torch.testing.assert_close(ours, want, atol=1e-5, rtol=1e-5, msg=name)


def test_negative_conditions():
    pipe = KINDS["lightning"]()
    pipe.set_progress_bar_config(disable=True)
    plain = draw(pipe, output_type="latent")
    instead = draw(pipe, output_type="latent", negative_class_labels=4)
    beside = draw(pipe, output_type="latent", negative_class_labels=[4, 2], negative_guidance_scale=1.0)
    assert not torch.equal(plain, instead) and not torch.equal(plain, beside)
    texts = KINDS["text"]()
    texts.set_progress_bar_config(disable=True)
    assert not torch.equal(draw(texts), draw(texts, negative_prompt="a blue bird"))


def test_texts_do_not_depend_on_the_longest_one():
    pipe = KINDS["text"]()
    pipe.set_progress_bar_config(disable=True)
    states, mask = pipe.encode_prompt(TEXTS)
    longer = torch.cat([states, torch.randn(2, 2, WIDTH)], 1), torch.cat([mask, mask.new_zeros(2, 2)], 1)
    ours = draw(pipe, prompt=None, prompt_embeds=longer[0], prompt_attention_mask=longer[1])
    torch.testing.assert_close(ours, draw(pipe), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="text_length"):
        draw(pipe, prompt=None, prompt_embeds=torch.randn(2, LENGTH + 1, WIDTH))


# ---------------------------------------------------------------------- loading and errors


def test_missing_statistics_are_refused():
    pipe = LatentFlowPipeline(vae(), transformer(**{**LIGHTNING, "latents_mean": None}))
    calls = counted(pipe.transformer)
    with pytest.raises(ValueError, match="hf-vistok stats"):
        pipe([1])
    raw = TINY["rae-mae"]()
    pipe = LatentFlowPipeline(raw, transformer(**WIDE, in_channels=32))
    with pytest.raises(ValueError, match="hf-vistok stats"):
        pipe([1])
    assert not calls
    shape = (32, raw.config.grid, raw.config.grid)
    raw.set_statistics(torch.zeros(shape), torch.ones(shape))
    pipe.set_progress_bar_config(disable=True)
    assert pipe([1], output_type="pt").images.shape == (1, 3, 32, 32)


def test_from_original_folders(tmp_path):
    flow = transformer(prediction="velocity", learn_sigma=True, latent_norm="scale", latents_scale=0.18215)
    names = {"layers": "blocks", "patch_embed": "x_embedder.proj", "position_table": "pos_embed"}
    names |= {"time_embed.fc1": "t_embedder.mlp.0", "time_embed.fc2": "t_embedder.mlp.2"}
    names |= {"class_embed": "y_embedder.embedding_table", "head.modulation.linear": "final_layer.adaLN_modulation.1"}
    names |= {"head.proj": "final_layer.linear"}
    state = {}
    for name, tensor in flow.state_dict().items():
        old = next((name.replace(a, b, 1) for a, b in names.items() if name.startswith(a)), name)
        state[old.replace(".modulation.linear.", ".adaLN_modulation.1.")] = tensor.contiguous()
    config = {"input_size": 4, "patch_size": 1, "in_channels": 4, "hidden_size": 32, "depth": 2, "num_heads": 2}
    folder = tmp_path / "sit"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "learn_sigma": True, "num_classes": 5}))
    save_file(state, folder / "model.safetensors")
    vae().save_pretrained(tmp_path / "vae")
    pipe = LatentFlowPipeline.from_pretrained(str(folder), image_tokenizer=str(tmp_path / "vae"))
    pipe.set_progress_bar_config(disable=True)
    ours = pipe([1, 2], generator=seeded(), output_type="pt", sampler="euler", num_inference_steps=3).images
    assert ours.shape == (2, 3, 8, 8) and torch.equal(pipe.transformer.head.proj.weight, flow.head.proj.weight)
    flow.save_pretrained(tmp_path / "own")
    from hf_vistok.registration import load_transformer

    assert torch.equal(load_transformer(str(tmp_path / "own")).head.proj.weight, flow.head.proj.weight)
    for source in (folder, tmp_path / "own"):
        with pytest.raises(ValueError, match="image_tokenizer="):
            LatentFlowPipeline.from_pretrained(str(source))


def test_generate_command(tmp_path):
    from hf_vistok.cli.main import main
    from hf_vistok.registration import is_flow

    flow, out = transformer(latent_norm="scale", guidance_scale=2.0), tmp_path / "out.png"
    flow.save_pretrained(tmp_path / "flow")
    vae().save_pretrained(tmp_path / "vae")
    assert is_flow(str(tmp_path / "flow")) and is_flow("", "DiT-XL-2-256x256") and not is_flow(str(tmp_path / "vae"))
    command = ["generate", str(tmp_path / "flow"), "--image-tokenizer", str(tmp_path / "vae"), "--device", "cpu"]
    assert main([*command, "--class-label", "1", "--class-label", "2", "--steps", "2", "-o", str(out)]) == 0
    assert out.is_file()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"class_labels": [9]}, "must lie in"),
        ({"class_labels": None}, "Give class_labels"),
        ({"class_labels": None, "prompt": "a cat"}, "draws classes"),
        ({"prompt": "a cat"}, "Give one of"),
        ({"output_type": "gif"}, "output_type"),
        ({"num_inference_steps": 1}, "at least 2"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"guidance": "magic"}, "guidance must be one of"),
        ({"guidance": "autoguidance", "guidance_scale": 2.0}, "weak_model"),
        ({"guidance_channels": -1}, "guidance_channels"),
        ({"negative_guidance_scale": 1.0}, "stay away from"),
        ({"negative_class_labels": [1, 2, 3]}, "negative conditions"),
        ({"sampler": "ddpm"}, "cannot use the sampler"),
        ({"generator": seeded(1, 2, 3)}, "generators"),
        ({"latents": torch.zeros(1, 4, 4, 4)}, "noise of shape"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
    ],
)
def test_bad_calls(call, message):
    pipe = KINDS["lightning"]()
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match=message):
        pipe(**{"class_labels": [0, 1], **call})


def test_components_that_do_not_fit():
    with pytest.raises(ValueError, match="continuous"):
        LatentFlowPipeline(TINY["titok"](), transformer(**LIGHTNING))
    with pytest.raises(ValueError, match="also needs"):
        LatentFlowPipeline(TINY["ta_titok-kl"](), transformer(**LIGHTNING))
    with pytest.raises(ValueError, match="channels"):
        LatentFlowPipeline(vae(), transformer(**WIDE, in_channels=32))
    with pytest.raises(ValueError, match="positions"):
        LatentFlowPipeline(rae(), transformer(**WIDE, in_channels=32, sample_size=6))
    with pytest.raises(ValueError, match="tokenizer"):
        LatentFlowPipeline(vae(), KINDS["text"]().transformer, tokenizer=build_text_tokenizer(vocabulary_of(TEXTS)))
