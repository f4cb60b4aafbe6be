"""The autoregressive loop: cache, guidance, draws, prefixes, log-probabilities; and what it does not do on the host."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from hf_vistok import FlexARConfig, FlexARPrior, LlamaGenPrior, LlamaGenPriorConfig
from hf_vistok.modeling.layers.generation import TokenSampler, logits_warpers, make_cache, split_prefix
from hf_vistok.modeling.layers.rotary import apply_rotary, axial_angles, grid_rotary_at, grid_rotary_table

SIZES = {
    "codebook_size": 24,
    "num_image_tokens": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
KINDS = ("llamagen-class", "llamagen-text", "flexar-class", "flexar-text")
_models: dict[str, torch.nn.Module] = {}


def prior(kind: str):
    if kind not in _models:
        torch.manual_seed(0)
        family, condition = kind.split("-")
        if family == "llamagen":
            text = {"num_condition_tokens": 6, "caption_dim": 12, "num_classes": 0} if condition == "text" else {}
            config = LlamaGenPriorConfig(**SIZES, **{"num_classes": 5, **text}, condition=condition, multiple_of=16)
            _models[kind] = LlamaGenPrior(config).eval()
        else:
            config = FlexARConfig(**SIZES, num_classes=5, condition=condition, text_dim=12, text_length=6)
            _models[kind] = FlexARPrior(config).eval()
    return _models[kind]


def condition(kind: str, batch: int = 3) -> dict:
    if kind.endswith("class"):
        return {"class_labels": torch.arange(batch) % 5}
    source = torch.Generator().manual_seed(5)
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 4])[:batch, None]
    given = {"encoder_hidden_states": torch.randn(4, 5, 12, generator=source)[:batch], "encoder_attention_mask": mask}
    if kind.startswith("flexar"):  # a negative text of another length
        given["negative_encoder_hidden_states"] = torch.randn(1, 2, 12, generator=source)
    return given


def write(kind: str, batch: int = 3, seed: int = 0, **options):
    options = {"cfg_scale": 2.0, "generator": torch.Generator().manual_seed(seed), **options}
    return prior(kind).generate(**condition(kind, batch), **options)


@pytest.mark.parametrize("num_tokens", [1, 5, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_dynamic_static_and_no_cache_write_the_same(kind, num_tokens):
    outputs = [write(kind, num_tokens=num_tokens, cache=cache) for cache in ("dynamic", "static", False)]
    assert outputs[0].token_ids.shape == (3, num_tokens)
    for other in outputs[1:]:
        assert torch.equal(outputs[0].token_ids, other.token_ids)
        torch.testing.assert_close(outputs[0].log_probs, other.log_probs, atol=1e-3, rtol=1e-4)


def test_a_static_cache_is_used_again():
    cache = make_cache("static", 2, 16)
    first = write("flexar-class", num_tokens=16, cache=cache)
    again = write("flexar-class", num_tokens=7, cache=cache)
    assert torch.equal(first.token_ids[:, :7], again.token_ids)
    with pytest.raises(ValueError, match="16 positions"):
        make_cache(cache, 2, 17)
    used = DynamicCache()
    write("flexar-class", cache=used)
    with pytest.raises(ValueError, match="not empty"):
        write("flexar-class", cache=used)


@pytest.mark.parametrize("kind", KINDS)
def test_batched_guidance_equals_two_passes(kind):
    model, given, scale = prior(kind), condition(kind), 2.5
    ids = write(kind, cfg_scale=scale, temperature=0).token_ids
    negative = {name.removeprefix("negative_"): value for name, value in given.items() if name.startswith("negative_")}
    positive = {name: value for name, value in given.items() if not name.startswith("negative_")}
    cond = model.condition(**positive)
    uncond = model.condition(**negative) if negative else model.null_condition(cond)
    uncond = {name: value.expand(3, *value.shape[1:]) for name, value in uncond.items()}
    for step in range(16):
        prefix = ids[:, :step] if step else None
        with torch.no_grad():
            one, other = (model.prefill(dict(half), prefix, None)[:, -1] for half in (cond, uncond))
        assert torch.equal((other + scale * (one - other)).argmax(-1), ids[:, step])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_rows(kind):
    together = write(kind, generator=[torch.Generator().manual_seed(i) for i in range(3)])
    for row in range(3):
        alone = {
            name: value if name.startswith("negative_") else value[row : row + 1]
            for name, value in condition(kind).items()
        }
        output = prior(kind).generate(**alone, cfg_scale=2.0, generator=torch.Generator().manual_seed(row))
        assert torch.equal(output.token_ids[0], together.token_ids[row])
        torch.testing.assert_close(output.log_probs[0], together.log_probs[row], atol=1e-3, rtol=1e-4)


def test_a_seed_gives_the_same_ids():
    assert torch.equal(write("flexar-text", seed=3).token_ids, write("flexar-text", seed=3).token_ids)
    assert not torch.equal(write("flexar-text", seed=3).token_ids, write("flexar-text", seed=4).token_ids)


@pytest.mark.parametrize("cache", ["dynamic", "static", False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_is_continued(kind, cache):
    whole = write(kind, temperature=0, num_tokens=12).token_ids
    for given in (1, 7, 12):
        again = write(kind, temperature=0, num_tokens=12, prior_token_ids=whole[:, :given], cache=cache)
        assert torch.equal(again.token_ids, whole)
    assert torch.equal(again.log_probs, torch.zeros(3))  # nothing was left to write


@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_are_those_of_forward(kind):
    output = write(kind, temperature=0.7, top_k=5)
    positive = {name: value for name, value in condition(kind).items() if not name.startswith("negative_")}
    with torch.no_grad():
        logits = prior(kind)(output.token_ids, **positive).logits
    expected = logits.log_softmax(-1).gather(-1, output.token_ids[..., None])[..., 0].sum(1)
    torch.testing.assert_close(output.log_probs, expected, atol=1e-3, rtol=1e-4)


def test_guidance_by_schedule_and_interval():
    seen = []

    def schedule(step: int, steps: int) -> float:
        seen.append((step, steps))
        return 2.0 if step < 4 else 1.0

    scheduled = write("llamagen-class", cfg_scale=schedule, temperature=0)
    assert seen == [(i, 16) for i in range(16)]
    # the interval counts from the step after the first
    assert torch.equal(scheduled.token_ids, write("llamagen-class", cfg_interval=2, temperature=0).token_ids)
    assert not torch.equal(scheduled.token_ids, write("llamagen-class", temperature=0).token_ids)


def test_scale_1_needs_no_second_half():
    plain = prior("flexar-text").generate(
        encoder_hidden_states=condition("flexar-text")["encoder_hidden_states"], cfg_scale=1.0, temperature=0
    )
    assert plain.token_ids.shape == (3, 16)


def test_draws_are_those_of_multinomial():
    logits = torch.randn(4, 1, 9)
    sampler = TokenSampler(temperature=0.8, top_k=6, top_p=0.9, generator=torch.Generator().manual_seed(2))
    ids, _ = sampler(logits, 0)
    probabilities = sampler.probabilities(logits)[:, 0]
    expected = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(2))
    assert torch.equal(ids, expected)
    draws = [torch.empty(4, 1, 9).exponential_(generator=torch.Generator().manual_seed(2))]
    given = dataclasses.replace(sampler, generator=None, draws=draws)
    assert torch.equal(given(logits, 0)[0], expected)


def test_filters():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = {name: TokenSampler(**{name: value}).probabilities(logits)[0] > 0 for name, value in FILTERS.items()}
    assert kept["top_k"].tolist() == [True, True, False, False]
    assert kept["top_p"].tolist() == [True, True, True, False]
    assert kept["min_p"].tolist() == [True, True, False, False]
    assert len(logits_warpers(1.0, 0, 0.0, 0.0)) == 0


FILTERS = {"top_k": 2, "top_p": 0.9, "min_p": 0.4}


def test_streaming():
    seen = []
    output = write("flexar-class", token_streamer=lambda step, ids: seen.append((step, ids)))
    assert [step for step, _ in seen] == list(range(16))
    assert torch.equal(torch.cat([ids for _, ids in seen], 1), output.token_ids)

    class Streamer:
        ids, ended = [], False

        def put(self, value):
            self.ids.append(value)

        def end(self):
            self.ended = True

    streamer = Streamer()
    write("flexar-class", token_streamer=streamer)
    assert streamer.ended and torch.equal(torch.cat(streamer.ids, 1), output.token_ids)
    steps = prior("flexar-class").stream(
        torch.arange(3), cfg_scale=2.0, generator=torch.Generator().manual_seed(0), num_tokens=4
    )
    first, _ = next(steps)
    assert torch.is_grad_enabled()  # no_grad does not leak between steps
    assert torch.equal(torch.cat([first, *(ids for ids, _ in steps)], 1), output.token_ids[:, :4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "num_tokens"),
        ({"num_tokens": 17}, "num_tokens"),
        ({"num_tokens": True}, "num_tokens"),
        ({"prior_token_ids": torch.zeros(3, 9, dtype=torch.long), "num_tokens": 8}, "more than num_tokens"),
        ({"prior_token_ids": torch.zeros(2, 3, dtype=torch.long)}, "shape"),
        ({"prior_token_ids": torch.full((3, 2), 24)}, r"\[0, 23\]"),
        ({"prior_token_ids": torch.zeros(3, 2)}, "int64"),
        ({"cfg_scale": float("nan")}, "finite"),
        ({"cfg_scale": lambda step, steps: float("inf")}, "finite"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 2.5}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"num_beams": 4}, "num_beams"),
        ({"cache": "paged"}, "cache"),
        ({"generator": [torch.Generator()] * 2}, "2 generators"),
        ({"class_labels": [0, 5]}, r"\[0, 4\]"),
        ({"class_labels": None}, "class_labels"),
    ],
)
def test_bad_input_is_named(options, message):
    options = {"class_labels": torch.arange(3), **options}
    with pytest.raises(ValueError, match=message):
        prior("flexar-class").generate(**options)


def test_text_priors_check_their_features():
    with pytest.raises(ValueError, match="empty string"):
        prior("flexar-text").generate(encoder_hidden_states=torch.randn(1, 3, 12), cfg_scale=2.0)
    with pytest.raises(ValueError, match="width 12"):
        prior("flexar-text").generate(encoder_hidden_states=torch.randn(1, 3, 13))
    with pytest.raises(ValueError, match="up to 6"):
        prior("llamagen-text").generate(encoder_hidden_states=torch.randn(1, 7, 12))
    with pytest.raises(ValueError, match="mask"):
        prior("llamagen-text").generate(
            encoder_hidden_states=torch.randn(1, 3, 12), encoder_attention_mask=torch.ones(1, 4)
        )


def test_padding_of_captions_may_lie_on_either_side():
    states, mask = torch.randn(2, 6, 12), torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    rows = [states[i, :n] for i, n in enumerate((3, 5))]
    left = torch.stack([torch.cat([torch.randn(6 - len(row), 12), row]) for row in rows])
    outputs = [
        prior("llamagen-text").generate(encoder_hidden_states=x, encoder_attention_mask=m, temperature=0).token_ids
        for x, m in ((states, mask), (left, mask.flip(1)))
    ]
    assert torch.equal(*outputs)


class HostReads(TorchDispatchMode):
    """Counts reads of tensor values by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_do_not_wait_for_the_device(kind, cache):
    steps = prior(kind).stream(
        **condition(kind), cfg_scale=2.0, top_k=5, top_p=0.9, min_p=0.1, num_tokens=6, cache=cache
    )
    with HostReads() as reads:
        written = list(steps)
    assert len(written) == 6 and reads.count == 0


