"""UniTok and MedITok: texts, causal projections, the head's cache, the authors' pickle, the squeezed picture."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import hf_vistok
from hf_vistok import AutoImageTokenizer, AutoregressivePipeline
from hf_vistok.modeling.layers.attention_projection import ProjectionAttention
from hf_vistok.modeling.meditok.image_processing_meditok import MedITokProcessor

from .common import shaken
from .parity.conftest import ROOT
from .tiny import TINY
from .tiny_unitok import captions, prior

PRIORS = ["unitok-prior", "unitok-prior-codes", "meditok-prior"]


def tiny(name):
    torch.manual_seed(0)
    return shaken(TINY[name]())


# ---------------------------------------------------------------------- the prior


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_cache_changes_nothing(name, cfg_scale):
    model = tiny(name)
    greedy = {"temperature": 0, "cfg_scale": cfg_scale}
    expected = model.generate([1, 2], **greedy, cache=False)
    for cache in ("dynamic", "static"):
        found = model.generate([1, 2], **greedy, cache=cache)
        assert torch.equal(found.token_ids, expected.token_ids)
        torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-4, rtol=1e-4)
        first = expected.token_ids[:, :2]
        again = model.generate([1, 2], **greedy, cache=cache, prior_token_ids=first).token_ids
        assert torch.equal(again, expected.token_ids)


def test_each_id_is_given_those_before_it():
    """What the head writes is what one pass over the whole sequence says of the same ids."""
    model = tiny("unitok-prior")
    ids = model.generate([1, 2], temperature=0, cfg_scale=1.0).token_ids
    with torch.no_grad():
        assert torch.equal(model(ids, torch.tensor([1, 2])).logits.argmax(-1), ids)


def test_guidance_stops_with_the_interval():
    model, options = tiny("unitok-prior"), {"temperature": 0, "cfg_scale": 30.0}
    plain = model.generate([1], temperature=0, cfg_scale=1.0).token_ids
    guided, short = (model.generate([1], **options, cfg_interval=i).token_ids for i in (-1, 0))
    assert torch.equal(short[:, :2], guided[:, :2]) and not torch.equal(guided, plain)


@pytest.mark.parametrize("name", ["unitok", "meditok"])
def test_pipeline(name, tmp_path):
    pipe = AutoregressivePipeline(tiny(name), tiny(f"{name}-prior"))
    pipe.set_progress_bar_config(disable=True)
    seen = []

    def run(pipe, scale, **options):
        generator = torch.Generator().manual_seed(0)
        return pipe(class_labels=[1, 2], guidance_scale=scale, generator=generator, output_type="pt", **options)

    def on_step(pipe, step, time, values):
        seen.append(values["token_ids"].shape[1])
        return {}

    output = run(pipe, 3.0, callback_on_step_end=on_step)
    assert seen == [1, 2, 3, 4] and output.prior_token_ids.shape == (2, 4, 4)
    assert output.images.shape == (2, 3, 32, 32)
    assert not torch.equal(run(pipe, 1.0).prior_token_ids, run(pipe, 30.0).prior_token_ids)
    pipe.save_pretrained(tmp_path)
    loaded = AutoregressivePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(run(loaded, 3.0).images, output.images)
    assert type(loaded.image_processor) is type(pipe.image_processor)


def test_overfits_one_batch():
    torch.manual_seed(0)
    model = prior(condition_dropout=0.0, token_dropout=0.0, residual_dropout=0.0, ffn_dropout=0.0).train()
    ids = torch.randint(16, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(ids, torch.tensor([0, 1])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert torch.equal(model.eval().generate([0, 1], temperature=0, cfg_scale=1.0).token_ids, ids)


# ---------------------------------------------------------------------- pictures and texts


def test_similarity():
    model, texts = tiny("unitok"), captions(3)["input_ids"]
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        images, words = model.get_image_features(pixels), model.get_text_features(texts)
        scores = model.similarity(pixels, texts)
        assert scores.shape == (2, 3) and images.shape == (2, 24) and words.shape == (3, 24)
        torch.testing.assert_close(images.norm(dim=-1), torch.ones(2))
        torch.testing.assert_close(scores, model.logit_scale.exp() * images @ words.t())
        torch.testing.assert_close(model.decode(model.encode(pixels).latents).pooled, images)
        longer = torch.nn.functional.pad(texts, (0, 2))
        torch.testing.assert_close(model.get_text_features(longer), words)  # padding behind the end token is unread
    for bad in (texts[0], torch.ones(1, 9, dtype=torch.long), texts.float()):
        with pytest.raises(ValueError, match="input_ids"):
            model.get_text_features(bad)


def test_what_a_checkpoint_lacks():
    texts, pixels = captions(2)["input_ids"], torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match="no text tower"):
        tiny("meditok").get_text_features(texts)
    for name in ("meditok-unaligned", "unitok-linear"):
        model = tiny(name)
        with pytest.raises(ValueError, match="no embeddings"):
            model.get_image_features(pixels)
        assert model.decode(model.encode(pixels).latents).pooled is None
        with pytest.raises(ValueError, match="no embeddings"):
            model(pixels, teacher_features=torch.zeros(2, 24))
    with pytest.raises(ValueError, match="not both"):
        tiny("unitok")(pixels, input_ids=texts, teacher_features=torch.zeros(2, 24))


@pytest.mark.parametrize("name", ["unitok", "meditok"])
def test_losses_have_the_paper_s_weights(name):
    model = tiny(name)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    output = model(pixels, **TINY[name].kwargs("forward", 2))
    assert {"l1_loss", "l2_loss", "commitment_loss", "codebook_loss", "contrastive_loss"} == set(output.losses)
    torch.testing.assert_close(output.losses["l1_loss"], 0.2 * (output.sample - pixels).abs().mean())
    torch.testing.assert_close(output.losses["commitment_loss"], 0.25 * output.losses["codebook_loss"])
    model.config.contrastive_weight = 0.1
    weaker = model(pixels, **TINY[name].kwargs("forward", 2)).losses["contrastive_loss"]
    torch.testing.assert_close(weaker, 0.1 * output.losses["contrastive_loss"])


# ---------------------------------------------------------------------- projections


@pytest.mark.parametrize("name", ["unitok", "meditok"])
def test_only_meditok_looks_back(name):
    """A later token changes what the codes of earlier ones decode to through a full projection, not a causal one."""
    model = tiny(name)
    latents = torch.randn(1, 4, model.latent_dim)
    changed = latents.clone()
    changed[:, -1] += 1.0
    with torch.no_grad():
        before, after = (model.decode(x).features[:, :-1] for x in (latents, changed))
    assert torch.equal(before, after) == (name == "meditok")


def test_heads_are_averaged_on_the_way_down():
    down = ProjectionAttention(12, 4, 3)
    x = torch.randn(2, 1, 12)  # one token: it sees itself alone
    expected = down.proj(down.v(x).unflatten(-1, (3, 4)).mean(2))
    torch.testing.assert_close(down(x), expected)
    pooled = ProjectionAttention(12, 3, 2)  # heads of 6 for a width of 3
    expected = pooled.proj(pooled.v(x).unflatten(-1, (2, 6)).mean(2).unflatten(-1, (3, 2)).mean(-1))
    torch.testing.assert_close(pooled(x), expected)
    with pytest.raises(ValueError, match="multiple"):
        ProjectionAttention(10, 4, 3)


# ---------------------------------------------------------------------- files and pictures


def test_the_published_layouts(tmp_path):
    """UniTok: tensors under two keys, arguments beside them. MedITok: plain tensors, and a configuration."""
    folder = ROOT / "unitok" / "tokenizer-attn"
    if not folder.is_dir():
        pytest.skip(f"no reference at {ROOT}")
    state, arguments = (
        load_file(folder / "original.safetensors"),
        json.loads((folder / "original_config.json").read_text()),
    )
    path, size = tmp_path / "unitok_tokenizer.pth", arguments["img_size"]
    torch.save({"trainer": {"unitok": state, "disc": {"x": torch.zeros(1)}}, "args": {**arguments, "lr": 5e-4}}, path)
    model = AutoImageTokenizer.from_pretrained(str(path))
    assert type(model) is hf_vistok.UniTokModel and model.config.image_size == size
    processor = hf_vistok.AutoImageTokenizerProcessor.from_pretrained(str(path))
    assert processor(Image.new("RGB", (50, 40)), return_tensors="pt").pixel_values.shape == (1, 3, size, size)
    (tmp_path / "config.json").write_text(json.dumps({**arguments, "drop_alignment": False}))
    torch.save({k: v for k, v in state.items() if not k.startswith("text_encoder.")}, tmp_path / "meditok.pth")
    assert type(AutoImageTokenizer.from_pretrained(tmp_path, filename="meditok.pth")) is hf_vistok.MedITokModel
    again = hf_vistok.AutoImageTokenizerProcessor.from_pretrained(tmp_path, filename="meditok.pth")
    assert type(again) is MedITokProcessor


def test_pictures_are_squeezed():
    """The whole picture is there, of whatever shape; a picture of the right size is left alone."""
    processor = MedITokProcessor.for_size(32)
    picture = Image.new("RGB", (96, 24))
    picture.paste((255, 255, 255), (48, 0, 96, 24))
    pixels = processor(picture, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 32, 32) and pixels.min() == -1 and pixels.max() == 1
    expected = picture.resize((32, 32), Image.Resampling.LANCZOS)
    assert list(processor.postprocess(pixels)[0].getdata()) == list(expected.getdata())
    floats = torch.rand(3, 32, 32)
    kept = processor(floats, return_tensors="pt").pixel_values
    torch.testing.assert_close(kept[0], floats * 2 - 1, atol=1e-5, rtol=0)
