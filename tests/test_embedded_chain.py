"""What hf-vistok/emoji-64, the text-to-image chain inside the package, promises."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vistok import AutoImageTokenizer, FlexTokPipeline
from hf_vistok.evaluation.reconstruction import doubling_lengths, reconstruction_scores, to_pixels
from hf_vistok.hub import embedded_checkpoints
from hf_vistok.modeling.layers.vae import vae_decode

NAME = "hf-vistok/emoji-64"
HELD_OUT = Path(__file__).parent / "data" / "emoji_held_out_names.webp"  # 16 pictures a row, no name in training
COUNT = 208

pytestmark = pytest.mark.skipif(NAME not in embedded_checkpoints(), reason=f"{NAME} is not in this package")


@pytest.fixture(scope="module")
def pipe():
    pipe = FlexTokPipeline.from_pretrained(NAME)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def tokenizer():
    return AutoImageTokenizer.from_pretrained(NAME).eval()


@pytest.fixture(scope="module")
def held_out():
    sheet = np.asarray(Image.open(HELD_OUT).convert("RGB"))
    rows, columns = sheet.shape[0] // 64, sheet.shape[1] // 64
    tiles = sheet.reshape(rows, 64, columns, 64, 3).swapaxes(1, 2).reshape(-1, 64, 64, 3)
    return tiles[:COUNT]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_error_falls_with_each_doubling_of_tokens(tokenizer, held_out):
    config = tokenizer.transformer.config
    noise = torch.randn(config.in_channels, config.sample_size, config.sample_size, generator=seeded())
    scores = reconstruction_scores(tokenizer, held_out, decode_kwargs={"shared_noise": noise})
    assert [score.num_tokens for score in scores] == doubling_lengths(tokenizer)
    floor = vae_error(tokenizer, held_out)
    print("\n".join(f"{score.num_tokens:4} tokens: mean squared error {score.mse:.5f}" for score in scores))
    print(f"the VAE alone: {floor:.5f}")
    errors = [score.mse for score in scores]
    assert all(more < less for less, more in zip(errors, errors[1:], strict=False)), errors
    assert floor < errors[-1]


@torch.no_grad()
def vae_error(tokenizer, images):
    pixels = to_pixels(images)
    latents = tokenizer.vae_latents(tokenizer.normalize_pixels(pixels))
    again = tokenizer.denormalize_pixels(vae_decode(tokenizer.vae, latents)).clamp(0, 1)
    return float((again - pixels).square().mean())


def test_the_same_seed_gives_the_same_picture(pipe):
    first, again, other = (np.asarray(pipe("a red apple", generator=seeded(s)).images[0]) for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_an_apple_is_red_and_a_heart_is_blue(pipe):
    for prompt, channel in (("red apple", 0), ("blue heart", 2)):
        pictures = pipe(prompt, num_images_per_prompt=4, generator=seeded(), output_type="np").images
        drawn = pictures[pictures.min(-1) < 0.7]  # what is not the white ground
        assert drawn.mean(0).argmax() == channel, prompt


def test_parts_belong_together(pipe, tokenizer, held_out):
    assert pipe.prior.codebook_size == tokenizer.codebook_size and pipe.prior.num_tokens <= tokenizer.num_tokens
    ids = tokenizer.encode(tokenizer.normalize_pixels(to_pixels(held_out[:2]))).token_ids
    assert pipe(prior_token_ids=ids, output_type="pt", generator=seeded()).images.shape == (2, 3, 64, 64)


def test_stream_sharpens(pipe):
    counts = [out.prior_token_ids.shape[1] for out in pipe.stream("pizza", generator=seeded(), num_inference_steps=2)]
    assert counts == [1, 2, 4, 8, 16]


@pytest.mark.slow
def test_a_fresh_process_draws_within_half_a_minute(tmp_path):
    draw = f"P.from_pretrained({NAME!r})('a red apple').images[0].save('a.png')"
    code = f"from hf_vistok import FlexTokPipeline as P; {draw}"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=30)
    assert Image.open(tmp_path / "a.png").size == (64, 64)