@pytest.mark.parametrize("kind", ["llamagen-text", "flexar-text"])
def test_a_decode_step_is_one_graph(kind):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    step = torch.compile(prior(kind).decode_step, fullgraph=True, backend=backend)
    compiled = write(kind, num_tokens=6, cache="static", compiled_step=step)
    assert len(graphs) == 1  # no breaks (fullgraph), no recompilation from step to step
    assert torch.equal(compiled.token_ids, write(kind, num_tokens=6).token_ids)


def test_a_prefix_ends_with_a_step():
    assert split_prefix([1, 1, 4, 4], 6) == 3
    with pytest.raises(ValueError, match="steps end after"):
        split_prefix([1, 1, 4, 4], 5)


def test_training_replaces_some_conditions():
    torch.manual_seed(0)
    for kind in ("llamagen-class", "flexar-class"):
        model = prior(kind)
        base = {"class_labels": torch.arange(200) % 5}
        dropped = model.drop_conditions(base, 0.25)["class_labels"]
        assert 0.1 < (dropped != base["class_labels"]).float().mean() < 0.4


def test_rotary():
    x = torch.randn(1, 2, 6, 8)
    cos, sin = grid_rotary_table((2, 2), 8, zero_rows=2)
    turned = apply_rotary(x, cos, sin)
    assert torch.equal(turned[:, :, :2], torch.zeros(1, 2, 2, 8))
    torch.testing.assert_close(turned[:, :, 2], x[:, :, 2])  # (0, 0) is the identity
    torch.testing.assert_close(turned[:, :, 2:].norm(dim=-1), x[:, :, 2:].norm(dim=-1))
    at = grid_rotary_at(torch.tensor([0, 5]), (2, 2), 8, zero_rows=2)
    torch.testing.assert_close(at[0], cos[[0, 5]])
    half = apply_rotary(x[..., [0, 2, 4, 6, 1, 3, 5, 7]], cos, sin, "half")
    torch.testing.assert_close(half, turned[..., [0, 2, 4, 6, 1, 3, 5, 7]])
    assert axial_angles(torch.tensor([[2, 3]]), 8).shape == (1, 4)
