"""The contract of image tokenizers, over every tiny tokenizer."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

import hf_vistok
import hf_vistok.auto

from .common import (
    assert_close,
    primary,
    pytest_generate_tests,  # noqa: F401  (parametrises this module)
    rows,
    skip_if_named,
)


def needs_decoder(tokenizer):
    if not tokenizer.decodes:
        pytest.skip("it has no decoder")


def needs_ids(tokenizer):
    if not tokenizer.model.is_discrete:
        pytest.skip("it is continuous: it has no ids")


def full(tokenizer):
    """Whether the encoding fills all positions (no lengths of its own)."""
    return tokenizer.encoded.token_mask is None


# ------------------------------------------------------------------ what it says about itself


def test_properties(tokenizer):
    skip_if_named(tokenizer, "properties")
    model, encoded = tokenizer.model, tokenizer.encoded
    assert model.latent_layout in ("sequence", "grid")
    assert model.mask_mode in ("attention", "token", "pack", "segment", "none")
    assert model.decodes_to in ("pixels", "features", "logits", "gaussians", None)
    assert encoded.latents.is_floating_point()
    assert encoded.latents.shape[-1 if model.latent_layout == "sequence" else 1] == model.latent_dim
    valid = list(model.valid_num_tokens)
    assert valid == sorted(set(valid)) and valid[-1] == model.num_tokens
    if not model.is_discrete:
        assert encoded.token_ids is None and model.codebook_size is None and model.bits_per_image is None
        return
    ids = encoded.token_ids
    assert ids.dtype == torch.int64 and ids.ndim == (2 if model.num_codebooks == 1 else 3)
    assert ids.shape[1] == model.num_tokens and (model.num_codebooks == 1 or ids.shape[2] == model.num_codebooks)
    assert bool((ids >= 0).all()) and bool((ids < torch.as_tensor(model._id_bounds(ids))).all())
    assert 0 < model.bits_per_image <= model.num_tokens * model.num_codebooks * math.log2(model.codebook_size) + 1e-6
    segments = model.token_segments()
    assert sum(segment.length for segment in segments) == model.num_tokens
    assert all(segment.name and segment.codebook_size > 0 for segment in segments)


def test_conditions_are_arguments(tokenizer):
    from inspect import signature

    model = type(tokenizer.model)
    assert set(model.decode_conditioning) <= set(signature(model._decode).parameters)
    assert set(model.encode_conditioning) <= set(signature(model._encode).parameters)


# ------------------------------------------------------------------ ids and latents


def test_ids_to_latents(tokenizer):
    skip_if_named(tokenizer, "ids_to_latents")
    needs_ids(tokenizer)
    found = tokenizer.ids_to_latents(tokenizer.model, tokenizer.encoded)
    assert_close(found.float(), tokenizer.encoded.latents.float(), 1e-5, "ids_to_latents")


def test_decode_tokens_is_decode(tokenizer):
    skip_if_named(tokenizer, "decode_tokens_is_decode")
    needs_ids(tokenizer)
    needs_decoder(tokenizer)
    found = tokenizer.decode_tokens(tokenizer.model, tokenizer.encoded)
    assert_close(found, tokenizer.decode(tokenizer.encoded), tokenizer.tiny.tolerance, "decode_tokens")


def test_pictures_matter(tokenizer):
    """Other pixels give other latents, other latents another picture: nothing is compared with itself."""
    skip_if_named(tokenizer, "pictures_matter")
    latents = tokenizer.encoded.latents
    assert not torch.equal(latents[0], latents[1])
    if tokenizer.decodes:
        sample = tokenizer.decode(tokenizer.encoded)
        encoded = tokenizer.encode()
        encoded.latents = latents.flip(0) + 0.1
        assert not torch.allclose(tokenizer.decode(encoded), sample)


def test_tokenize_and_detokenize(tokenizer):
    skip_if_named(tokenizer, "tokenize_and_detokenize")
    model = tokenizer.model
    if tokenizer.tiny.kwargs("encode", 2):
        pytest.skip("its encoder needs a condition: tokenize has none")
    images = model.denormalize_pixels(tokenizer.pixels())
    with torch.no_grad():
        tokens = model.tokenize(images)
    expected = tokenizer.encoded.token_ids if model.is_discrete else tokenizer.encoded.latents
    assert_close(tokens, expected, tokenizer.tiny.tolerance, "tokenize")
    if model.decodes_to != "pixels" or tokenizer.encoded.token_mask is not None:
        return
    with torch.no_grad():
        pictures = model.detokenize(tokens, **tokenizer.decode_options(tokenizer.encoded, 2))
    assert pictures.min() >= 0 and pictures.max() <= 1
    expected = model.denormalize_pixels(tokenizer.decode(tokenizer.encoded)).clamp(0, 1)
    assert_close(pictures, expected, tokenizer.tiny.tolerance, "detokenize")


# ------------------------------------------------------------------ lengths and masks


def needs_prefixes(tokenizer):
    if not tokenizer.model.is_prefix_ordered:
        pytest.skip("its tokens are not ordered: it has no prefixes")


def some_lengths(tokenizer):
    valid = list(tokenizer.model.valid_num_tokens)
    return sorted({valid[0], valid[len(valid) // 2], valid[-1]})


def test_first_tokens_of_a_prefix(tokenizer):
    skip_if_named(tokenizer, "first_tokens_of_a_prefix")
    needs_prefixes(tokenizer)
    latents, ids = tokenizer.encoded.latents, tokenizer.encoded.token_ids
    for count in some_lengths(tokenizer):
        short = tokenizer.encode(num_tokens=count)
        assert_close(short.latents, latents[:, :count], tokenizer.tiny.tolerance, f"{count} latents")
        assert ids is None or torch.equal(short.token_ids, ids[:, :count])
        if tokenizer.decodes:
            assert bool(tokenizer.decode(short).isfinite().all())


def test_a_length_per_image(tokenizer):
    """A LongTensor of lengths in one forward gives what the images give one by one."""
    skip_if_named(tokenizer, "a_length_per_image")
    needs_prefixes(tokenizer)
    lengths = torch.tensor([some_lengths(tokenizer)[0], some_lengths(tokenizer)[-1]])
    encoded = tokenizer.encode(num_tokens=lengths)
    assert encoded.token_mask.dtype == torch.bool
    assert encoded.token_mask.sum(1).tolist() == lengths.tolist()
    if not tokenizer.decodes:
        return
    together = tokenizer.decode(encoded)
    for index, count in enumerate(lengths.tolist()):
        alone = tokenizer.decode_image(encoded, index, latents=encoded.latents[index : index + 1, :count])
        if alone.shape == together[index : index + 1].shape:  # else: the picture's size follows the length
            assert_close(together[index : index + 1], alone, tokenizer.tiny.tolerance, f"{count} tokens")


def mask_for(tokenizer):
    """A mask that leaves tokens out: a prefix where the tokenizer has prefixes, any pattern where not."""
    model, length = tokenizer.model, tokenizer.encoded.latents.shape[1]
    mask = torch.ones(2, length, dtype=torch.bool)
    if model.is_prefix_ordered or model.mask_mode == "segment":
        valid = list(model.valid_num_tokens)
        count = valid[max(len(valid) // 2 - 1, 0)]
        mask[0, count:] = False
        return mask
    mask[0, 1 : length // 2 + 1] = False  # the first token stays: some decoders always look at it
    return mask


def test_token_mask(tokenizer):
    skip_if_named(tokenizer, "token_mask")
    needs_decoder(tokenizer)
    model, encoded = tokenizer.model, tokenizer.encode()
    if model.mask_mode == "none":
        check_that_all_tokens_are_needed(tokenizer)
        return
    before = tokenizer.decode(encoded)
    encoded.token_mask = mask = mask_for(tokenizer) & (encoded.token_mask if not full(tokenizer) else True)
    if bool(mask.all()):
        pytest.skip("its only valid length is the full one")
    masked = tokenizer.decode(encoded)
    if masked.shape == before.shape:
        assert not torch.allclose(masked[0], before[0]), "the mask changes nothing"
        if full(tokenizer):
            assert_close(masked[1], before[1], tokenizer.tiny.tolerance, "the image without a mask")
    encoded.latents = torch.where(mask[..., None], encoded.latents, encoded.latents.flip(-1) + 0.3)
    again = tokenizer.decode(encoded)
    assert_close(again, masked, tokenizer.tiny.tolerance, "what stands in masked slots must not matter: the picture")
    if model.mask_mode == "pack":
        packed = encoded.latents[:1, mask[0]]
        if packed.shape[1] in model.valid_num_tokens:
            alone = tokenizer.decode_image(encoded, 0, latents=packed)
            assert_close(masked[:1], alone, tokenizer.tiny.tolerance, "packed")


def check_that_all_tokens_are_needed(tokenizer):
    encoded = tokenizer.encode()
    expected = tokenizer.decode(encoded)
    latents = encoded.latents
    count = latents.shape[1] if tokenizer.model.latent_layout == "sequence" else latents[0, 0].numel()
    encoded.token_mask = torch.ones(2, count, dtype=torch.bool)
    assert_close(tokenizer.decode(encoded), expected, 0.0, "a mask that is True everywhere")
    encoded.token_mask[0, 0] = False
    with pytest.raises(ValueError, match="all its tokens"):
        tokenizer.decode(encoded)


# ------------------------------------------------------------------ what is refused


def refused(call, *words):
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert len(message) > 15, message
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


def test_encode_refuses(tokenizer):
    skip_if_named(tokenizer, "encode_refuses")
    model, good, options = tokenizer.model, tokenizer.pixels(), tokenizer.tiny.kwargs("encode", 2)
    broken, infinite = good.clone(), good.clone()
    broken.view(-1)[0], infinite.view(-1)[0] = float("nan"), float("inf")
    bad = {
        "rank": good.flatten(1),
        "channels": torch.cat([good, good[:, :1]], 1),
        "an empty batch": good[:0],
        "dtype": (good * 100).to(torch.uint8),
        "NaN": broken,
        "infinity": infinite,
    }
    for what, pixels in bad.items():
        with pytest.raises(ValueError):
            model.encode(pixels, **options)
            pytest.fail(f"{what} was not refused")
    refused(lambda: model.encode(good, **options, nonsense=1), "nonsense")
    refused(lambda: model.encode([1, 2], **options))


def test_encode_refuses_sizes(tokenizer):
    skip_if_named(tokenizer, "encode_refuses_sizes")
    odd = torch.nn.functional.pad(tokenizer.pixels(), (0, 1))
    refused(
        lambda: tokenizer.model.encode(odd, **tokenizer.tiny.kwargs("encode", 2)),
        str(odd.shape[-1]),
        str(odd.shape[-2]),
    )


def test_encode_refuses_lengths(tokenizer):
    skip_if_named(tokenizer, "encode_refuses_lengths")
    model, good, options = tokenizer.model, tokenizer.pixels(), tokenizer.tiny.kwargs("encode", 2)
    for count in (0, -1, model.num_tokens + 1, 1.5, torch.tensor([1]), torch.tensor([0.5, 1.0]), torch.tensor([0, 1])):
        refused(lambda count=count: model.encode(good, num_tokens=count, **options))


def test_decode_refuses(tokenizer):
    skip_if_named(tokenizer, "decode_refuses")
    needs_decoder(tokenizer)
    model, latents = tokenizer.model, tokenizer.encoded.latents
    options = tokenizer.decode_options(tokenizer.encoded, 2)
    axis = -1 if model.latent_layout == "sequence" else 1
    for bad in (latents[0], torch.cat([latents, latents], axis), latents.long()):
        refused(lambda bad=bad: model.decode(bad, **options))
    count = latents.shape[1] if axis == -1 else latents[0, 0].numel()
    for mask in (torch.ones(2, count), torch.ones(2, count + 1, dtype=torch.bool)):
        refused(lambda mask=mask: model.decode(latents, mask, **options), "token_mask")
    refused(lambda: model.decode(latents, **options, nonsense=1), "nonsense")
    for name in model.decode_conditioning:
        refused(lambda name=name: model.decode(latents, **{k: v for k, v in options.items() if k != name}), name)


def test_ids_are_refused(tokenizer):
    skip_if_named(tokenizer, "ids_are_refused")
    needs_ids(tokenizer)
    model, ids = tokenizer.model, tokenizer.encoded.token_ids
    top = int(torch.as_tensor(model._id_bounds(ids)).max())
    high, negative = ids.clone(), ids.clone()
    high.view(-1)[0], negative.view(-1)[0] = top, -1
    refused(lambda: model.ids_to_latents(high), str(top))
    refused(lambda: model.ids_to_latents(negative), "-1")
    refused(lambda: model.ids_to_latents(ids[..., None]), "shape")
    refused(lambda: model.ids_to_latents(ids[0]), "shape")
    refused(lambda: model.ids_to_latents(ids[:0]), "shape")
    refused(lambda: model.ids_to_latents(ids.float()), "float32")
    refused(lambda: model.ids_to_latents(ids.tolist()), "list")
    refused(lambda: model.ids_to_latents(torch.cat([ids, ids[:, :1]], 1)), str(ids.shape[1] + 1))
    if model.num_codebooks > 1:
        refused(lambda: model.ids_to_latents(torch.cat([ids, ids[..., :1]], 2)), str(model.num_codebooks + 1))


def test_continuous_tokenizers_have_no_ids(tokenizer):
    skip_if_named(tokenizer, "continuous_tokenizers_have_no_ids")
    if tokenizer.model.is_discrete:
        pytest.skip("it is discrete")
    refused(lambda: tokenizer.model.ids_to_latents(torch.zeros(1, 1, dtype=torch.long)), "continuous")


# ------------------------------------------------------------------ with its processor


def test_processor(tokenizer, tmp_path):
    """Processor and model agree on size and range, survive a save, and `postprocess` undoes `__call__`."""
    skip_if_named(tokenizer, "processor")
    model, processor = tokenizer.model, tokenizer.processor()
    if processor is None:
        pytest.skip("it takes no pictures: its registry entry has no processor")
    size = model.config.image_size
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    pixels = processor(picture, return_tensors="pt").pixel_values
    assert pixels.shape == (1, model.config.num_channels, size, size) and pixels.dtype == torch.float32
    exact = torch.from_numpy(noise).permute(2, 0, 1)[None] / 255
    assert_close(model.denormalize_pixels(pixels), exact, 1e-5, "model and processor disagree on the range:")
    assert np.array_equal(np.asarray(processor.postprocess(pixels)[0]), noise)
    options = rows(tokenizer.tiny.kwargs("encode", 2), 0, 2)
    with torch.no_grad():
        expected = model.encode(pixels, **options).latents
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for auto in (AutoImageProcessor, hf_vistok.AutoImageTokenizerProcessor):
        again = auto.from_pretrained(tmp_path)
        assert type(again) is type(processor)
        assert_close(again(picture, return_tensors="pt").pixel_values, pixels, 0.0, "processor after loading")
    loaded = hf_vistok.AutoImageTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(loaded.encode(pixels, **options).latents, expected, 0.0, "latents after loading")


def test_primary_output(tokenizer):
    skip_if_named(tokenizer, "primary_output")
    needs_decoder(tokenizer)
    options = tokenizer.decode_options(tokenizer.encoded, 2)
    with torch.no_grad():
        output = tokenizer.model.decode(tokenizer.encoded.latents, tokenizer.encoded.token_mask, **options)
    sample = primary(output)
    assert len(sample) == 2 and bool(sample.isfinite().all())
    if tokenizer.model.decodes_to == "pixels":
        assert sample.shape == tokenizer.pixels().shape
