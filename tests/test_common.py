"""What holds for every model of every family: saving, loading, initialisation, gradients, precision, Auto classes."""

import copy
import inspect
import re

import pytest
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

import hf_vistok
from hf_vistok.modeling.modeling_utils import PreTrainedImageTokenizer
from hf_vistok.registry import find_model

from . import tiny as tiny_models
from .common import (
    assert_close,
    assert_same,
    case_of,
    pytest_generate_tests,  # noqa: F401  (parametrises this module)
    rows,
    skip_if_named,
    tensors_of,
    uninitialised_memory_is_nan,
)


def test_every_tiny_file_imports():
    assert not tiny_models.BROKEN, "\n".join(f"{name}: {error}" for name, error in tiny_models.BROKEN.items())


def save(model, folder):
    model.save_pretrained(folder, **({} if isinstance(model, ModelMixin) else {"save_original_format": False}))
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def load(model, folder):
    """Loads with all fresh memory full of NaN: what the loader forgets to fill shows."""
    with uninitialised_memory_is_nan():
        return type(model).from_pretrained(folder)


# ------------------------------------------------------------------ saving and loading


def test_save_load_save(case, tmp_path):
    skip_if_named(case, "save_load_save")
    model = case.model
    first = save(model, tmp_path / "first")
    loaded = load(model, tmp_path / "first")
    assert not loaded.training
    assert_same(save(loaded, tmp_path / "second"), first, what="file")
    assert_same(case.run(loaded), case.outputs, what="output")
    fresh = dict(case.fresh().named_buffers())
    for name, buffer in loaded.named_buffers():
        assert_close(buffer, dict(model.named_buffers())[name], what=f"buffer {name}")
        if name not in loaded.state_dict():
            assert_close(buffer, fresh[name], what=f"table {name}")


def test_config_round_trip(case, tmp_path):
    skip_if_named(case, "config_round_trip")
    config = case.model.config
    if isinstance(case.model, ModelMixin):
        case.model.save_config(tmp_path)
        again = type(case.model).from_config(type(case.model).load_config(tmp_path))
        expected = {name: value for name, value in plain(dict(config)).items() if not name.startswith("_")}
        assert {name: plain(dict(again.config)).get(name) for name in expected} == expected
        return
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert plain(again.to_dict()) == plain(config.to_dict())
    with uninitialised_memory_is_nan():
        wanted = {name: tensor.shape for name, tensor in case.model.state_dict().items()}
        assert {name: tensor.shape for name, tensor in type(case.model)(again).state_dict().items()} == wanted


def plain(value):
    """Tuples as lists, as JSON gives them back; what depends on the way of making is left out."""
    if isinstance(value, dict):
        ways = ("_name_or_path", "transformers_version", "architectures", "dtype", "_attn_implementation_autoset")
        return {name: plain(item) for name, item in value.items() if name not in ways}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_initialisation_reaches_every_tensor(case):
    """Nothing is loaded: each parameter and buffer has to come from the model's own initialisation."""
    skip_if_named(case, "initialisation_reaches_every_tensor")
    if isinstance(case.model, ModelMixin):
        pytest.skip("diffusers initialises its models in their constructors")

    def make():
        torch.manual_seed(3)
        with uninitialised_memory_is_nan():
            return type(case.model).from_pretrained(None, config=copy.deepcopy(case.model.config), state_dict={})

    model, fresh = make(), case.fresh()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            assert bool(tensor.isfinite().all()), f"{name} keeps uninitialised memory"
    for name, buffer in fresh.named_buffers():
        if name not in fresh.state_dict() or not buffer.is_floating_point():
            assert_close(dict(model.named_buffers())[name], buffer, what=f"buffer {name}")
    for name, module in model.named_modules():
        if getattr(module, "zero_init", False):
            assert not any(bool(parameter.any()) for parameter in module.parameters()), f"{name} should start at zero"
    for name, tensor in fresh.state_dict().items():
        constant = tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
        again = model.state_dict()[name]
        assert not constant or bool((again == tensor.flatten()[0]).all()), f"{name} is constant in a fresh model only"
    assert_same(dict(make().state_dict()), dict(model.state_dict()), what="same seed")


