"""AutoregressivePipeline on tiny random weights: classes, texts, both halves apart, ranking, saving, bad input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vistok import (
    AutoImageTokenizer,
    AutoregressivePipeline,
    FlexARConfig,
    FlexARPrior,
    LlamaGenPrior,
    LlamaGenPriorConfig,
    LlamaGenVQConfig,
    LlamaGenVQModel,
    VisTokPipeline,
)

SIZES = {
    "codebook_size": 32,
    "num_image_tokens": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}


def vq(codebook_size: int = 32) -> LlamaGenVQModel:
    torch.manual_seed(0)
    mult = (1, 1, 2)
    return LlamaGenVQModel(
        LlamaGenVQConfig(
            image_size=16,
            hidden_channels=8,
            encoder_channel_mult=mult,
            decoder_channel_mult=mult,
            num_res_blocks=1,
            norm_num_groups=4,
            z_channels=8,
            codebook_size=codebook_size,
            codebook_dim=4,
        )
    ).eval()


def class_prior(**options) -> LlamaGenPrior:
    torch.manual_seed(1)
    model = LlamaGenPrior(LlamaGenPriorConfig(**{**SIZES, **options}, num_classes=5, multiple_of=16)).eval()
    model.set_published_settings(cfg_scale=2.0, top_k=0, temperature=1.0)
    return model


def text_prior(family: str = "llamagen"):
    torch.manual_seed(2)
    if family == "flexar":
        return FlexARPrior(FlexARConfig(**SIZES, condition="text", text_dim=16, text_length=8)).eval()
    text = {"condition": "text", "num_condition_tokens": 8, "caption_dim": 16, "num_classes": 0}
    return LlamaGenPrior(LlamaGenPriorConfig(**SIZES, **text, multiple_of=16)).eval()


def text_parts():
    """A T5 encoder and a tokenizer of words, nothing downloaded."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "<unk>", "a", "red", "apple", "green", "dog"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **names)
    torch.manual_seed(3)
    config = T5Config(vocab_size=len(words), d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4)
    return tokenizer, T5EncoderModel(config).eval()


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def of_class():
    return quiet(AutoregressivePipeline(vq(), class_prior()))


@pytest.fixture(scope="module", params=["llamagen", "flexar"])
def of_text(request):
    tokenizer, encoder = text_parts()
    return quiet(AutoregressivePipeline(vq(), text_prior(request.param), tokenizer, encoder))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pictures_of_classes(of_class):
    output = of_class(class_labels=[1, 2], generator=seeded())
    assert len(output.images) == 2 and output.images[0].size == (16, 16)
    assert isinstance(output.images[0], Image.Image)
    assert output.prior_token_ids.shape == (2, 16) and output.log_probs.shape == (2,)
    again = of_class(class_labels=[1, 2], generator=seeded(), output_type="np", return_dict=False)
    assert torch.equal(again[1], output.prior_token_ids) and again[0].shape == (2, 16, 16, 3)
    other = of_class(class_labels=[1, 2], generator=seeded(1)).prior_token_ids
    assert not torch.equal(other, output.prior_token_ids)


def test_the_two_halves_run_apart(of_class):
    whole = of_class(class_labels=3, generator=seeded(), output_type="pt")
    ids = of_class.generate_prior_tokens(class_labels=3, generator=seeded())
    assert torch.equal(ids, whole.prior_token_ids)
    assert torch.equal(of_class(prior_token_ids=ids, output_type="pt").images, whole.images)
    begun = of_class(class_labels=3, prior_token_ids=ids[:, :5], output_type="latent").images
    assert torch.equal(begun[:, :5], ids[:, :5]) and begun.shape == (1, 16)
    assert of_class.generate_prior_tokens(class_labels=3, num_tokens=4).shape == (1, 4)


def test_pictures_of_texts(of_text):
    output = of_text(["a red apple", "a green dog"], generator=[seeded(0), seeded(1)])
    assert len(output.images) == 2
    alone = of_text("a green dog", generator=seeded(1))
    assert torch.equal(alone.prior_token_ids[0], output.prior_token_ids[1])
    other = of_text("a red apple", generator=seeded(1)).prior_token_ids
    assert not torch.equal(other[0], output.prior_token_ids[1])
    away = of_text("a green dog", negative_prompt="a red apple", generator=seeded(1)).prior_token_ids
    assert not torch.equal(away, alone.prior_token_ids)


def test_ready_made_features(of_text):
    features = of_text.encode_prompt("a red apple")
    given = {"prompt_embeds": features["encoder_hidden_states"]}
    given["prompt_attention_mask"] = features["encoder_attention_mask"]
    first = of_text(**given, generator=seeded()).prior_token_ids
    assert torch.equal(first, of_text("a red apple", generator=seeded()).prior_token_ids)


def test_guidance_scale_and_published_settings(of_class):
    ids = [
        of_class.generate_prior_tokens(class_labels=1, generator=seeded(), **options)
        for options in ({}, {"guidance_scale": 2.0}, {"guidance_scale": 6.0}, {"prior_guidance_scale": 2.0})
    ]
    assert torch.equal(ids[0], ids[1]) and torch.equal(ids[0], ids[3]) and not torch.equal(ids[0], ids[2])
    scheduled = of_class.generate_prior_tokens(class_labels=1, generator=seeded(), guidance_scale=lambda i, n: 2.0)
    assert torch.equal(ids[0], scheduled)


