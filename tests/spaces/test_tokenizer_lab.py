"""The tokenizer lab through its API: every view, uploads of any kind, bad input, MCP."""

import io
from pathlib import Path

import numpy as np
import pytest
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image, ImageDraw

import hf_vistok

from .test_text_to_image import assert_documented, mcp_tools

PICTURES = Path(hf_vistok.__file__).parent / "pictures"
CAT, LEMON = (handle_file(str(PICTURES / name)) for name in ("cat.png", "lemon.png"))
BIG = "hf-vistok/titok-emoji-64"


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def same(one, other):
    """Equal up to the rounding of one level, which depends on the size of the batch."""
    return np.abs(pixels(one).astype(int) - pixels(other)).max() <= 1


def test_reconstruct(lab_client):
    (seen, drawn), error, facts, tokens = lab_client.predict(CAT, 16, BIG, api_name="/reconstruct")
    assert pixels(seen).shape == pixels(drawn).shape == pixels(error).shape == (64, 64, 3)
    assert facts.startswith("**16 tokens · 32 bytes") and len(tokens.split()) == 16
    direct = hf_vistok.AutoImageTokenizer.from_pretrained(BIG)
    processor = hf_vistok.AutoImageTokenizerProcessor.from_pretrained(BIG)
    ids = direct.encode(processor(str(PICTURES / "cat.png"), return_tensors="pt").pixel_values, 16).token_ids
    assert tokens == " ".join(map(str, ids[0].tolist()))
    expected = processor.postprocess(direct.decode_tokens(ids).sample)[0]
    assert np.abs(np.asarray(expected).astype(int) - pixels(drawn)).max() <= 1


def test_more_tokens_are_better(lab_client, tiny_tokenizer):
    values = [lab_client.predict(CAT, k, BIG, api_name="/reconstruct")[2] for k in (1, 8, 32)]
    decibels = [float(text.split("·")[-1].split()[0]) for text in values]
    assert decibels == sorted(decibels) and decibels[0] < decibels[-1]
    everything = lab_client.predict(CAT, 32, str(tiny_tokenizer), api_name="/reconstruct")
    assert everything[2].startswith("**8 tokens")


def test_ladder(lab_client, tiny_tokenizer):
    steps = lab_client.predict(CAT, BIG, api_name="/ladder")
    assert [item["caption"] for item in steps] == ["1", "2", "4", "8", "16", "32"]
    assert len(lab_client.predict(CAT, str(tiny_tokenizer), api_name="/ladder")) == 4


def test_codecs(lab_client):
    gallery, table = lab_client.predict(CAT, 32, BIG, api_name="/compare_codecs")
    assert [item["caption"].split(",")[0] for item in gallery] == ["original", "tokens", "JPEG", "WebP"]
    rows = [line.split("|") for line in table.splitlines()[2:]]
    assert len(rows) == 3
    for row in rows:
        assert float(row[2].split()[0]) <= 64 or "smallest" in row[2]


def test_codec_budget(lab_space):
    import views

    picture = Image.open(PICTURES / "cat.png").convert("RGB")
    for codec in views.CODECS:
        sizes = (20, 200, 1000)
        coded = [views.code_within(picture, codec, budget) for budget in sizes]
        assert all(c.data_bytes <= budget or not c.fits for c, budget in zip(coded, sizes, strict=True))
        assert coded[0].psnr < coded[1].psnr < coded[2].psnr and coded[2].fits
        assert all(c.data_bytes < c.file_bytes and c.picture.size == picture.size for c in coded)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    assert 0 < views.jpeg_data_bytes(buffer.getvalue()) < len(buffer.getvalue())


def test_error_map(lab_space):
    import views

    black, white = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "white")
    assert (
        np.asarray(views.error_map(black, black)).max() < 60 and np.asarray(views.error_map(black, white)).min() > 150
    )
    assert views.psnr(black, black) == 99 and views.psnr(black, white) == 0
    assert views.changed_share(black, white) == 1