def test_auto_classes(case, tmp_path):
    skip_if_named(case, "auto_classes")
    name = type(case.model).__name__
    entry = find_model(name)
    assert entry is not None, f"{name} is not in hf_vistok/registry.py"
    assert getattr(hf_vistok, name) is type(case.model)
    if isinstance(case.model, ModelMixin):
        assert entry.model_type is None and entry.kind in ("flow", "part", "tokenizer")
        return
    assert entry.model_type == type(case.model.config).model_type
    save(case.model, tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(case.model.config)
    assert type(AutoModel.from_pretrained(tmp_path)) is type(case.model)
    ours = {"tokenizer": "AutoImageTokenizer", "prior": "AutoImagePrior"}.get(entry.kind)
    if ours is not None:
        assert type(getattr(hf_vistok, ours).from_pretrained(tmp_path)) is type(case.model)


# ------------------------------------------------------------------ the same result another way


def test_batch_is_one_by_one(case):
    skip_if_named(case, "batch_is_one_by_one")
    together = {name: value for name, value in case.outputs.items() if value.ndim}  # means over a batch are not rows
    for index in range(2):
        alone = {name: value for name, value in case.run_image(index).items() if value.ndim}
        assert_same(alone, rows(together, index, 2), case.tiny.tolerance, f"image {index}")


def test_eager_is_sdpa(case):
    skip_if_named(case, "eager_is_sdpa")
    if isinstance(case.model, ModelMixin):
        pytest.skip("diffusers has no attention interface of transformers")
    model = copy.deepcopy(case.model)
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    assert_same(case.run(model), case.outputs, case.tiny.tolerance, "eager")


def test_bfloat16_is_finite(case):
    skip_if_named(case, "bfloat16_is_finite")
    outputs = case.run(copy.deepcopy(case.model).to(torch.bfloat16), batch=1)
    for name, value in outputs.items():
        if value.is_floating_point():
            assert bool(value.isfinite().all()), name


# ------------------------------------------------------------------ training


def gradients(case, model):
    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    loss = case.loss(model)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_gradients_reach_every_parameter(case):
    skip_if_named(case, "gradients_reach_every_parameter")
    model = copy.deepcopy(case.model)
    loss, found = gradients(case, model)
    assert bool(loss.isfinite()) and loss.ndim == 0
    assert found, "nothing can be trained"
    for name, gradient in found.items():
        if any(re.search(pattern, name) for pattern in case.tiny.grad_free):
            continue
        assert gradient is not None and bool(gradient.any()), f"{name} gets no gradient"
        assert bool(gradient.isfinite().all()), f"the gradient of {name} is not finite"


def test_gradient_checkpointing(case):
    skip_if_named(case, "gradient_checkpointing")
    model = copy.deepcopy(case.model)
    supported = getattr(model, "supports_gradient_checkpointing", getattr(model, "_supports_gradient_checkpointing", 0))
    if not supported:
        pytest.skip(f"{type(model).__name__} says that it does not support it")
    loss, plainly = gradients(case, model)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.enable_gradient_checkpointing
    enable()
    again, found = gradients(case, model)
    assert_close(again, loss, 1e-6, "loss")
    for name, gradient in plainly.items():
        if gradient is not None:
            assert_close(found[name], gradient, 1e-5, f"gradient of {name}")


def test_training_lowers_the_loss(case):
    skip_if_named(case, "training_lowers_the_loss")
    torch.manual_seed(0)
    model = case.fresh().train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    losses = []
    for _ in range(8):
        torch.manual_seed(1)  # the same draws at each step: one batch, one objective
        loss = case.loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g}"
    for name, parameter in model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), f"{name} is frozen and changed"


def test_losses_are_named(case):
    """A `loss` is the sum of its named terms, in the weights of the family."""
    skip_if_named(case, "losses_are_named")
    model = copy.deepcopy(case.model).train()
    output = model(**case.forward_inputs())
    if getattr(output, "losses", None) is None:
        pytest.skip(f"{type(model).__name__}.forward returns no loss: its trainer computes it")
    assert output.losses and all(isinstance(name, str) and value.ndim == 0 for name, value in output.losses.items())
    assert bool(output.loss.isfinite())


# ------------------------------------------------------------------ around the methods


class RecordingHook:
    """Stands for accelerate's offload hook: counts how often weights would be fetched."""

    def __init__(self):
        self.calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs


def test_offload_hooks_fire(case):
    """Every public method fetches the weights; each call of the suite's own runner goes through them."""
    skip_if_named(case, "offload_hooks_fire")
    model = copy.deepcopy(case.model)
    if isinstance(model, ModelMixin):
        pytest.skip("a ModelMixin is called by forward, which accelerate hooks itself")
    calls = case.public_calls(model)
    assert calls
    for method, call in calls.items():
        model._hf_hook = hook = RecordingHook()
        with torch.no_grad():
            call()
        assert hook.calls, f"{type(model).__name__}.{method} does not fetch offloaded weights"


def test_public_methods_are_documented(case):
    skip_if_named(case, "public_methods_are_documented")
    names = (
        "encode",
        "decode",
        "ids_to_latents",
        "get_codebook_entry",
        "decode_tokens",
        "tokenize",
        "generate",
        "forward",
    )
    methods = [method for method in names if hasattr(type(case.model), method)]
    for method in methods:
        assert inspect.getdoc(getattr(type(case.model), method)), f"{type(case.model).__name__}.{method}"
    assert inspect.getdoc(type(case.model))


def check_compilation(case):
    if isinstance(case.model, PreTrainedImageTokenizer):
        functions = case.compiled_tokenizer()
    else:
        functions = {"forward": (case.model.forward, (), case.forward_inputs())}
    torch.compiler.reset()
    for name, (function, args, kwargs) in functions.items():
        with torch.no_grad():
            torch.manual_seed(0)
            expected = function(*args, **kwargs)
            torch.manual_seed(0)
            found = torch.compile(function, backend="eager", fullgraph=True)(*args, **kwargs)
        assert_same(tensors_of(found), tensors_of(expected), case.tiny.tolerance, name)


def test_compiles_without_breaks(first_case):
    """One model per family: tracing takes seconds."""
    skip_if_named(first_case, "compiles_without_breaks")
    check_compilation(first_case)


@pytest.mark.slow
def test_every_model_compiles_without_breaks(other_case):
    skip_if_named(other_case, "compiles_without_breaks")
    check_compilation(other_case)


def test_cases_are_tiny(case):
    assert sum(parameter.numel() for parameter in case.model.parameters()) < 3_000_000
    assert not case.model.training
    assert case_of(case.name) is case
