"""The contract of priors, over every tiny prior, and of their `generate`."""

import inspect

import pytest
import torch

from .common import (
    assert_close,
    parameters_of,
    pytest_generate_tests,  # noqa: F401  (parametrises this module)
    skip_if_named,
    tensors_of,
)


def written(output):
    """What a prior wrote: ids, or latents."""
    return output.token_ids if output.token_ids is not None else output.latents


def takes(prior, name):
    return name in parameters_of(prior.model.generate)


def needs(prior, name):
    if not takes(prior, name):
        pytest.skip(f"{type(prior.model).__name__}.generate has no {name}")


def needs_classes(prior):
    if "class_labels" not in prior.generate_options():
        pytest.skip("it is not conditioned on classes")


def test_ids_are_in_range(prior):
    skip_if_named(prior, "ids_are_in_range")
    output, model = prior.generate(), prior.model
    if output.token_ids is None:
        assert output.latents is not None and bool(output.latents.isfinite().all()) and len(output.latents) == 2
        return
    ids = output.token_ids
    assert ids.dtype == torch.int64 and len(ids) == 2 and ids.ndim == (2 if model.num_codebooks == 1 else 3)
    assert 1 <= ids.shape[1] <= model.num_tokens
    assert ids.min() >= 0 and ids.max() < model.codebook_size