def test_draw_and_replace(lab_client):
    (_, drawn), _, _, tokens = lab_client.predict(CAT, 8, BIG, api_name="/reconstruct")
    assert same(lab_client.predict(tokens, BIG, api_name="/draw"), drawn)
    (before, after), change, facts, changed = lab_client.predict(tokens, 2, 17, BIG, api_name="/replace_token")
    assert same(before, drawn) and not same(before, after)
    assert changed.split()[1] == "17" and changed.split()[0] == tokens.split()[0]
    assert "Token 2" in facts and pixels(change).max() > 0
    assert same(lab_client.predict(changed, BIG, api_name="/draw"), after)


def test_two_tokenizers(lab_client, tiny_tokenizer):
    (one, two), gallery, table = lab_client.predict(
        CAT, 32, BIG, 4, str(tiny_tokenizer), api_name="/compare_tokenizers"
    )
    assert pixels(one).shape == pixels(two).shape, "the smaller one is enlarged"
    assert [item["caption"] for item in gallery] == ["original", "first", "second"]
    assert "| 32 | 64 bytes |" in table and "| 4 | 3.0 bytes |" in table


def test_two_pictures(lab_client):
    picture, steps = lab_client.predict(CAT, LEMON, 32, 1.0, BIG, api_name="/mix")
    lemon = lab_client.predict(LEMON, 32, BIG, api_name="/reconstruct")[0][1]
    cat = lab_client.predict(CAT, 32, BIG, api_name="/reconstruct")[0][1]
    assert same(picture, lemon)
    assert [item["caption"] for item in steps] == ["0", "1", "2", "4", "8", "16", "32"]
    assert same(steps[0]["image"], cat)
    half, _ = lab_client.predict(CAT, LEMON, 32, 0.5, BIG, api_name="/mix")
    assert not same(half, cat) and not same(half, lemon)


def test_a_pipeline_is_a_tokenizer(lab_space, tiny_pipeline):
    """A flow decoder draws; the lab seeds it, so that the same tokens are the same picture."""
    import bench

    assert bench.expected_tokens(str(tiny_pipeline)) == 8
    chosen = bench.Tokenizer(str(tiny_pipeline))
    ids = chosen.encode(str(PICTURES / "cat.png")).ids
    assert len(ids) == chosen.most == 8
    rows = [ids, ids[:3], ids, ids[:1]]
    pictures = [np.asarray(picture).astype(int) for picture in chosen.decode(rows)]
    assert np.abs(pictures[0] - pictures[2]).max() <= 1 and np.abs(pictures[0] - pictures[1]).max() > 1
    assert bench.parse_ids(bench.to_text(ids[:3]), chosen) == ids[:3]


# ---------------------------------------------------------------------- uploads


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """Pictures of many kinds: what is drawn is red on the left, blue on the right."""
    folder = tmp_path_factory.mktemp("uploads")
    base = Image.new("RGB", (96, 96), "red")
    ImageDraw.Draw(base).rectangle((48, 0, 96, 96), fill="blue")
    base.convert("CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[274] = 6  # stored a quarter turn to the left
    base.rotate(90).save(folder / "turned.jpg", exif=exif, quality=95)
    base.convert("RGBA").save(folder / "alpha.png")
    base.convert("P").save(folder / "palette.png")
    base.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (96, 96))] * 3)
    base.save(folder / "wide.webp", lossless=True)
    deep = np.zeros((96, 96), np.uint16)
    deep[:, 48:] = 65535
    Image.fromarray(deep).save(folder / "deep.png")
    Image.new("RGBA", (96, 96), (0, 0, 0, 0)).save(folder / "clear.png")
    return folder