def test_the_best_of_several(of_class):
    every = of_class(class_labels=[1, 2], num_images_per_prompt=4, generator=seeded())
    ranked = of_class(class_labels=[1, 2], best_of=4, num_images_per_prompt=2, generator=seeded())
    expected = every.log_probs.view(2, 4).topk(2, 1).values.flatten()
    assert len(every.images) == 8 and len(ranked.images) == 4
    torch.testing.assert_close(ranked.log_probs, expected)

    def darkest(images, labels):
        assert labels == [1, 1, 1, 2, 2, 2]
        return [-float(np.asarray(image).mean()) for image in images]

    dark = of_class(class_labels=[1, 2], best_of=3, rank_by=darkest, generator=seeded())
    every = of_class(class_labels=[1, 2], num_images_per_prompt=3, generator=seeded())
    means = [np.asarray(image).mean() for image in every.images]
    assert [np.asarray(image).mean() for image in dark.images] == [min(means[:3]), min(means[3:])]


def test_callback_and_stream(of_class):
    seen = []

    def callback(pipeline, step, timestep, values):
        seen.append(values["token_ids"])
        return {}

    output = of_class(class_labels=[0, 1], generator=seeded(), callback_on_step_end=callback)
    assert len(seen) == 16 and torch.equal(seen[-1], output.prior_token_ids)
    streamed = list(of_class.stream(class_labels=[0, 1], generator=seeded()))
    assert [ids.shape[1] for ids in streamed] == list(range(1, 17))
    assert torch.equal(streamed[-1], output.prior_token_ids)


def test_save_and_load(of_text, tmp_path):
    of_text.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["image_tokenizer"] == ["hf_vistok", "LlamaGenVQModel"]
    assert {value[0] for value in index.values() if isinstance(value, list)} <= {
        "hf_vistok",
        "transformers",
        "diffusers",
    }
    again = quiet(VisTokPipeline.from_pretrained(str(tmp_path)))
    assert isinstance(again, AutoregressivePipeline)
    one, other = (pipe("a red apple", generator=seeded(), output_type="pt") for pipe in (of_text, again))
    assert torch.equal(one.prior_token_ids, other.prior_token_ids)
    torch.testing.assert_close(one.images, other.images)


def test_from_two_sources(of_class, tmp_path):
    of_class.image_tokenizer.save_pretrained(tmp_path / "vq")
    of_class.prior.save_pretrained(tmp_path / "prior")
    loaded = AutoregressivePipeline.from_pretrained(str(tmp_path / "prior"), image_tokenizer=str(tmp_path / "vq"))
    ids = quiet(loaded).generate_prior_tokens(class_labels=1, generator=seeded())
    assert torch.equal(ids, of_class.generate_prior_tokens(class_labels=1, generator=seeded()))
    assert AutoImageTokenizer.from_pretrained(str(tmp_path / "vq")).codebook_size == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give prompt"),
        ({"class_labels": 1, "prompt": "a dog"}, "one of"),
        ({"class_labels": 9}, r"\[0, 4\]"),
        ({"prompt": "a dog"}, "no text_encoder"),
        ({"class_labels": 1, "num_tokens": 4}, "a grid is drawn from all"),
        ({"class_labels": 1, "num_tokens": 99, "output_type": "latent"}, "num_tokens"),
        ({"class_labels": 1, "guidance_scale": float("nan")}, "finite"),
        ({"class_labels": 1, "num_beams": 3}, "num_beams"),
        ({"class_labels": [1, 2], "generator": [torch.Generator()]}, "generators"),
        ({"class_labels": 1, "output_type": "gif"}, "output_type"),
        ({"class_labels": 1, "num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"class_labels": 1, "best_of": 2, "num_images_per_prompt": 3}, "best_of"),
        ({"class_labels": 1, "best_of": 2, "rank_by": "clip"}, "rank_by"),
        ({"prior_token_ids": torch.full((1, 16), 32)}, r"\[0, 31\]"),
        ({"class_labels": 1, "prior_token_ids": torch.zeros(1, 17, dtype=torch.long)}, "more than num_tokens"),
        ({"class_labels": 1, "callback_on_step_end_tensor_inputs": ["latents"]}, "latents"),
    ],
)
def test_bad_input_of_class_pipelines(of_class, options, message):
    with pytest.raises(ValueError, match=message):
        of_class(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": []}, "empty"),
        ({"prompt": 3}, "string"),
        ({"prompt": ["a dog", None]}, "string"),
        ({"prompt": "a " * 20}, "at most 8"),
        ({"prompt": ["a dog", "a dog"], "negative_prompt": ["a", "a", "a"]}, "negative prompts"),
        ({"prompt": ["a dog", "a dog"], "generator": [torch.Generator()]}, "generators"),
        ({"class_labels": 1}, "not conditioned on classes"),
    ],
)
def test_bad_input_of_text_pipelines(of_text, options, message):
    with pytest.raises(ValueError, match=message):
        of_text(**options)


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="codebook_size"):
        AutoregressivePipeline(vq(codebook_size=64), class_prior())
    with pytest.raises(ValueError, match="autoregressive prior"):
        AutoregressivePipeline(vq(), vq())
    with pytest.raises(ValueError, match="belong together"):
        AutoregressivePipeline(vq(), class_prior(), tokenizer=text_parts()[0])


def test_adm_centre_crop():
    from hf_vistok import AdmCropProcessor

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (150, 201, 3), dtype=np.uint8))
    for size in (32, 100):
        expected = picture
        while min(expected.size) >= 2 * size:
            expected = expected.resize((expected.width // 2, expected.height // 2), Image.Resampling.BOX)
        scale = size / min(expected.size)
        expected = expected.resize(tuple(round(side * scale) for side in expected.size), Image.Resampling.BICUBIC)
        array = np.asarray(expected)
        top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
        pixels = AdmCropProcessor.for_size(size, (-1.0, 1.0))(picture, return_tensors="np")["pixel_values"][0]
        array = array[top : top + size, left : left + size] / 127.5 - 1
        np.testing.assert_allclose(np.moveaxis(pixels, 0, -1), array, atol=1e-5)
