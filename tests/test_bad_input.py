"""Bad input, and unusual but valid input: errors name what was expected and what was found, and leave no mess."""

import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_vistok import (
    AutoImagePrior,
    AutoImageTokenizer,
    AutoImageTokenizerProcessor,
    ImageTokenizerProcessor,
    MaskGitPipeline,
)
from hf_vistok.cli.main import main
from hf_vistok.conversion import ConversionError, from_original

from . import folders


@pytest.fixture(scope="module")
def model():
    return folders.one_d_piece()


@pytest.fixture(scope="module")
def fixed():
    return folders.titok()


@pytest.fixture(scope="module")
def kl():
    return folders.titok(quantizer="kl")


@pytest.fixture
def processor():
    return ImageTokenizerProcessor.for_size(32)


def raises(*words: str, kind: type[Exception] = ValueError):
    """An error of a kind whose message holds all words, in this order."""
    return pytest.raises(kind, match="(?s)" + ".*".join(re.escape(word) for word in words))


def leftovers(folder) -> list[str]:
    return sorted(name for name in os.listdir(folder) if ".part" in name or ".old" in name or name.startswith("."))


# ---------------------------------------------------------------------- ids

IDS = torch.zeros(2, 8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (IDS + 64, ("[0, 63]", "64 to 64")),
        (IDS - 1, ("[0, 63]", "-1 to -1")),
        (IDS[0], ("shape (B, N)", "(8,)")),
        (IDS[..., None], ("shape (B, N)", "(2, 8, 1)")),
        (IDS[:0], ("shape (B, N)", "(0, 8)")),
        (IDS[:, :0], ("shape (B, N)", "(2, 0)")),
        (IDS.float(), ("int64", "torch.float32")),
        (IDS.bool(), ("int64", "torch.bool")),
        ([[0] * 8], ("int64", "list")),
        (None, ("int64", "NoneType")),
        (torch.zeros(1, 9, dtype=torch.int64), ("1 to 8", "9")),
    ],
)
def test_wrong_ids(model, ids, words):
    with raises("OneDPieceModel", *words):
        model.decode_tokens(ids)


def test_wrong_number_of_ids_of_a_fixed_length(fixed):
    with raises("TiTokModel", "expected 8 tokens", "got 7"):
        fixed.decode_tokens(IDS[:, :7])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32])
def test_ids_of_every_integer_type(model, dtype):
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.decode_tokens(ids.to(dtype)).sample, model.decode_tokens(ids).sample)
    with raises("[0, 63]", "70"):
        model.decode_tokens(torch.full((1, 8), 70).to(dtype))


def test_ids_for_a_continuous_tokenizer(kl):
    with raises("TiTokModel", "continuous", "decode(latents)"):
        kl.decode_tokens(IDS)


def test_prior_ids_and_labels():
    prior = folders.maskgit_prior()
    for labels, words in (([5], "[0, 4]"), ([-1], "[0, 4]"), ([1.5], "integers"), ([[1]], "shape (B,)"), ([], "(B,)")):
        with raises("class_labels", words):
            prior.generate(labels)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(2, 8), ("(2, 8)", "torch.float32")),
        (torch.ones(2, 7, dtype=torch.bool), ("(2, 8)", "(2, 7)")),
    ],
)
def test_wrong_masks(model, mask, words):
    with raises("token_mask must be bool", *words):
        model.decode_tokens(IDS, mask)


@pytest.mark.parametrize(
    ("latents", "words"),
    [
        (torch.zeros(1, 8, 5), ("(B, N, 4)", "(1, 8, 5)")),
        (torch.zeros(8, 4), ("(B, N, 4)", "(8, 4)")),
        (torch.zeros(1, 9, 4), ("1 to 8", "9")),
        (torch.zeros(1, 8, 4, dtype=torch.int64), ("float latents", "int64")),
    ],
)
def test_wrong_latents(model, latents, words):
    with raises("OneDPieceModel", *words):
        model.decode(latents)