@pytest.mark.parametrize("name", ["cmyk.jpg", "turned.jpg", "alpha.png", "palette.png", "moving.gif", "wide.webp"])
def test_uploads_of_many_kinds(lab_client, uploads, name):
    (seen, _), *_ = lab_client.predict(handle_file(str(uploads / name)), 4, BIG, api_name="/reconstruct")
    left, right = pixels(seen)[:, :24].mean((0, 1)), pixels(seen)[:, 40:].mean((0, 1))
    assert left[0] > 180 and left[2] < 80 and right[2] > 180 and right[0] < 80, (left, right)


def test_deep_and_clear_uploads(lab_client, uploads):
    (seen, _), *_ = lab_client.predict(handle_file(str(uploads / "deep.png")), 4, BIG, api_name="/reconstruct")
    assert pixels(seen)[:, :24].max() < 20 and pixels(seen)[:, 40:].min() > 235
    (seen, _), *_ = lab_client.predict(handle_file(str(uploads / "clear.png")), 4, BIG, api_name="/reconstruct")
    assert pixels(seen).min() == 255, "clear is white"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.png", b"this is no picture", "not a picture"),
        ("cut.png", (PICTURES / "cat.png").read_bytes()[:200], "not a picture"),
        ("empty.png", b"", "not a picture"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        ("pickle.jpg", b"\x80\x04\x95", "not a picture"),
    ],
)
def test_what_is_no_picture(lab_client, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AppError) as caught:
        lab_client.predict(handle_file(str(tmp_path / name)), 4, BIG, api_name="/reconstruct")
    assert message in str(caught.value) and "Traceback" not in str(caught.value)
    assert f"{name} is" in str(caught.value) and "/tmp" not in str(caught.value), "the name, not the place"


def test_a_huge_picture_is_refused_before_it_is_decoded(lab_client, tmp_path):
    Image.new("1", (9_000, 9_000)).save(tmp_path / "huge.png")  # small as a file
    with pytest.raises(AppError, match="limit"):
        lab_client.predict(handle_file(str(tmp_path / "huge.png")), 4, BIG, api_name="/reconstruct")


def test_nothing_uploaded(lab_client):
    with pytest.raises(AppError, match="Choose a picture first"):
        lab_client.predict(None, 4, BIG, api_name="/reconstruct")
    with pytest.raises(AppError, match="Choose a second picture first"):
        lab_client.predict(CAT, None, 4, 1.0, BIG, api_name="/mix")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((CAT, 0, BIG, "/reconstruct"), "1"),
        ((CAT, 500, BIG, "/reconstruct"), "32"),
        ((CAT, 4, "somebody/else", "/reconstruct"), "choices"),
        (("1 2 x", BIG, "/draw"), "whole numbers"),
        (("", BIG, "/draw"), "no tokens yet"),
        (("64000", BIG, "/draw"), "0 to 63999"),
        (("1 " * 33, BIG, "/draw"), "1 to 32"),
        (("1 2 3", 4, 5, BIG, "/replace_token"), "position must be from 1 to 3"),
        (("1 2 3", 1, 64000, BIG, "/replace_token"), "must be from 0 to 63999"),
        ((CAT, LEMON, 4, 2.0, BIG, "/mix"), "1"),
    ],
)
def test_bad_arguments(lab_client, call, message):
    *arguments, name = call
    with pytest.raises(AppError) as caught:
        lab_client.predict(*arguments, api_name=name)
    assert message in str(caught.value) and "Traceback" not in str(caught.value)


def test_only_offered_tokenizers_are_loaded(lab_space):
    import bench

    for name in ("somebody/else", "../../secret", "", None):
        with pytest.raises(ValueError, match="no tokenizer"):
            bench.tokenizer(name)


def test_mcp_and_documentation(lab_space, lab_client):
    wanted = {"reconstruct", "ladder", "compare_codecs", "draw", "replace_token", "compare_tokenizers", "mix"}
    assert {name[1:] for name in lab_client.view_api(return_format="dict")["named_endpoints"]} == wanted
    assert_documented(mcp_tools(lab_space[1]), wanted)
