"""Bad input, and unusual but valid input: errors name what was expected and what was found, and leave no mess."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_vistok import (
    AutoImagePrior,
    AutoImageTokenizer,
    AutoImageTokenizerProcessor,
    MaskGitPipeline,
)
from hf_vistok.cli.main import main
from hf_vistok.conversion import ConversionError, from_original

from . import folders
from .folders import raises


@pytest.fixture(scope="module")
def model():
    return folders.one_d_piece()


@pytest.fixture(scope="module")
def fixed():
    return folders.titok()


@pytest.fixture(scope="module")
def kl():
    return folders.titok(quantizer="kl")


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
