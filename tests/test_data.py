"""The data sets: draws, splits, sources, corrupt pictures."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_vistok.data import emoji, streams
from hf_vistok.data.draws import EpochOrder, hashed, integers, uniform
from hf_vistok.data.pictures import augment, load_square, to_rgb
from hf_vistok.data.sources import EmojiSource, FolderSource, HubSource, ShardSource, open_source

APPLE = '<rect width="{n}" height="{n}" fill="#f00"/>'


def picture(folder: Path, name: str, colour: tuple[int, ...] = (255, 0, 0), size: tuple[int, int] = (20, 12)) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


# ---------------------------------------------------------------------- draws


def test_draws_do_not_depend_on_how_they_are_grouped():
    together = uniform(3, "flip", np.arange(100))
    apart = np.concatenate([uniform(3, "flip", np.arange(i, i + 10)) for i in range(0, 100, 10)])
    assert (together == apart).all()
    assert not (together == uniform(4, "flip", np.arange(100))).any()
    assert not (together == uniform(3, "crop", np.arange(100))).any()


def test_draws_are_uniform():
    values = uniform(0, "x", np.arange(200_000))
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.003
    assert np.abs(np.histogram(values, 20)[0] / 10_000 - 1).max() < 0.05
    pairs = np.corrcoef(values[:-1], values[1:])[0, 1]
    assert abs(pairs) < 0.01
    lengths = integers(0, "y", np.arange(10_000), 1, 33)
    assert lengths.min() == 1 and lengths.max() == 32
    assert len(np.unique(hashed(0, "z", np.arange(100_000)))) == 100_000


def test_each_epoch_sees_each_sample_once_in_a_new_order():
    order = EpochOrder(37, seed=5)
    first, second = order(np.arange(37)), order(np.arange(37, 74))
    assert sorted(first) == sorted(second) == list(range(37))
    assert (first != second).any()
    across = EpochOrder(37, seed=5)(np.arange(30, 44))  # a batch over the border
    assert (across == np.concatenate([first[30:], second[:7]])).all()


# ---------------------------------------------------------------------- names and splits


@pytest.mark.parametrize(
    ("code", "base"),
    [
        ("1f34e", "1f34e"),
        ("1f44d-1f3fd", "1f44d"),
        ("1f3c3-200d-2642-fe0f", "1f3c3"),
        ("1f468-200d-1f3a8", "1f9d1-1f3a8"),
        ("1f469-1f3fb-200d-1f3a8", "1f9d1-1f3a8"),
        ("1f468", "1f468"),
        ("2640-fe0f", "2640"),
        ("2764-fe0f", "2764"),
    ],
)
def test_base_code(code, base):
    assert emoji.base_code(code) == base


def test_skin_tones_and_flags():
    assert emoji.has_skin_tone("thumbs-up", "1f44d-1f3fd")
    assert emoji.has_skin_tone("thumbs-up-medium-dark", "")
    assert not emoji.has_skin_tone("white-medium-square", "")
    assert emoji.is_flag("de", "1f1e9-1f1ea", {}) and emoji.is_flag("x", "1f3f4", {"1f3f4": 9})
    assert not emoji.is_flag("red-apple", "1f34e", {"1f34e": 4})


def make_records() -> list[emoji.Record]:
    names = [f"{i:x}" for i in range(0x1F300, 0x1F300 + 800)]
    return [emoji.Record(name, style, name, name) for name in names for style in ("a", "b", "c")]


def test_splits_hold_out_whole_names_and_single_styles():
    records = make_records()
    emoji.assign_splits(records)
    by_base: dict[str, list[emoji.Record]] = {}
    for record in records:
        by_base.setdefault(record.base, []).append(record)
    for group in by_base.values():
        kinds = {record.split for record in group}
        assert kinds == {"names"} or "train" in kinds
    share = {kind: sum(r.split == kind for r in records) / len(records) for kind in ("names", "pairs")}
    assert 0.015 < share["names"] < 0.05 and 0.03 < share["pairs"] < 0.07


def test_splits_depend_on_the_names_only():
    records, some = make_records(), make_records()[::-1]
    emoji.assign_splits(records)
    emoji.assign_splits(some)
    assert {(r.base, r.style): r.split for r in records} == {(r.base, r.style): r.split for r in some}


# ---------------------------------------------------------------------- building the emoji set


def npm_archive(path: Path, files: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Archives as npm would have fetched them, so that no test needs the network."""
    monkeypatch.setenv("HF_VISTOK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "npm"

    def archive(package: str, files: dict[str, object]) -> None:
        npm_archive(folder / (package.strip("@").replace("/", "-").replace("@", "-") + ".tgz"), files)

    icons = {
        "red-apple": {"body": APPLE.format(n=32)},
        "old": {"body": "", "hidden": True},
        "thumbs-up-medium": {"body": APPLE.format(n=32)},
        "flag-x": {"body": APPLE.format(n=32)},
        "broken": {"body": "<rect"},
    }
    codes = {"1f34e": "red-apple", "1f44d-1f3fd": "thumbs-up-medium", "1f1e9-1f1ea": "flag-x", "1f4a3": "broken"}
    tags = [{"hexcode": "1F34E", "label": "red apple", "group": 4, "tags": ["fruit"], "skins": []}]
    archive(emoji.TAGS_PACKAGE, {"en/data.json": tags})
    table = {"icons": icons, "width": 32, "height": 32}
    for style in ("noto", "fluent-flat"):
        archive(emoji.STYLES[style].package, {"icons.json": table, "chars.json": codes})
    webp = io.BytesIO()
    Image.new("RGBA", (256, 256), (0, 0, 255, 0)).save(webp, "WEBP")
    archive(emoji.STYLES["fluent-3d"].package, {"assets/1f34e.webp": webp.getvalue(), "assets/ffff.webp": b""})
    return folder


def test_building_the_emoji_set(packages, tmp_path):
    pytest.importorskip("resvg_py")
    out = tmp_path / "set"
    info = emoji.build_emoji(out, size=16, styles=["noto", "fluent-3d"], workers=1)
    assert info["images"] == 2 and info["failed"] == 1
    records = emoji.load_records(out)
    assert [(r.name, r.style, r.base, r.tags) for r in records] == [
        ("red apple", "noto", "1f34e", ["fruit"]),
        ("red apple", "fluent-3d", "1f34e", ["fruit"]),
    ]
    images = np.load(out / "images.npy")
    assert images.shape == (2, 16, 16, 3)
    assert (images[0] == (255, 0, 0)).all() and (images[1] == 255).all()  # transparent is white
    before = (out / "info.json").stat().st_mtime_ns
    assert emoji.build_emoji(out, size=16, styles=["noto", "fluent-3d"]) == info  # again: nothing happens
    assert (out / "info.json").stat().st_mtime_ns == before
    assert not list(tmp_path.glob("*.part"))


def test_other_settings_need_overwrite(packages, tmp_path):
    pytest.importorskip("resvg_py")
    emoji.build_emoji(tmp_path / "set", size=16, styles=["noto"], workers=1)
    with pytest.raises(emoji.DataError, match="--overwrite"):
        emoji.build_emoji(tmp_path / "set", size=32, styles=["noto"], workers=1)
    assert emoji.build_emoji(tmp_path / "set", size=32, styles=["noto"], workers=1, overwrite=True)["size"] == 32
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(emoji.DataError, match="no emoji data set"):
        emoji.build_emoji(tmp_path / "mine", size=16, overwrite=True)


def test_unknown_style_and_missing_npm(tmp_path, monkeypatch):
    with pytest.raises(emoji.DataError, match="noto-v1"):
        emoji.build_emoji(tmp_path / "set", styles=["manga"])
    monkeypatch.setattr(emoji.shutil, "which", lambda name: None)
    with pytest.raises(emoji.DataError, match="Node.js"):
        emoji.fetch_package("@iconify-json/noto@1.2.9", tmp_path)


def test_npm_that_fails_leaves_nothing(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network unreachable' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(emoji.shutil, "which", lambda name: str(npm))
    with pytest.raises(emoji.DataError, match="network unreachable"):
        emoji.fetch_package("some-package@1.0.0", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_damaged_archive_is_named(packages, tmp_path):
    for archive in packages.glob("emojibase*"):
        archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(emoji.DataError, match=r"emojibase.*damaged"):
        emoji.build_emoji(tmp_path / "set", size=16, styles=["noto"], workers=1)
    assert not (tmp_path / "set").exists()


# ---------------------------------------------------------------------- pictures and sources


def test_unusual_pictures_come_out_right():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (np.asarray(to_rgb(clear)) == 255).all()
    deep = Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    assert np.asarray(to_rgb(deep))[0, 0, 0] == 156
    assert to_rgb(Image.new("CMYK", (4, 4))).mode == "RGB"
    assert load_square(Image.new("L", (10, 30), 7), 8).shape == (8, 8, 3)


def test_augment_flips_and_shifts():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    flipped = augment(images, np.array([True, False]))
    assert (flipped[0] == images[0, :, ::-1]).all() and (flipped[1] == images[1]).all()
    moved = augment(images, np.zeros(2, bool), np.array([[1, 0], [0, -2]]), fill=0)
    assert (moved[0, 1:] == images[0, :-1]).all() and (moved[0, 0] == 0).all()
    assert (moved[1, :, :2] == images[1, :, 2:]).all() and (moved[1, :, 2:] == 0).all()


def test_folder_skips_and_counts_corrupt_pictures(tmp_path):
    picture(tmp_path, "a/red.png")
    (tmp_path / "a" / "red.txt").write_text("a red thing\n")
    (tmp_path / "b.jpg").write_bytes(b"no picture at all")
    (tmp_path / "empty.png").write_bytes(b"")
    half = picture(tmp_path, "c.png", (0, 0, 255), (200, 200))
    half.write_bytes(half.read_bytes()[:100])
    source = FolderSource(tmp_path, 8)
    samples = source.take(np.arange(4))
    assert samples.images.shape == (4, 8, 8, 3) and (samples.images[:, 0, 0] == (255, 0, 0)).all()
    assert samples.captions[0] == "a red thing"
    assert source.skipped == 3


def test_no_pictures_and_none_readable(tmp_path):
    with pytest.raises(emoji.DataError, match="No such folder"):
        FolderSource(tmp_path / "none", 8)
    with pytest.raises(emoji.DataError, match="holds no pictures"):
        FolderSource(tmp_path, 8)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(emoji.DataError, match="None of the 1"):
        FolderSource(tmp_path, 8).take(np.array([0]))


def make_shard(path: Path, count: int, colour: int) -> None:
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (9, 9), (colour, i, 0)).save(buffer, "PNG")
            files = {
                "png": buffer.getvalue() if i != 1 else b"broken",
                "json": json.dumps({"caption": f"{i}"}).encode(),
            }
            for kind, data in files.items():
                info = tarfile.TarInfo(f"./part.v1/{i:04d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def test_shards_stream_resumes_and_splits(tmp_path):
    make_shard(tmp_path / "0.tar", 4, 10)
    make_shard(tmp_path / "1.tar", 3, 20)
    (tmp_path / "2.tar").write_bytes(b"this is no tar")
    source = open_source("shards", str(tmp_path), 8)
    batches = source.batches(0, 4, slice(None))
    first, second = next(batches), next(batches)
    # two lanes: shards 0 and 2 (which is none), shard 1; the next one stands in for a broken picture
    assert first.captions == ["0", "2", "0", "2"] and second.captions == ["2", "3", "2", "0"]
    next(batches)
    assert source.skipped == 3
    resumed = next(ShardSource(tmp_path, 8).batches(4, 4, slice(None)))
    assert (resumed.images == second.images).all()
    halves = [next(ShardSource(tmp_path, 8).batches(0, 4, slice(i, i + 2))) for i in (0, 2)]
    assert (np.concatenate([half.images for half in halves]) == first.images).all()


def test_shards_without_pictures(tmp_path):
    with pytest.raises(emoji.DataError, match=r"no \.tar"):
        ShardSource(tmp_path, 8)
    (tmp_path / "0.tar").write_bytes(b"nothing")
    with pytest.raises(emoji.DataError, match="no readable pictures"):
        next(ShardSource(tmp_path, 8).batches(0, 2, slice(None)))


def test_datasets_library_streams_with_a_corrupt_picture(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = []
    for i in range(4):
        buffer = io.BytesIO()
        Image.new("RGB", (9, 9), (i, 0, 0)).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue() if i != 2 else b"broken", "path": None})
    table = datasets.Dataset.from_dict({"picture": rows, "text": list("abcd")})
    table.cast_column("picture", datasets.Image(decode=False)).to_parquet(tmp_path / "train.parquet")
    source = HubSource(str(tmp_path), 8, image_column="picture", caption_column="text")
    samples = next(source.batches(0, 3, slice(None)))
    assert samples.captions == ["a", "b", "d"] and source.skipped == 1


def test_emoji_source(tmp_path):
    with pytest.raises(emoji.DataError, match="hf-vistok data emoji"):
        EmojiSource(tmp_path, 16)
    records = [emoji.Record(str(i), "noto" if i % 2 else "fluent", "", str(i)) for i in range(6)]
    records[5].split = "names"
    emoji._write(tmp_path / "set", np.zeros((6, 16, 16, 3), np.uint8), records, {})
    assert len(EmojiSource(tmp_path / "set", 16)) == 5
    assert len(EmojiSource(tmp_path / "set", 16, "held_out")) == 1
    assert len(EmojiSource(tmp_path / "set", 16, styles=["noto"])) == 2
    with pytest.raises(emoji.DataError, match="16 pixels"):
        EmojiSource(tmp_path / "set", 32)
    with pytest.raises(emoji.DataError, match="no pictures of split 'pairs'"):
        EmojiSource(tmp_path / "set", 16, "pairs")


# ---------------------------------------------------------------------- captions, streams


def test_captions_beside_and_in_metadata(tmp_path):
    for name in ("a.png", "sub/b.png", "sub/c.png"):
        picture(tmp_path, name)
    (tmp_path / "a.txt").write_text("from a text file")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "other"}\n\n{"file_name": "sub/b.png"}\n')
    (tmp_path / "sub" / "metadata.csv").write_text("file_name,caption\nc.png,from a table\n")
    source = FolderSource(tmp_path, 8)
    assert source.take(np.arange(3)).captions == ["from a text file", "", "from a table"]
    assert [row.name for row in source.scan()] == ["a.png", "sub/b.png", "sub/c.png"]
    assert len(FolderSource(tmp_path, 8, require_captions=True)) == 2
    with pytest.raises(emoji.DataError, match="no `prompt`; it has file_name, text"):
        FolderSource(tmp_path, 8, caption_column="prompt")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file')
    with pytest.raises(emoji.DataError, match="line 2: not JSON"):
        FolderSource(tmp_path, 8)


def test_required_captions_that_are_missing(tmp_path):
    picture(tmp_path, "a.png")
    with pytest.raises(emoji.DataError, match=r"have no captions: put a \.txt file"):
        FolderSource(tmp_path, 8, require_captions=True)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    with pytest.raises(emoji.DataError, match="None of the 1 samples has a caption"):
        next(ShardSource(tmp_path, 8, require_captions=True).batches(0, 2, slice(None)))


class Numbers(streams.StreamSource):
    """Shards of pictures whose colour is their number; shard 1 is empty, some pictures are broken."""

    def __init__(self, sizes=(5, 0, 7, 4), broken=(2, 3, 8), **options):
        super().__init__(4, **options)
        self.sizes, self.broken, self.num_shards, self.reads = sizes, broken, len(sizes), []

    def read(self, shard):
        self.reads.append(shard)
        for number in range(sum(self.sizes[:shard]), sum(self.sizes[: shard + 1])):
            image = b"broken" if number in self.broken else Image.new("RGB", (4, 4), (number, 0, 0))
            yield streams.RawSample(image, f"{number}", f"{number}")


@pytest.mark.parametrize("shuffle", [0, 8])
def test_streams_do_not_depend_on_the_number_of_processes(shuffle):
    def numbers(source, batches, start=0, part=slice(None)):
        stream = source.batches(start, 4, part)
        return [next(stream).images[:, 0, 0, 0].tolist() for _ in range(batches)]

    whole = numbers(Numbers(shuffle=shuffle), 12)
    assert {n for batch in whole for n in batch} == set(range(16)) - {2, 3, 8}
    for world in (2, 4):
        parts = [slice(i, i + 4 // world) for i in range(0, 4, 4 // world)]
        split = [numbers(Numbers(shuffle=shuffle), 12, part=part) for part in parts]
        assert [sum(batch, []) for batch in zip(*split, strict=True)] == whole
    for done in (1, 3, 7):
        assert numbers(Numbers(shuffle=shuffle), 12 - done, start=4 * done) == whole[done:]
    if shuffle:
        assert whole != numbers(Numbers(), 12) and whole != numbers(Numbers(shuffle=8, seed=1), 12)


def test_a_process_reads_its_own_shards_only():
    source = Numbers(sizes=(2, 2, 2, 2), broken=())
    stream = source.batches(0, 4, slice(2, 4))
    for _ in range(5):
        next(stream)
    assert set(source.reads) == {2, 3}


def test_a_shard_of_broken_pictures_borrows_from_the_next():
    source = Numbers(sizes=(2, 2), broken=(0, 1))
    stream = source.batches(0, 4, slice(None))
    seen = [next(stream).images[:, 0, 0, 0].tolist() for _ in range(3)]
    assert seen == [[2, 2, 2, 3]] * 3 and source.skipped == 2
    assert next(Numbers(sizes=(2, 2), broken=(0, 1)).batches(8, 4, slice(None))).images[0, 0, 0, 0] == 2


def test_a_stream_with_broken_json_and_several_captions(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in {"a.json": b"{", "b.json": b'{"caption": ["", "two"]}', "c.json": b"[1]"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [row.caption for row in ShardSource(tmp_path, 8).scan()] == ["", "two", ""]


def test_columns_that_do_not_exist(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(emoji.DataError, match="no column 'image'; there are: text"):
        HubSource(str(tmp_path), 8)
