"""FlexTokPipeline on tiny random weights: text and class, both halves apart, streaming, ranking, saving, bad input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vistok import (
    AutoImageTokenizer,
    AutoImageTokenizerProcessor,
    FlexARConfig,
    FlexARPrior,
    FlexTokModel,
    FlexTokPipeline,
    TextTableConfig,
    TextTableModel,
    VisTokPipeline,
    build_text_tokenizer,
    vocabulary_of,
)

from .tiny import shaken
from .tiny_flextok import flextok_config

TEXTS = ["a red apple", "a blue bird", "two green trees"]
WIDTH = 12


def image_tokenizer(**transformer):
    torch.manual_seed(0)
    return shaken(FlexTokModel(flextok_config(None, transformer)).eval())


def prior(**options):
    torch.manual_seed(1)
    sizes = {"codebook_size": 96, "num_image_tokens": 8, "hidden_size": 32, "num_hidden_layers": 2}
    config = FlexARConfig(**{**sizes, "num_attention_heads": 4, "text_dim": WIDTH, "text_length": 10, **options})
    return shaken(FlexARPrior(config).eval())


def text_parts():
    torch.manual_seed(2)
    tokenizer = build_text_tokenizer(vocabulary_of(TEXTS), max_length=12)
    encoder = TextTableModel(TextTableConfig(vocab_size=len(tokenizer), hidden_size=WIDTH, max_length=12)).eval()
    return {"tokenizer": tokenizer, "text_encoder": shaken(encoder)}


def text_pipeline(**transformer):
    pipe = FlexTokPipeline.from_image_tokenizer(image_tokenizer(**transformer), prior(), **text_parts())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return text_pipeline()


@pytest.fixture(scope="module")
def text_decoder():
    """A chain whose flow decoder sees the text too."""
    return text_pipeline(text_dim=WIDTH, pooled_text_dim=WIDTH, prediction_type="sample", guidance="cfg")


@pytest.fixture(scope="module")
def class_pipe():
    pipe = FlexTokPipeline.from_image_tokenizer(image_tokenizer(), prior(condition="class", num_classes=4))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_text_to_pictures(pipe):
    options = {"num_tokens": 4, "prior_guidance_scale": 3.0, "guidance_scale": 7.5, "num_inference_steps": 3}
    first = pipe(TEXTS[:2], **options, generator=seeded(), output_type="pt")
    again = pipe(TEXTS[:2], **options, generator=seeded(), output_type="pt")
    other = pipe(TEXTS[:2], **options, generator=seeded(1), output_type="pt")
    assert first.images.shape == (2, 3, 16, 16) and first.prior_token_ids.shape == (2, 4)
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    assert first.log_probs.shape == (2,)
    assert isinstance(pipe(TEXTS[0], generator=seeded()).images[0], Image.Image)
    images, ids = pipe(TEXTS[0], output_type="np", return_dict=False)
    assert images.shape == (1, 16, 16, 3) and ids.shape == (1, 8)
    assert pipe(TEXTS[0], output_type="latent").images.shape == (1, 4, 8, 8)


def test_the_two_halves_run_apart(pipe):
    ids = pipe.generate_prior_tokens(TEXTS[0], generator=seeded())
    whole = pipe(TEXTS[0], generator=seeded(), output_type="pt")
    assert torch.equal(whole.prior_token_ids, ids)
    noise = pipe.prepare_noise(1, seeded(7))
    coarse, full = (pipe(prior_token_ids=ids, num_tokens=k, noise=noise, output_type="pt").images for k in (2, 8))
    assert coarse.shape == full.shape and not torch.equal(coarse, full)
    prefix = pipe(prior_token_ids=ids[:, :2], noise=noise, output_type="pt").images
    assert torch.equal(prefix, coarse)
    sample = FlexTokModel.from_parts(pipe.transformer, pipe.vae).decode_tokens(ids[:, :2], noise=noise).sample
    torch.testing.assert_close((sample / 2 + 0.5).clamp(0, 1), coarse)


def test_prefix_is_continued(pipe):
    ids = pipe.generate_prior_tokens(TEXTS[:2], num_tokens=3, generator=seeded())
    longer = pipe.generate_prior_tokens(TEXTS[:2], prior_token_ids=ids, num_tokens=6, generator=seeded(1))
    assert longer.shape == (2, 6) and torch.equal(longer[:, :3], ids)


def test_one_generator_per_picture(pipe):
    both = pipe(TEXTS[:2], generator=[seeded(5), seeded(6)], num_tokens=4, output_type="pt")
    second = pipe(TEXTS[1], generator=[seeded(6)], num_tokens=4, output_type="pt")
    assert torch.equal(both.prior_token_ids[1:], second.prior_token_ids)
    torch.testing.assert_close(both.images[1:], second.images, atol=1e-4, rtol=1e-3)


def test_classes(class_pipe):
    out = class_pipe(class_labels=[1, 3], num_images_per_prompt=2, num_tokens=4, generator=seeded(), output_type="pt")
    assert out.images.shape == (4, 3, 16, 16)
    with pytest.raises(ValueError, match="no text_encoder"):
        class_pipe("a red apple")


def test_decoder_that_sees_the_text(text_decoder):
    ids = torch.tensor([[1, 2, 3]])
    noise = text_decoder.prepare_noise(1, seeded())
    options = {"prior_token_ids": ids, "num_tokens": 3, "noise": noise, "output_type": "pt"}
    pictures = [text_decoder(text, **options).images for text in TEXTS]
    alone = text_decoder(**options).images
    negative = text_decoder(TEXTS[0], negative_prompt=TEXTS[1], **options).images
    for other in (pictures[1], pictures[2], alone, negative):
        assert not torch.equal(pictures[0], other)
    batched = text_decoder(TEXTS, **{**options, "prior_token_ids": ids.repeat(3, 1), "noise": noise.repeat(3, 1, 1, 1)})
    torch.testing.assert_close(batched.images, torch.cat(pictures), atol=1e-4, rtol=1e-3)


def test_prompt_embeds(pipe):
    features = pipe.encode_prompt(TEXTS[:2])
    given = pipe.generate_prior_tokens(
        prompt_embeds=features["encoder_hidden_states"],
        prompt_attention_mask=features["encoder_attention_mask"],
        generator=seeded(),
    )
    assert torch.equal(given, pipe.generate_prior_tokens(TEXTS[:2], generator=seeded()))
    bare = FlexTokPipeline(prior=pipe.prior, transformer=pipe.transformer, vae=pipe.vae)
    negative = pipe.encode_prompt("", allow_empty=True)
    again = bare.generate_prior_tokens(
        prompt_embeds=features["encoder_hidden_states"],
        prompt_attention_mask=features["encoder_attention_mask"],
        negative_prompt_embeds=negative["encoder_hidden_states"],
        negative_prompt_attention_mask=negative["encoder_attention_mask"],
        generator=seeded(),
    )
    assert torch.equal(again, given)


def test_stream_draws_while_the_prior_writes(pipe):
    written = []
    generate = pipe.prior.generate

    def spy(*args, **kwargs):
        output = generate(*args, **kwargs)
        written.append(output.token_ids.shape[1])
        return output

    pipe.prior.generate = spy
    try:
        seen = []
        for output in pipe.stream(TEXTS[0], num_tokens=6, generator=seeded(3), num_inference_steps=2):
            seen.append(output.prior_token_ids.shape[1])
            assert written == seen, "the prior must not run ahead of the pictures"
            assert isinstance(output.images[0], Image.Image)
            assert torch.is_grad_enabled()
    finally:
        del pipe.prior.generate
    assert seen == [1, 2, 4, 6]
    whole = pipe.generate_prior_tokens(TEXTS[0], num_tokens=6, generator=seeded(3))
    assert torch.equal(output.prior_token_ids, whole)
    sizes = [out.prior_token_ids.shape[1] for out in pipe.stream(TEXTS[0], sizes=[3, 8], num_inference_steps=1)]
    assert sizes == [3, 8]


def test_best_of(pipe):
    options = {"num_tokens": 3, "num_inference_steps": 2, "output_type": "pt"}
    every = pipe(TEXTS[:2], num_images_per_prompt=4, generator=seeded(), **options)
    best = pipe(TEXTS[:2], best_of=4, num_images_per_prompt=2, generator=seeded(), **options)
    expected = every.log_probs.view(2, 4).topk(2, 1).values.flatten()
    torch.testing.assert_close(best.log_probs, expected)

    def brightness(images, prompts):
        assert prompts == [TEXTS[0]] * 4 + [TEXTS[1]] * 4
        return [float(image.mean()) for image in images]

    bright = pipe(TEXTS[:2], best_of=4, rank_by=brightness, generator=seeded(), **options).images
    means = every.images.flatten(1).mean(1).view(2, 4).max(1).values
    torch.testing.assert_close(bright.flatten(1).mean(1), means)
    generators = [seeded(i) for i in range(4)]
    assert len(pipe(TEXTS[0], best_of=4, generator=generators, num_tokens=3, num_inference_steps=1).images) == 1


def test_callback_and_progress(pipe):
    seen = []

    def callback(p, step, timestep, kwargs):
        seen.append((step, float(timestep)))
        return {"latents": torch.zeros_like(kwargs["latents"])} if step == 3 else {}

    latents = pipe(TEXTS[0], num_inference_steps=4, callback_on_step_end=callback, output_type="latent").images
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert np.allclose([t for _, t in seen], [1000, 750, 500, 250]) and not latents.any()


def test_guidance_as_a_function_of_time(pipe):
    ids, noise = torch.tensor([[1, 2, 3, 4]]), pipe.prepare_noise(1, seeded())
    options = {"prior_token_ids": ids, "noise": noise, "num_inference_steps": 4, "output_type": "latent"}
    constant = pipe(guidance_scale=3.0, **options).images
    assert torch.equal(pipe(guidance_scale=lambda t: 3.0, **options).images, constant)
    assert not torch.equal(pipe(guidance_scale=lambda t: 3.0 * t, **options).images, constant)
    assert not torch.equal(pipe(guidance_scale=3.0, guidance="cfg", **options).images, constant)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_save_and_load(text_decoder, tmp_path, variant):
    text_decoder.save_pretrained(tmp_path, variant=variant)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {value[0] for value in index.values() if isinstance(value, list)} <= {
        "hf_vistok",
        "diffusers",
        "transformers",
    }
    want = text_decoder(TEXTS[0], generator=seeded(), output_type="pt").images
    for cls in (FlexTokPipeline, VisTokPipeline):
        again = cls.from_pretrained(str(tmp_path), variant=variant)
        again.set_progress_bar_config(disable=True)
        assert type(again) is FlexTokPipeline
        assert torch.equal(again(TEXTS[0], generator=seeded(), output_type="pt").images, want)
    tokenizer = AutoImageTokenizer.from_pretrained(str(tmp_path), variant=variant)
    original = FlexTokModel.from_parts(text_decoder.transformer, text_decoder.vae, text_decoder.image_encoder)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(tokenizer.encode(pixels).token_ids, original.encode(pixels).token_ids)
    processor = AutoImageTokenizerProcessor.from_pretrained(str(tmp_path))
    assert processor(Image.new("RGB", (20, 30)), return_tensors="pt").pixel_values.shape == (1, 3, 16, 16)


def test_image_encoder_is_optional(pipe, tmp_path):
    bare = FlexTokPipeline(prior=pipe.prior, transformer=pipe.transformer, vae=pipe.vae, **text_parts())
    bare.save_pretrained(tmp_path)
    assert not (tmp_path / "image_encoder").exists()
    tokenizer = AutoImageTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer.decode_tokens(torch.tensor([[3, 4]]), num_inference_steps=1).sample.shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="no encoder"):
        tokenizer.encode(torch.zeros(1, 3, 16, 16))


def test_from_two_ids(class_pipe, tmp_path):
    model = FlexTokModel.from_parts(class_pipe.transformer, class_pipe.vae, class_pipe.image_encoder)
    model.save_pretrained(tmp_path / "tokenizer")
    class_pipe.prior.save_pretrained(tmp_path / "prior")
    pipe = FlexTokPipeline.from_pretrained(str(tmp_path / "prior"), image_tokenizer=str(tmp_path / "tokenizer"))
    pipe.set_progress_bar_config(disable=True)
    want = class_pipe(class_labels=2, generator=seeded(), output_type="pt").images
    assert torch.equal(pipe(class_labels=2, generator=seeded(), output_type="pt").images, want)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "Give prompt"),
        ({"prompt": ""}, "empty"),
        ({"prompt": []}, "empty"),
        ({"prompt": 3}, "string"),
        ({"prompt": ["a", None]}, "string"),
        ({"prompt": "apple " * 40}, "at most"),
        ({"prompt": "a", "class_labels": 1}, "one of"),
        ({"prompt": "a", "num_tokens": 0}, "num_tokens"),
        ({"prompt": "a", "num_tokens": 9}, "num_tokens"),
        ({"prompt": "a", "num_tokens": 2.0}, "num_tokens"),
        ({"prompt": ["a", "b"], "generator": [torch.Generator()]}, "generators"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "finite"),
        ({"prompt": "a", "guidance_scale": lambda t: float("inf")}, "finite"),
        ({"prompt": "a", "prior_guidance_scale": float("nan")}, "finite"),
        ({"prompt": "a", "guidance": "zero"}, "guidance must be"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": "a", "output_type": "gif"}, "output_type"),
        ({"prompt": "a", "num_beams": 4}, "num_beams"),
        ({"prompt": "a", "num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"prompt": "a", "num_images_per_prompt": 3, "best_of": 2}, "best_of"),
        ({"prompt": "a", "best_of": 2, "rank_by": "beauty"}, "rank_by"),
        ({"prompt": "a", "negative_prompt": ["a", "b"]}, "negative prompts"),
        ({"prompt": "a", "prior_token_ids": torch.zeros(1, 6, dtype=torch.long), "num_tokens": 4}, "more than"),
        ({"prompt": "a", "prior_token_ids": torch.zeros(3, 2, dtype=torch.long)}, "rows"),
        ({"prior_token_ids": torch.full((1, 2), 96)}, "must be 1 to 8 ids"),
        ({"prior_token_ids": torch.zeros(1, 2)}, "int64"),
        ({"prior_token_ids": torch.zeros(1, 2, dtype=torch.long), "num_tokens": 3}, "num_tokens"),
        ({"prompt": "a", "noise": torch.zeros(1, 4, 4, 4)}, "noise"),
        ({"prompt": "a", "callback_on_step_end_tensor_inputs": ["ids"]}, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_bad_calls(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        pipe(**call)


def test_components_must_fit():
    from diffusers import DDIMScheduler

    tokenizer = image_tokenizer()
    with pytest.raises(ValueError, match="codebook_size"):
        FlexTokPipeline.from_image_tokenizer(tokenizer, prior(codebook_size=95))
    with pytest.raises(ValueError, match="writes 9 tokens"):
        FlexTokPipeline.from_image_tokenizer(tokenizer, prior(num_image_tokens=9))
    with pytest.raises(ValueError, match="FlowMatchEuler"):
        FlexTokPipeline.from_image_tokenizer(tokenizer, prior(), scheduler=DDIMScheduler())
    with pytest.raises(ValueError, match="belong together"):
        FlexTokPipeline.from_image_tokenizer(tokenizer, prior(), tokenizer=text_parts()["tokenizer"])
    with pytest.raises(ValueError, match="FlexTokModel"):
        FlexTokPipeline.from_image_tokenizer(prior(), prior())


def test_offload_order_names_every_model(pipe):
    order = pipe.model_cpu_offload_seq.split("->")
    models = [name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)]
    assert set(models) == set(order) and order.index("prior") < order.index("transformer") < order.index("vae")


@pytest.mark.parametrize("kind", ["wordpiece", "word"])
def test_text_table(tmp_path, kind):
    tokenizer = build_text_tokenizer(vocabulary_of(TEXTS), max_length=12, kind=kind)
    config = TextTableConfig(vocab_size=len(tokenizer), hidden_size=8, static_dim=5, max_length=12)
    encoder = shaken(TextTableModel(config).eval())
    tokens = tokenizer(["A RED apple", "", "applebird"], padding=True, return_tensors="pt")
    output = encoder.encode(**tokens)
    assert output.last_hidden_state.shape[0] == 3 and output.pooler_output.shape == (3, 8)
    assert int(tokens.attention_mask[1].sum()) == 1, "the empty text is one token"
    alone = encoder.encode(**tokenizer(["A RED apple"], return_tensors="pt"))
    torch.testing.assert_close(alone.pooler_output, output.pooler_output[:1])
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("xylophone")["input_ids"])
    assert pieces[0] == "[START]" and len(pieces) > 1
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = TextTableModel.from_pretrained(tmp_path)
    assert torch.equal(again.encode(**tokens).last_hidden_state, output.last_hidden_state)
    assert not again.static.weight.requires_grad
    with pytest.raises(ValueError, match="T from 1 to 12"):
        encoder.encode(torch.ones(1, 13, dtype=torch.long))


def test_grid_variant():
    from .tiny_flextok import GRID, flextok

    torch.manual_seed(0)
    tokenizer = shaken(flextok({"num_registers": 0}, GRID)())
    grid_prior = prior(condition="class", num_classes=3, num_image_tokens=16, positions="sincos_2d", token_grid=(4, 4))
    pipe = FlexTokPipeline.from_image_tokenizer(tokenizer, grid_prior)
    pipe.set_progress_bar_config(disable=True)
    noise = pipe.prepare_noise(1, seeded())
    out = pipe(class_labels=1, noise=noise, output_type="pt")
    sample = tokenizer.decode_tokens(out.prior_token_ids, noise=noise).sample
    torch.testing.assert_close(out.images, (sample / 2 + 0.5).clamp(0, 1))
    with pytest.raises(ValueError, match="no order"):
        pipe(class_labels=1, num_tokens=4)
    with pytest.raises(ValueError, match="nothing to see"):
        pipe.stream(class_labels=1)


def test_half_precision(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    half = FlexTokPipeline.from_pretrained(str(tmp_path), dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.transformer.dtype == torch.bfloat16
    assert half(TEXTS[0], num_tokens=2, num_inference_steps=2, output_type="pt").images.isfinite().all()
    tokenizer = AutoImageTokenizer.from_pretrained(str(tmp_path), dtype=torch.bfloat16)
    ids = tokenizer.encode(torch.rand(1, 3, 16, 16)).token_ids
    assert tokenizer.decode_tokens(ids, num_inference_steps=2).sample.isfinite().all()