def test_seeds(prior):
    skip_if_named(prior, "seeds")
    first = written(prior.generate(seed=0))
    assert_close(written(prior.generate(seed=0)), first, 0.0, "the same seed")
    others = [written(prior.generate(seed=seed)) for seed in (1, 2, 3)]
    assert any(other.shape != first.shape or not torch.equal(other, first) for other in others), "seeds do nothing"
    single = [prior.generate(generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert_close(written(single[0]), written(single[1]), 0.0, "one generator for the batch")


def test_global_random_state_is_left_alone(prior):
    """With generators given, nothing else is drawn."""
    skip_if_named(prior, "global_random_state_is_left_alone")
    torch.manual_seed(11)
    before = torch.get_rng_state()
    prior.generate()
    assert torch.equal(torch.get_rng_state(), before), "draws from the global generator besides the given ones"


def guidance_name(prior):
    found = [name for name in ("cfg_scale", "guidance_scale") if takes(prior, name)]
    if not found:
        pytest.skip("it has no guidance")
    return found[0]


def batch_sizes_seen(model, call):
    """Numbers of rows that the model's linear layers got, in order, and how many calls there were."""
    seen = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    call()
    for hook in hooks:
        hook.remove()
    return seen


def test_guidance_is_one_forward(prior):
    """Guided generation runs as many forward passes as unguided: both halves go in one batch of 2B."""
    skip_if_named(prior, "guidance_is_one_forward")
    name, batch = guidance_name(prior), 2
    guided = batch_sizes_seen(prior.model, lambda: prior.generate(**{name: 3.0}))
    unguided = batch_sizes_seen(prior.model, lambda: prior.generate(**{name: prior.tiny.unguided}))
    assert max(guided) >= 2 * batch, "guidance does not run in one batch"
    assert len(guided) <= len(unguided), f"{len(guided)} calls of linear layers with guidance, {len(unguided)} without"
    assert max(unguided) <= batch, f"unguided ({name}={prior.tiny.unguided}) still runs the unconditional half"


def test_guidance_changes_the_result(prior):
    skip_if_named(prior, "guidance_changes_the_result")
    name = guidance_name(prior)
    plain = written(prior.generate(**{name: prior.tiny.unguided}))
    strong = [written(prior.generate(**{name: scale})) for scale in (3.0, 30.0)]
    assert any(other.shape != plain.shape or not torch.equal(other, plain) for other in strong)


def test_guided_batch_is_one_by_one(prior):
    skip_if_named(prior, "guided_batch_is_one_by_one")
    name = guidance_name(prior)
    together = written(prior.generate(**{name: 3.0}))
    for index in range(2):
        alone = written(prior.generate_image(index, **{name: 3.0}))
        if alone.shape[1] == together.shape[1]:
            assert_close(alone, together[index : index + 1], prior.tiny.tolerance, f"image {index}")


def test_log_probs_are_those_of_forward(prior):
    """The cached loop's log-probabilities equal those that one uncached pass gives for the same ids."""
    skip_if_named(prior, "log_probs_are_those_of_forward")
    output = prior.generate(**({guidance_name(prior): prior.tiny.unguided} if takes(prior, "cfg_scale") else {}))
    if output.log_probs is None:
        pytest.skip("it reports no log_probs (masked and continuous priors have none)")
    assert output.log_probs.shape == (2,) and output.log_probs.dtype == torch.float32
    inputs = {**prior.forward_inputs(), "token_ids": output.token_ids}
    inputs.update({k: v for k, v in prior.generate_options().items() if k in inputs})
    with torch.no_grad():
        logits = prior.model(**inputs).logits
    length = output.token_ids.shape[1]
    if logits is None or logits.shape[1] < length:
        pytest.skip("its forward gives no logits of all positions")
    chosen = logits[:, :length].float().log_softmax(-1).gather(-1, output.token_ids[..., None])[..., 0]
    assert_close(chosen.flatten(1).sum(1), output.log_probs, max(prior.tiny.tolerance, 1e-4), "log_probs")


def test_published_settings(prior, tmp_path):
    """Settings of `generation_config.json` are what `generate` uses when nothing is given, also after loading."""
    skip_if_named(prior, "published_settings")
    import copy

    model = copy.deepcopy(prior.model)
    names = [n for n in ("cfg_scale", "num_inference_steps", "choice_temperature", "top_k") if takes(prior, n)]
    if not names:
        pytest.skip("its generate has none of the settings that the suite knows")
    values = {"cfg_scale": 2.5, "num_inference_steps": 2, "choice_temperature": 0.5, "top_k": 3}
    settings = {name: values[name] for name in names}
    model.set_published_settings(**settings)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for name, value in settings.items():
        assert loaded.setting(name) == value
    options = {k: v for k, v in prior.generate_options().items() if k not in settings}
    seeded = lambda **given: written(  # noqa: E731
        loaded.generate(**options, **given, generator=torch.Generator().manual_seed(0))
    )
    assert_close(seeded(), seeded(**settings), 0.0, "published settings")


def test_bad_labels_are_refused(prior):
    skip_if_named(prior, "bad_labels_are_refused")
    needs_classes(prior)
    options = {name: value for name, value in prior.generate_options().items() if name != "class_labels"}
    classes = prior.model.config.num_classes
    for bad in ([-1], [classes + 1], torch.tensor([[0]]), torch.tensor([0.5]), torch.zeros(0, dtype=torch.long)):
        with pytest.raises(ValueError, match="class_labels"):
            prior.model.generate(class_labels=bad, **options)
    with pytest.raises((ValueError, TypeError)):
        prior.generate(nonsense=1)


def test_labels_of_any_kind(prior):
    skip_if_named(prior, "labels_of_any_kind")
    needs_classes(prior)
    options = {name: value for name, value in prior.generate_options().items() if name != "class_labels"}
    results = [
        written(prior.model.generate(class_labels=labels, generator=torch.Generator().manual_seed(0), **options))
        for labels in (1, [1], torch.tensor([1]), torch.tensor([1], dtype=torch.int32))
    ]
    assert all(torch.equal(result, results[0]) for result in results)


def test_wrong_number_of_generators(prior):
    skip_if_named(prior, "wrong_number_of_generators")
    with pytest.raises(ValueError, match="generator"):
        prior.generate(generator=[torch.Generator()] * 3)


def test_continuation(prior):
    """Ids that are given stay, the rest is written."""
    skip_if_named(prior, "continuation")
    needs(prior, "prior_token_ids")
    ids = prior.generate(seed=4).token_ids
    if ids is None:
        pytest.skip("it writes latents")
    half = prior.tiny.prefix or max(ids.shape[1] // 2, 1)
    mask_id = getattr(prior.model, "mask_token_id", None)
    given = ids[:, :half].clone()
    if mask_id is not None:
        given = torch.cat([given, torch.full_like(ids[:, half:], mask_id)], 1)
    found = prior.generate(prior_token_ids=given).token_ids
    assert found.shape == ids.shape
    assert torch.equal(found[:, :half], ids[:, :half])
    if mask_id is not None:
        assert bool((found != mask_id).all())
        with pytest.raises(ValueError, match="prior_token_ids"):
            prior.generate(prior_token_ids=given[:, :-1])
    with pytest.raises(ValueError, match="prior_token_ids"):
        prior.generate(prior_token_ids=given - 1_000_000)


class Recorder:
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.values, self.ended = [], 0

    def put(self, value):
        self.values.append(value)

    def end(self):
        self.ended += 1


def test_streamer(prior):
    skip_if_named(prior, "streamer")
    needs(prior, "token_streamer")
    recorder = Recorder()
    output = prior.generate(token_streamer=recorder)
    assert recorder.values and recorder.ended == 1
    assert_close(written(prior.generate()), written(output), 0.0, "streaming changes the result:")


def test_callback(prior):
    skip_if_named(prior, "callback")
    needs(prior, "callback")
    seen = []
    output = prior.generate(callback=lambda step, ids: seen.append((step, ids.clone())))
    assert [step for step, _ in seen] == list(range(len(seen))) and seen
    assert torch.equal(seen[-1][1], written(output))
    changed = prior.generate(callback=lambda step, ids: torch.zeros_like(ids))
    assert bool((written(changed) == 0).all()), "what the callback returns is not used"


def test_no_gradients(prior):
    skip_if_named(prior, "no_gradients")
    assert all(not tensor.requires_grad for tensor in tensors_of(prior.generate()).values())
    assert not any(tensor.is_inference() for tensor in tensors_of(prior.generate()).values())


def test_settings_default_to_none(prior):
    """A default that is a number would hide the published setting."""
    skip_if_named(prior, "settings_default_to_none")
    settings = prior.model.default_settings
    for name, parameter in inspect.signature(prior.model.generate).parameters.items():
        if name in settings:
            assert parameter.default is None, f"{name} defaults to {parameter.default!r}, not to the published setting"
