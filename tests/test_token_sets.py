"""Sets of tokens: written shard by shard, gone on with, read by training."""

import errno
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vistok.data import emoji
from hf_vistok.data.sources import FolderSource, TokenSource, open_source
from hf_vistok.data.token_source import id_type, open_shard
from hf_vistok.data.tokenize_set import TokenSetWriter
from hf_vistok.evaluation.reconstruction import to_pixels

from . import folders

ORIGIN = {"model": {"model": "tiny"}, "data": {"kind": "folder"}}


@pytest.fixture(scope="module")
def model():
    return folders.titok().eval()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 255, (40, 32, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "0.txt").write_text("the first")
    (folder / "3.png").write_bytes(b"broken")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(model, pictures: Path, folder: Path, **settings) -> dict[str, int]:
    options = {"shard_size": 3, "batch_size": 2, **settings}
    return TokenSetWriter(model, FolderSource(pictures, 32), folder, ORIGIN, **options).run()


def test_ids_names_and_captions(model, pictures, tmp_path):
    assert write(model, pictures, tmp_path, mirror=True) == {"shards": 3, "written": 3, "pictures": 6, "skipped": 1}
    source = open_source("tokens", str(tmp_path), 32, split="train", caption_column=None)
    assert source.names == ["0.png", "1.png", "2.png", "4.png", "5.png", "6.png"] and source.skipped == 1
    samples = source.take(np.array([5, 0, 3]))
    assert samples.captions == ["", "the first", ""] and samples.images.shape == (3, 2, model.num_tokens)
    images = FolderSource(pictures, 32).take(np.array([6, 0, 4])).images
    for variant, side in enumerate((images, images[:, :, ::-1].copy())):
        ids = model.encode(model.normalize_pixels(to_pixels(side, "cpu"))).token_ids
        assert (samples.images[:, variant] == ids.numpy()).all()
    shard = open_shard(tmp_path / "tokens-00000.safetensors")
    assert shard.arrays["token_ids"].dtype == id_type(model.codebook_size) and source.is_discrete
    assert (source.codebook_size, source.shape) == (model.codebook_size, (model.num_tokens,))


@pytest.mark.parametrize(
    ("size", "name"),
    [(2, "uint8"), (256, "uint8"), (257, "uint16"), (2**16, "uint16"), (2**18, "int32"), (2**40, "int64")],
)
def test_types_follow_the_codebook(size, name):
    assert id_type(size).name == name


def test_going_on_writes_what_is_missing_and_nothing_else(model, pictures, tmp_path):
    write(model, pictures, tmp_path)
    before = contents(tmp_path)
    (tmp_path / "tokens-00001.safetensors").write_bytes(before["tokens-00001.safetensors"][:-9])
    (tmp_path / "tokens-00002.safetensors").unlink()
    (tmp_path / "index.json").unlink()
    with pytest.raises(emoji.DataError, match="not complete; the command that began it"):
        TokenSource(tmp_path)
    assert write(model, pictures, tmp_path)["written"] == 2 and contents(tmp_path) == before
    assert write(model, pictures, tmp_path)["written"] == 0 and contents(tmp_path) == before


