"""Every autoregressive prior of the library with its tokenizer from one call of AutoregressivePipeline."""

import pytest
import torch

from hf_vistok import AutoregressivePipeline, PreTrainedImageTokenizer, VisTokPipeline
from hf_vistok.modeling.ar_prior_utils import PreTrainedARPrior

from .common import pytest_generate_tests  # noqa: F401  (parametrises this module)
from .tiny import TINY, shaken

# whose ids the priors write that come without a tokenizer of their own
DRAWN_BY = {
    "rar": "maskgit_vqgan",
    "rar-random-order": "maskgit_vqgan",
    "flextok-ar-class": "flextok-grid",
    "flextok-ar-text": "flextok",
}


def built_from(prior) -> tuple[str, AutoregressivePipeline]:
    if not isinstance(prior.model, PreTrainedARPrior):
        pytest.skip("it is not autoregressive")
    return prior.name, build(prior.name)


def tokenizer_for(name: str, prior: PreTrainedARPrior) -> PreTrainedImageTokenizer:
    system = TINY[name].system
    names = [DRAWN_BY[name]] if name in DRAWN_BY else [other for other, t in TINY.items() if t.system == system]
    for other in names:
        torch.manual_seed(0)
        model = TINY[other]()
        discrete = isinstance(model, PreTrainedImageTokenizer) and model.is_discrete
        if discrete and model.num_codebooks == prior.num_codebooks:
            return shaken(model)
    raise AssertionError(f"no tiny tokenizer for {name}: name one in DRAWN_BY")


def build(name: str) -> AutoregressivePipeline:
    """The tiny prior with as many codes and tokens as the tokenizer has."""
    torch.manual_seed(0)
    prior = TINY[name]()
    tokenizer, config = tokenizer_for(name, prior), prior.config
    config.codebook_size, config.num_image_tokens = tokenizer.codebook_size, tokenizer.num_tokens
    pipeline = AutoregressivePipeline(tokenizer, shaken(type(prior)(config).eval()))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def conditions(name: str, pipeline: AutoregressivePipeline, rows: slice = slice(None)) -> dict:
    if not pipeline.prior.is_text_conditional:
        return {"class_labels": [1, 2][rows]}
    given = TINY[name].kwargs("generate", 2)
    named = {"prompt_embeds": given["encoder_hidden_states"][rows]}
    if "encoder_attention_mask" in given:
        named["prompt_attention_mask"] = given["encoder_attention_mask"][rows]
    if "negative_encoder_hidden_states" in given:
        named["negative_prompt_embeds"] = given["negative_encoder_hidden_states"][rows]
        if "negative_encoder_attention_mask" in given:
            named["negative_prompt_attention_mask"] = given["negative_encoder_attention_mask"][rows]
    return named


def seeds(count: int = 2, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + index) for index in range(count)]


def test_pictures_from_one_call(prior, tmp_path):
    (name, pipeline), steps = built_from(prior), []
    prior, tokenizer = pipeline.prior, pipeline.image_tokenizer

    def callback(pipe, step, timestep, values):
        steps.append(values["token_ids"].shape[1])
        return {}

    given = conditions(name, pipeline)
    drawn = pipeline(**given, generator=seeds(), output_type="pt", callback_on_step_end=callback)
    size = tokenizer.config.image_size
    books = () if prior.num_codebooks == 1 else (prior.num_codebooks,)
    assert drawn.images.shape == (2, 3, size, size) and torch.isfinite(drawn.images).all()
    assert drawn.prior_token_ids.shape == (2, prior.num_tokens, *books) and drawn.log_probs.shape == (2,)
    lengths = prior.step_lengths(prior.num_tokens)
    assert steps == [sum(lengths[: index + 1]) for index in range(len(lengths))]
    assert not torch.equal(drawn.prior_token_ids[0], drawn.prior_token_ids[1])

    second = pipeline(**conditions(name, pipeline, slice(1, 2)), generator=seeds(1, 1), output_type="latent").images
    assert torch.equal(second[0], drawn.prior_token_ids[1])  # a picture does not depend on its batch
    free = pipeline(**given, prior_guidance_scale=TINY[name].unguided, generator=seeds(), output_type="latent").images
    strong = pipeline(**given, prior_guidance_scale=20.0, generator=seeds(), output_type="latent").images
    assert not torch.equal(free, strong)

    pipeline.save_pretrained(tmp_path)
    loaded = VisTokPipeline.from_pretrained(str(tmp_path))
    loaded.set_progress_bar_config(disable=True)
    again = loaded(**given, generator=seeds(), output_type="pt")
    assert torch.equal(again.prior_token_ids, drawn.prior_token_ids)
    torch.testing.assert_close(again.images, drawn.images, atol=1e-5, rtol=1e-5)


def test_cached_equals_uncached_with_published_settings(prior):
    name, pipeline = built_from(prior)
    given = conditions(name, pipeline)
    cached, plain = (
        pipeline.generate_prior_tokens(**given, generator=seeds(), cache=cache) for cache in ("dynamic", False)
    )
    assert torch.equal(cached, plain)


def test_a_tokenizer_of_another_kind_is_refused(prior):
    name, pipeline = built_from(prior)
    pipeline.prior.config.codebook_size += 1
    with pytest.raises(ValueError, match="codebook_size"):
        AutoregressivePipeline(pipeline.image_tokenizer, pipeline.prior)
    with pytest.raises(ValueError, match="does not take no_such_option"):
        pipeline(**conditions(name, pipeline), no_such_option=1)