# ---------------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (torch.zeros(1, 4, 32, 32), ("(B, 3, H, W)", "(1, 4, 32, 32)")),
        (torch.zeros(1, 1, 32, 32), ("(B, 3, H, W)", "(1, 1, 32, 32)")),
        (torch.zeros(3, 32, 32), ("(B, 3, H, W)", "(3, 32, 32)")),
        (torch.zeros(0, 3, 32, 32), ("empty batch", "(0, 3, 32, 32)")),
        (torch.zeros(1, 3, 32, 40), ("32 x 32", "32 x 40", "processor")),
        (torch.zeros(1, 3, 31, 31), ("32 x 32", "31 x 31")),
        (torch.full((1, 3, 32, 32), float("nan")), ("NaN",)),
        (torch.full((1, 3, 32, 32), float("inf")), ("infinities",)),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ("float tensor", "torch.uint8")),
        (np.zeros((1, 3, 32, 32), np.float32), ("float tensor", "float32")),
        ("picture.png", ("float tensor", "str")),
    ],
)
def test_wrong_pixels(model, pixels, words):
    with raises("OneDPieceModel", *words):
        model.encode(pixels)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, ("1 to 8", "0")),
        (9, ("1 to 8", "9")),
        (True, ("1 to 8", "True")),
        (2.0, ("1 to 8", "2.0")),
        (torch.tensor([1, 2, 3]), ("(2,)", "(3,)")),
        (torch.tensor([1.0, 2.0]), ("integers", "float32")),
        (torch.tensor([1, 9]), ("1 to 8", "9")),
    ],
)
def test_wrong_num_tokens(model, count, words):
    with raises(*words):
        model.encode(torch.zeros(2, 3, 32, 32), count)


def test_unknown_options_are_refused_by_name(model):
    with raises("OneDPieceModel.encode", "sharpness"):
        model.encode(torch.zeros(1, 3, 32, 32), sharpness=2)
    with raises("OneDPieceModel.decode", "guidance_scale"):
        model.decode_tokens(IDS, guidance_scale=2.0)
    with raises("posterior"):
        model.encode(torch.zeros(1, 3, 32, 32), sample_posterior=True)


# ---------------------------------------------------------------------- pictures that are none


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"x" * 40, b"GIF89a"]
)
def test_a_file_that_is_no_picture(processor, tmp_path, content):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    for source in (str(path), path, [str(path)]):
        with raises("picture.png", "not a picture"):
            processor(source, return_tensors="pt")


def test_a_truncated_picture(processor, tmp_path):
    for name in ("whole.png", "whole.jpg", "whole.webp", "whole.gif"):
        whole, cut = tmp_path / name, tmp_path / f"cut_{name}"
        Image.effect_noise((64, 64), 50).convert("RGB").save(whole)
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with raises(f"cut_{name}", "not a picture"):
            processor(str(cut), return_tensors="pt")


def test_a_missing_picture(processor, tmp_path):
    with raises("No such picture", "nowhere.png"):
        processor(str(tmp_path / "nowhere.png"), return_tensors="pt")
    with raises("No such picture"):
        processor(str(tmp_path), return_tensors="pt")


@pytest.mark.parametrize("value", [None, 3, {"a": 1}, b"bytes", [None], [[]], [3]])
def test_what_is_no_picture_at_all(processor, value):
    with pytest.raises((ValueError, TypeError)) as caught:
        processor(value, return_tensors="pt")
    assert str(caught.value)


def test_an_empty_list(processor):
    with raises("empty list"):
        processor([], return_tensors="pt")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((8, 8, 3), np.nan, np.float32), ("[0, 1]", "nan")),
        (np.full((8, 8, 3), 255.0, np.float32), ("[0, 1]", "255")),
        (np.full((8, 8, 3), -1.0, np.float32), ("[0, 1]", "-1")),
        (np.zeros((8, 8, 3), np.uint16), ("16-bit", "uint8")),
        (np.zeros((8, 8, 2), np.uint8), ("channel",)),
        (np.zeros((8, 8, 7), np.uint8), ("channel",)),
    ],
)
def test_arrays_of_a_wrong_kind(processor, array, words):
    with raises(*words):
        processor(array, return_tensors="pt")