def test_any_number_of_processes_writes_the_same_set(model, pictures, tmp_path):
    write(model, pictures, tmp_path / "one")
    for rank in (1, 0):
        write(model, pictures, tmp_path / "two", rank=rank, world=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_another_set_is_not_overwritten(model, pictures, tmp_path):
    write(model, pictures, tmp_path)
    with pytest.raises(emoji.DataError, match="another set of tokens: shard_size differ"):
        write(model, pictures, tmp_path, shard_size=4)
    other = folders.titok().eval()
    torch.nn.init.normal_(other.encoder.proj.weight)
    with pytest.raises(emoji.DataError, match="weights differ"):
        write(other, pictures, tmp_path)


def test_latents_in_half_precision(pictures, tmp_path):
    model = folders.titok(quantizer="kl").eval()
    write(model, pictures, tmp_path / "half")
    write(model, pictures, tmp_path / "full", store="float32", mirror=True)
    half, full = TokenSource(tmp_path / "half"), TokenSource(tmp_path / "full")
    a, b = half.take(np.arange(6)).images[:, 0], full.take(np.arange(6)).images[:, 0]
    assert a.dtype == np.float32 and not half.is_discrete and half.codebook_size is None
    assert np.abs(a - b).max() < 2e-3 * np.abs(b).max()
    with pytest.raises(emoji.DataError, match="float16 or float32, got 'int8'"):
        write(model, pictures, tmp_path / "x", store="int8")


def test_emoji_records_come_along(model, tmp_path):
    records = [emoji.Record(f"name {i}", "noto", f"{i}", f"{i}", ["tag"]) for i in range(4)]
    emoji._write(tmp_path / "set", np.zeros((4, 32, 32, 3), np.uint8), records, {})
    source = open_source("emoji", str(tmp_path / "set"), 32)
    TokenSetWriter(model, source, tmp_path / "tokens", ORIGIN, shard_size=3).run()
    samples = TokenSource(tmp_path / "tokens").take(np.array([3, 1]))
    assert samples.records == [records[3], records[1]] and samples.captions == ["name 3", "name 1"]


def test_sets_that_cannot_be_read(model, pictures, tmp_path):
    with pytest.raises(emoji.DataError, match="holds no set of tokens"):
        TokenSource(tmp_path)
    write(model, pictures, tmp_path / "set")
    with pytest.raises(emoji.DataError, match="pictures of 32 pixels, the recipe asks for 64"):
        TokenSource(tmp_path / "set", 64)
    index = json.loads((tmp_path / "set" / "index.json").read_text())
    (tmp_path / "set" / "index.json").write_text(json.dumps({**index, "format": "other"}))
    with pytest.raises(emoji.DataError, match="has the format 'other'"):
        TokenSource(tmp_path / "set")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    with pytest.raises(emoji.DataError, match=r"no readable pictures \(1 were skipped\)"):
        write(model, tmp_path / "bad", tmp_path / "none")


def test_full_disk_leaves_no_half_shard(model, pictures, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = TokenSetWriter(model, FolderSource(pictures, 32), tmp_path, ORIGIN, shard_size=3)
    with (
        monkeypatch.context() as patch,
        pytest.raises(emoji.DataError, match="write shard 0 .*No space left"),
    ):
        patch.setattr(os, "fsync", full)
        writer.run()
    assert list(contents(tmp_path)) == ["plan.json"]
    assert writer.run()["written"] == 3


def test_command(pictures, tmp_path, capsys):
    from hf_vistok.cli.main import main

    folders.save_tokenizer(tmp_path / "model")
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "0.tar", "w") as tar:
        for i in range(5):
            buffer = io.BytesIO()
            Image.new("RGB", (40, 40), (40 * i, 0, 0)).save(buffer, "PNG")
            for kind, data in {"png": buffer.getvalue(), "txt": f"caption {i}".encode()}.items():
                info = tarfile.TarInfo(f"{i}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    arguments = ["tokenize", str(tmp_path / "model"), "--dataset", str(shards), "--kind", "shards", "--shard-size", "2"]
    output = ["-o", str(tmp_path / "set"), "--device", "cpu"]
    assert main([*arguments, *output]) == 0
    assert "5 picture(s) in 3 shard(s), 3 written now, 0 picture(s) skipped" in capsys.readouterr().err
    assert main([*arguments, *output]) == 0 and "0 written now" in capsys.readouterr().err
    assert TokenSource(tmp_path / "set").take(np.array([4])).captions == ["caption 4"]
    # a shard is also a file of tokens
    shard = tmp_path / "set" / "tokens-00001.safetensors"
    assert main(["detokenize", str(shard), "-o", str(tmp_path / "drawn"), "--device", "cpu"]) == 0
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2
    assert main([*arguments, "-o", str(tmp_path / "x.jsonl")]) == 1 and "is a folder" in capsys.readouterr().err
    assert main(["tokenize", str(tmp_path / "model"), "-o", str(tmp_path / "y.jsonl")]) == 2
