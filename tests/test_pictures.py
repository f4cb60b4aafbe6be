"""Pictures that are none, and pictures that are unusual: what the processor makes of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vistok import ImageTokenizerProcessor

from .folders import raises


@pytest.fixture
def processor():
    return ImageTokenizerProcessor.for_size(32)


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