def test_a_decompression_bomb(processor, tmp_path):
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (30000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    body = zlib.compress(b"\0" * 1000)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    with raises("bomb.png"):
        processor(str(path), return_tensors="pt")
    small = ImageTokenizerProcessor.for_size(32, max_pixels=100)
    with raises("11 x 10", "100", "max_pixels"):
        small(Image.new("RGB", (11, 10)), return_tensors="pt")
    Image.new("RGB", (11, 10)).save(tmp_path / "small.png")
    with raises("11 x 10", "100"):
        small(str(tmp_path / "small.png"), return_tensors="pt")


def test_wrong_output_type(processor):
    with raises('"pil"', "jpeg"):
        processor.postprocess(torch.zeros(1, 3, 32, 32), "jpeg")


# ---------------------------------------------------------------------- unusual but valid pictures


def colour(processor, image) -> list[int]:
    """Centre colour in 0..255 after the processor."""
    values = processor(image, return_tensors="pt").pixel_values
    assert values.shape == (1, 3, 32, 32) and values.dtype == torch.float32
    return [round(float(value) * 255) for value in values[0, :, 16, 16]]


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(
    ("mode", "value", "suffix", "expected"),
    [
        ("L", 100, "png", [100, 100, 100]),
        ("1", 1, "png", [255, 255, 255]),
        ("LA", (100, 0), "png", [255, 255, 255]),
        ("LA", (100, 255), "png", [100, 100, 100]),
        ("RGBA", (255, 0, 0, 0), "png", [255, 255, 255]),
        ("RGBA", (255, 0, 0, 255), "png", [255, 0, 0]),
        ("RGBA", (255, 0, 0, 128), "png", [255, 127, 127]),
        ("CMYK", (0, 255, 255, 0), "tif", [255, 0, 0]),
        ("I;16", 40000, "png", [156, 156, 156]),
        ("I;16", 65535, "tif", [255, 255, 255]),
    ],
)
def test_unusual_modes(processor, tmp_path, mode, value, suffix, expected, as_file):
    image = Image.new(mode, (40, 36), value)
    source = image
    if as_file:
        source = str(tmp_path / f"picture.{suffix}")
        image.save(source)
    assert all(abs(a - b) <= 1 for a, b in zip(colour(processor, source), expected, strict=True))


@pytest.mark.parametrize("as_file", [False, True])
def test_palettes(processor, tmp_path, as_file):
    image = Image.new("P", (40, 36), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    opaque, clear = str(tmp_path / "opaque.png"), str(tmp_path / "clear.png")
    image.save(opaque)
    image.save(clear, transparency=1)
    for path, expected in ((opaque, [10, 200, 30]), (clear, [255, 255, 255])):
        assert colour(processor, path if as_file else Image.open(path)) == expected


@pytest.mark.parametrize("as_file", [False, True])
def test_exif_orientation(processor, tmp_path, as_file):
    image = Image.new("RGB", (32, 32), "red")
    image.paste("blue", (0, 0, 32, 16))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: what is up goes right
    path = str(tmp_path / "turned.png")
    image.save(path, exif=exif)
    values = processor(path if as_file else Image.open(path), return_tensors="pt").pixel_values[0]
    assert values[2, 16, 28] > 0.9 and values[0, 16, 4] > 0.9  # blue on the right, red on the left


def test_animations_and_tiny_pictures(processor, tmp_path):
    path = str(tmp_path / "moves.gif")
    frames = [Image.new("RGB", (40, 40), name) for name in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert colour(processor, path) == [255, 0, 0]
    assert colour(processor, Image.new("RGB", (1, 1), (1, 2, 3))) == [1, 2, 3]
    assert colour(processor, Image.new("RGB", (300, 2), (1, 2, 3))) == [1, 2, 3]


@pytest.mark.parametrize("layout", ["HWC", "CHW", "HW", "HWA"])
def test_arrays(processor, layout):
    shape = {"HWC": (40, 36, 3), "CHW": (3, 40, 36), "HW": (40, 36), "HWA": (40, 36, 4)}[layout]
    array = np.full(shape, 100, np.uint8)
    if layout == "HWA":
        array[..., 3] = 255
    assert colour(processor, array) == [100] * 3
    if layout != "HWA":
        assert colour(processor, array.astype(np.float32) / 255) == [100] * 3
        assert colour(processor, torch.from_numpy(array)) == [100] * 3


def test_a_batch_of_unequal_pictures(processor):
    pictures = [Image.new("RGB", (40, 90)), Image.new("L", (64, 20)), Image.new("RGBA", (32, 32))]
    assert processor(pictures, return_tensors="pt").pixel_values.shape == (3, 3, 32, 32)


# ---------------------------------------------------------------------- checkpoints


@pytest.fixture
def original(tmp_path):
    return folders.save_titok_original(tmp_path / "original")


def change(folder, edit) -> None:
    """Rewrites the weights of a folder after `edit(state)`."""
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")


def test_the_original_is_right(original):
    assert type(AutoImageTokenizer.from_pretrained(original)).__name__ == "TiTokModel"


def test_unknown_layout(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_dim": 3, "depth": 4}')
    for loader in (AutoImageTokenizer, AutoImageTokenizerProcessor, AutoImagePrior):
        with raises("depth", "no known layout", "titok"):
            loader.from_pretrained(tmp_path)


@pytest.mark.parametrize(("text", "words"), [("{", "not valid JSON"), ("[1]", "JSON object"), ("", "not valid JSON")])
def test_a_broken_configuration(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with raises("config.json", words):
        AutoImageTokenizer.from_pretrained(tmp_path)


def test_an_unknown_model_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with raises("model_type", "no known layout"):
        AutoImageTokenizer.from_pretrained(tmp_path)


def test_no_checkpoint_at_all(tmp_path):
    with raises("no configuration", "preset="):
        AutoImageTokenizer.from_pretrained(tmp_path)
    with raises("nowhere", kind=OSError):
        AutoImageTokenizer.from_pretrained(tmp_path / "nowhere")


def test_no_weights(original):
    (original / "model.safetensors").unlink()
    with raises("no weights", "model.safetensors", "filename="):
        AutoImageTokenizer.from_pretrained(original)
    with raises("no weights", "other.bin"):
        AutoImageTokenizer.from_pretrained(original, filename="other.bin")


def test_missing_keys(original):
    change(original, lambda state: [state.pop(name) for name in ("latent_tokens", "decoder.conv_out.bias")])
    with raises("titok/tokenizer", "missing (2)", "conv_out.bias", "encoder.latent_tokens", kind=ConversionError):
        AutoImageTokenizer.from_pretrained(original)


def test_extra_keys(original):
    change(original, lambda state: state.update({"head.extra.weight": torch.zeros(2)}))
    with raises("left over (1)", "head.extra.weight", kind=ConversionError):
        AutoImageTokenizer.from_pretrained(original)


def test_misshapen_keys(original):
    change(original, lambda state: state.update({"quantize.embedding.weight": torch.zeros(63, 4)}))
    with raises("of another shape (1)", "[63, 4]", "expected [64, 4]", kind=ConversionError):
        AutoImageTokenizer.from_pretrained(original)


def test_many_wrong_keys_are_not_all_listed(original):
    change(original, lambda state: state.update({f"junk.{i}": torch.zeros(1) for i in range(500)}))
    with pytest.raises(ConversionError) as caught:
        AutoImageTokenizer.from_pretrained(original)
    assert "left over (500)" in str(caught.value) and len(str(caught.value)) < 1500


def test_a_checkpoint_of_another_system(original):
    """Weights of the tokenizer under the configuration of another one."""
    config = folders.titok_original_config()
    config["model"]["type"] = "one_d_piece"
    config["model"]["vq_model"]["finetune_decoder"] = True
    config["model"]["vq_model"].pop("is_legacy")
    (original / "config.json").write_text(json.dumps(config))
    with raises("one_d_piece", "missing", "pixel_decoder", kind=ConversionError):
        AutoImageTokenizer.from_pretrained(original)
    state = folders.titok_original_state()
    with raises("No adapter", "nonsense", "titok", kind=ConversionError):
        from_original("nonsense", "tokenizer", config, state)
    with raises("titok", "depth_head", kind=ConversionError):
        from_original("titok", "depth_head", config, state)


def test_a_checkpoint_of_another_kind(original, tmp_path):
    prior, ours = folders.save_prior_original(tmp_path / "prior"), folders.save_tokenizer(tmp_path / "ours")
    saved = folders.save_prior(tmp_path / "saved")
    with raises("masked_prior", "expected tokenizer"):
        AutoImageTokenizer.from_pretrained(prior)
    with raises("tokenizer", "expected ar_prior or masked_prior"):
        AutoImagePrior.from_pretrained(original)
    with raises("OneDPieceModel", "not a prior"):
        AutoImagePrior.from_pretrained(ours)
    with raises("MaskGitPrior", "not a tokenizer"):
        AutoImageTokenizer.from_pretrained(saved)
    with raises("image_tokenizer="):
        MaskGitPipeline.from_pretrained(prior)
    with raises("continuous", "MaskGitPrior"):
        MaskGitPipeline(folders.titok(quantizer="kl"), folders.maskgit_prior())


def test_a_configuration_without_a_needed_key(original):
    config = folders.titok_original_config()
    del config["model"]["vq_model"]["token_size"]
    (original / "config.json").write_text(json.dumps(config))
    with raises("titok tokenizer", "lacks the key", "token_size", kind=ConversionError):
        AutoImageTokenizer.from_pretrained(original)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_safetensors_file(original, keep):
    path = original / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with raises("model.safetensors", "not a complete safetensors file", kind=ConversionError):
        AutoImageTokenizer.from_pretrained(original)


def test_a_truncated_file_of_ours(tmp_path):
    folder = folders.save_tokenizer(tmp_path / "ours")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Exception) as caught:
        AutoImageTokenizer.from_pretrained(folder)
    assert "model.safetensors" in str(caught.value) and "complete" in str(caught.value)


def test_missing_and_misshapen_keys_of_ours(tmp_path):
    folder = folders.save_tokenizer(tmp_path / "ours")
    change(folder, lambda state: state.pop("encoder.latent_tokens"))
    with raises("OneDPieceModel", "missing", "encoder.latent_tokens"):
        AutoImageTokenizer.from_pretrained(folder)
    folder = folders.save_tokenizer(tmp_path / "again")
    change(folder, lambda state: state.update({"junk": torch.zeros(1)}))
    with raises("OneDPieceModel", "left over", "junk"):
        AutoImageTokenizer.from_pretrained(folder)
    folder = folders.save_tokenizer(tmp_path / "third")
    change(folder, lambda state: state.update({"quantize.embedding.weight": torch.zeros(63, 4)}))
    with raises("OneDPieceModel", "of another shape (1)", "[63, 4]", "expected [64, 4]"):
        AutoImageTokenizer.from_pretrained(folder)
    loose, info = AutoImageTokenizer.from_pretrained(folder, ignore_mismatched_sizes=True, output_loading_info=True)
    assert loose.codebook_size == 64 and len(info["mismatched_keys"]) == 1


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_with_code_in_it(original, tmp_path, save):
    (original / "model.safetensors").unlink()
    save({**folders.titok_original_state(), "x": Payload(str(tmp_path / "owned"))}, original / "pytorch_model.bin")
    with raises("pytorch_model.bin", kind=ConversionError):
        AutoImageTokenizer.from_pretrained(original)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps([1, 2]), pickle.dumps({"a": 1})])
def test_a_pickle_without_tensors(original, content):
    (original / "model.safetensors").unlink()
    (original / "pytorch_model.bin").write_bytes(content)
    with raises("pytorch_model.bin", kind=ConversionError):
        AutoImageTokenizer.from_pretrained(original)


@pytest.mark.parametrize("wrapper", [None, "ema", "state_dict", "model"])
def test_a_pickle_of_tensors_is_fine(original, wrapper):
    (original / "model.safetensors").unlink()
    state = folders.titok_original_state()
    torch.save(state if wrapper is None else {wrapper: state, "step": 3}, original / "pytorch_model.bin")
    assert AutoImageTokenizer.from_pretrained(original).num_tokens == 8


def test_a_yaml_with_code_in_it(original, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"x: !!python/object/apply:os.mkdir ['{tmp_path / 'owned'}']\n")
    with raises("config.yaml", "not plain YAML"):
        AutoImageTokenizer.from_pretrained(original / "model.safetensors", config=path)
    assert not (tmp_path / "owned").exists()


def test_unknown_preset(original):
    with raises("No preset", "tokenizer_titok_l33", "tokenizer_titok_l32_imagenet"):
        AutoImageTokenizer.from_pretrained(original / "model.safetensors", preset="tokenizer_titok_l33")


def test_unknown_options_of_loading(tmp_path):
    folder = folders.save_tokenizer(tmp_path / "ours")
    with pytest.raises((TypeError, ValueError)) as caught:
        AutoImageTokenizer.from_pretrained(folder, sharpness=3)
    assert "sharpness" in str(caught.value)
    with raises("filename", "original"):
        AutoImageTokenizer.from_pretrained(folder, filename="model.safetensors")


def test_a_broken_configuration_of_ours(tmp_path):
    folder = folders.save_tokenizer(tmp_path / "ours")
    config = json.loads((folder / "config.json").read_text())
    for key, value in (("num_latent_tokens", "many"), ("pixel_head", "nonsense"), ("quantizer", "nonsense")):
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(Exception) as caught:
            AutoImageTokenizer.from_pretrained(folder)
        assert key in str(caught.value) or str(value) in str(caught.value), caught.value


def test_an_abstract_auto_class():
    with raises("from_pretrained", kind=OSError):
        AutoImageTokenizer()


# ---------------------------------------------------------------------- outputs


def test_a_failed_conversion_leaves_nothing(original, tmp_path, capsys):
    change(original, lambda state: state.pop("latent_tokens"))
    target = tmp_path / "out"
    assert main(["convert", str(original), str(target)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "encoder.latent_tokens" in err and len(err.strip().splitlines()) == 1
    assert not target.exists() and not leftovers(tmp_path)


def test_a_failed_conversion_keeps_the_old_output(original, tmp_path):
    target = folders.save_tokenizer(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    change(original, lambda state: state.pop("latent_tokens"))
    assert main(["convert", str(original), str(target), "--overwrite"]) == 1
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before and not leftovers(tmp_path)


FULL_DISK = """
import json, resource, sys
import hf_vistok.auto, hf_vistok.cli.sheets, hf_vistok.evaluation.reconstruction
from hf_vistok.cli.main import main
codes = []
for limit, arguments in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    codes.append(main(arguments))
print(codes)
"""


def test_a_full_disk(original, tmp_path):
    """In a process that may write no file above so many bytes."""
    pictures = folders.save_pictures(tmp_path / "pictures", 3)
    before = sorted(os.listdir(tmp_path))
    commands = [
        (30_000, ["convert", original, tmp_path / "out"]),
        (500, ["reconstruct", original, pictures, "-o", tmp_path / "out.png"]),
        (100, ["tokenize", original, pictures, "-o", tmp_path / "out.safetensors"]),
        (20, ["tokenize", original, pictures, "-o", tmp_path / "out.jsonl"]),
    ]
    argument = json.dumps([(limit, [str(word) for word in words]) for limit, words in commands])
    done = subprocess.run([sys.executable, "-c", FULL_DISK, argument], capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines()[-1:] == ["[1, 1, 1, 1]"], done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4 and all("too large" in line.lower() for line in errors), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir(tmp_path)) == before
