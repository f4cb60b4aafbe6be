"""FlexTok by its own properties: masks, mixed lengths, the flow sampler, training, conversion of other variants."""

import copy
import json

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file

from hf_vistok import AutoImageTokenizer, FlexTokModel, ImageReconstructionPipeline
from hf_vistok.conversion import from_original_parts, get_adapter
from hf_vistok.conversion.adapter import ConversionError
from hf_vistok.conversion.flextok import tokenizer_config
from hf_vistok.modeling.layers.flow import FlowGuidance, euler_scheduler, sample_flow, training_times
from hf_vistok.modeling.layers.quantizers import FSQ
from hf_vistok.modeling.layers.vae import vae_decode, vae_posterior

from .tiny import shaken
from .tiny_flextok import GRID, TEXT, VAE, draws, flextok, flextok_config


def model_of(encoder=None, transformer=None, **fields):
    torch.manual_seed(0)
    return shaken(flextok(encoder, transformer, **fields)())


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


# ---------------------------------------------------------------- the model


def test_fsq_counts_the_first_channel_fastest():
    fsq = FSQ([8, 8, 8, 5, 5, 5])
    ids = torch.randint(64000, (3, 7), generator=torch.Generator().manual_seed(0))
    codes = fsq.indices_to_latents(ids)
    assert torch.equal(fsq.latents_to_indices(codes), ids) and codes.abs().max() <= 1
    assert torch.equal(fsq.indices_to_latents(torch.tensor([1]))[0], torch.tensor([-0.75, -1, -1, -1, -1, -1]))
    every = FSQ([4, 3, 2])
    limits = torch.tensor([[-9.0, -9, -9], [9.0, 9, 9]])
    assert every(limits).indices.tolist() == [0, 23]


def test_patches_do_not_see_registers_and_registers_are_causal(model):
    latents = draws(2, 4, 8, 8)
    before = model.encoder(latents)
    changed = copy.deepcopy(model.encoder)
    with torch.no_grad():
        changed.registers[5] += 1.0
    after = changed(latents)
    assert torch.equal(before[:, :5], after[:, :5]) and not torch.equal(before[:, 5:], after[:, 5:])
    full = model_of({"causal_registers": False})
    with torch.no_grad():
        one = full.encoder(latents)
        full.encoder.registers[5] += 1.0
        assert not torch.equal(one[:, :5], full.encoder(latents)[:, :5])


def test_mixed_lengths_in_one_forward(model, pixels):
    lengths, noise = torch.tensor([1, 3, 5, 8]), draws(4, 4, 8, 8)
    encoded = model.encode(pixels, lengths)
    assert encoded.token_mask.sum(1).tolist() == lengths.tolist()
    together = model.decode(encoded.latents, encoded.token_mask, noise=noise, num_inference_steps=3).sample
    for i, length in enumerate(lengths.tolist()):
        alone = model.decode_tokens(
            encoded.token_ids[i : i + 1, :length], noise=noise[i : i + 1], num_inference_steps=3
        )
        torch.testing.assert_close(together[i : i + 1], alone.sample, atol=1e-4, rtol=1e-3)
    assert not torch.equal(together[:1], model.decode(encoded.latents[:1], noise=noise[:1]).sample)


def test_ids_do_not_depend_on_chance_unless_asked(model, pixels):
    noise = torch.randn(4, 4, 8, 8)
    assert torch.equal(model.encode(pixels).token_ids, model.encode(pixels).token_ids)
    drawn = [model.encode(pixels, sample_posterior=True, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(drawn[0].pre_quant, drawn[1].pre_quant) and not torch.equal(
        drawn[0].pre_quant, drawn[2].pre_quant
    )
    assert torch.equal(model.encode(pixels, noise=noise).pre_quant, model.encode(pixels, noise=noise).pre_quant)


@pytest.mark.parametrize("grid", [False, True])
def test_smaller_pictures_use_the_top_left_positions(grid):
    model = model_of({"num_registers": 0} if grid else None, GRID if grid else None)
    pixels = torch.rand(2, 3, 8, 12) * 2 - 1
    encoded = model.encode(pixels)
    assert encoded.latents.shape == ((2, 4, 2, 3) if grid else (2, 8, 4))
    sample = model.decode_tokens(encoded.token_ids, image_size=(8, 12), num_inference_steps=2).sample
    assert sample.shape == pixels.shape
    with pytest.raises(ValueError, match="multiples of 4 up to 16"):
        model.encode(torch.zeros(1, 3, 10, 16))


def test_space_to_depth_vae():
    vae = AutoencoderKL(**{**VAE, "in_channels": 48, "out_channels": 48, "block_out_channels": [8, 8]}).eval()
    pixels = torch.rand(1, 3, 32, 32)
    latents = vae_posterior(vae, pixels).mode()
    assert latents.shape == (1, 4, 4, 4) and vae_decode(vae, latents).shape == pixels.shape


def test_one_decode_step_compiles_without_a_break(model):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(model.transformer, fullgraph=True, backend="eager")
    x, t, tokens, mask = draws(2, 4, 8, 8), torch.tensor([0.5, 1.0]), draws(2, 8, 4), torch.ones(2, 8).bool()
    with torch.no_grad():
        for time in (t, t * 0.5):
            torch.testing.assert_close(
                step(x, time, tokens, mask).sample, model.transformer(x, time, tokens, mask).sample
            )
    assert not torch._dynamo.utils.counters["graph_break"]


# ---------------------------------------------------------------- the sampler


@pytest.mark.parametrize("steps", [1, 3, 20, 25])
def test_scheduler_takes_the_original_steps(steps):
    scheduler = euler_scheduler(steps)
    expected = [i / steps for i in range(steps, -1, -1)]
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(expected), atol=1e-7, rtol=0)
    x = noise = torch.randn(2, 4, 8, 8)
    for i in range(steps, 0, -1):
        x = x - (1 / steps) * torch.sin(3 * x + i / steps)
    seen = sample_flow(lambda x, t, guided: torch.sin(3 * x + t.view(-1, 1, 1, 1)), noise, steps, FlowGuidance())
    torch.testing.assert_close(seen, x, atol=1e-5, rtol=1e-5)


def test_apg_by_hand():
    guidance, buffer, m = FlowGuidance(7.5), FlowGuidance(7.5).start(), 0.0
    for seed in range(3):
        cond, uncond = draws(2, 4, 8, 8, seed=seed), draws(2, 4, 8, 8, seed=seed + 9)
        m = (cond - uncond) - 0.5 * m
        d = m * (2.5 / m.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1.0)
        unit = torch.nn.functional.normalize(cond.double(), dim=(1, 2, 3))
        orthogonal = d - ((d.double() * unit).sum((1, 2, 3), keepdim=True) * unit).float()
        torch.testing.assert_close(guidance(cond, uncond, 7.5, buffer), cond + 6.5 * orthogonal)


def test_batched_guidance_equals_two_passes(model):
    x, t, tokens = draws(2, 4, 8, 8), torch.ones(2), draws(2, 8, 4).clamp(-1, 1)
    with torch.no_grad():
        cond = model.transformer(x, t, tokens).sample
        uncond = model.transformer(x, t, tokens, null_mask=torch.ones(2, dtype=torch.bool)).sample
        guided = model.transformer.make_guidance(3.0, "cfg")
        sampled = model.transformer.sample_latents(x, tokens, num_inference_steps=1, guidance=guided)
    torch.testing.assert_close(sampled, x - (uncond + 3 * (cond - uncond)), atol=1e-4, rtol=1e-4)


def test_a_shifted_scheduler_bends_the_times(model):
    x, tokens = draws(1, 4, 8, 8), draws(1, 8, 4)
    options = {"num_inference_steps": 4, "guidance": FlowGuidance()}
    with torch.no_grad():
        plain = model.transformer.sample_latents(x, tokens, **options)
        same = model.transformer.sample_latents(x, tokens, scheduler=FlowMatchEulerDiscreteScheduler(), **options)
        shifted = FlowMatchEulerDiscreteScheduler(shift=3.0)
        bent = model.transformer.sample_latents(x, tokens, scheduler=shifted, **options)
    assert torch.equal(plain, same) and not torch.equal(plain, bent)
    with pytest.raises(ValueError, match="use_dynamic_shifting"):
        model.transformer.sample_latents(
            x, tokens, scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), **options
        )


def test_training_times():
    u = torch.linspace(0, 1, 101)
    mode = training_times(u, "mode", 0.25)
    torch.testing.assert_close(mode, 1 - u - 0.25 * (torch.cos(torch.pi * u / 2) ** 2 - 1 + u))
    for kind in ("uniform", "mode", "logit_normal"):
        assert ((training_times(u, kind) >= 0) & (training_times(u, kind) <= 1)).all()
    with pytest.raises(ValueError, match="timestep sampling"):
        training_times(u, "cosine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": float("nan")}, "finite"),
        ({"num_inference_steps": 0}, "whole number"),
        ({"noise": torch.zeros(1, 4, 4, 4)}, "noise must have shape"),
        ({"guidance": "zero"}, "guidance must be"),
        ({"encoder_hidden_states": torch.zeros(1, 2, 12)}, "sees no text"),
        ({"aesthetic": 5.0}, "does not take aesthetic"),
    ],
)
def test_bad_decode_options(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.decode_tokens(torch.tensor([[1, 2]]), **options)


def test_guidance_needs_a_null_condition():
    model = model_of(None, {"null_condition": False})
    ids = torch.tensor([[1, 2]])
    assert model.decode_tokens(ids, num_inference_steps=1).sample.shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="no null condition"):
        model.decode_tokens(ids, guidance_scale=2.0)


# ---------------------------------------------------------------- training


def test_overfits_a_batch(pixels):
    torch.manual_seed(0)
    model = FlexTokModel(flextok_config(alignment_dim=6, alignment_hidden_dim=32)).train()
    assert not model.vae.training and not any(p.requires_grad for p in model.vae.parameters())
    fixed = {"noise": draws(4, 4, 8, 8), "timesteps": torch.tensor([0.3, 0.5, 0.7, 0.9])}
    fixed |= {"teacher_features": draws(4, 16, 6), "num_tokens": torch.tensor([8, 8, 4, 2])}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 5e-3)
    history = []
    for _ in range(60):
        output = model(pixels, **fixed)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in output.losses.items()})
    assert history[-1]["flow_loss"] < 0.7 * history[0]["flow_loss"], (history[0], history[-1])
    assert history[-1]["alignment_loss"] < 0.7 * history[0]["alignment_loss"]


def test_training_drops_things(pixels):
    model = model_of(None, TEXT, condition_dropout=0.0, text_dropout=0.0).train()
    fixed = {"noise": draws(4, 4, 8, 8), "timesteps": torch.full((4,), 0.5)}
    fixed |= {"encoder_hidden_states": draws(4, 5, 12), "pooled_projections": draws(4, 12)}
    full = {**fixed, "num_tokens": torch.full((4,), 8)}
    base = model(pixels, **full).loss
    assert torch.equal(model(pixels, **full).loss, base)
    for name in ("condition_dropout", "text_dropout", "quantizer_dropout", "token_corruption", "token_swap"):
        other = copy.deepcopy(model)
        setattr(other.config, name, 1.0)
        assert not torch.equal(other(pixels, **full).loss, base), name
        if name in ("token_corruption", "token_swap"):
            other.config.corruption_max_tokens = 7
            assert torch.equal(other(pixels, **full).loss, base), f"{name} leaves long prefixes alone"
    torch.manual_seed(0)
    assert not torch.equal(model(pixels, **fixed).loss, base), "nested dropout is drawn in training"
    latents = model.vae_latents(pixels)
    torch.testing.assert_close(model(vae_latents=latents, **full).loss, base)


def test_frozen_parts_stay_frozen_after_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = FlexTokModel.from_pretrained(tmp_path)
    assert not any(p.requires_grad for p in again.train().vae.parameters()) and not again.vae.training
    assert all(p.requires_grad for p in again.transformer.parameters())


# ---------------------------------------------------------------- conversion


def tiny_original(grid=False, **changes):
    """A configuration in the authors' shape at tiny size, with modules under other names than the published ones."""
    config = copy.deepcopy(tokenizer_config(2, 2, 4))
    encoder, decoder = config["encoder"]["module_dict"], config["decoder"]["module_dict"]
    for part in (encoder, decoder):
        for name, node in part.items():
            node["_target_"] = f"flextok.anything.{node['_target_']}"
            if "transformer" in name:
                node.update(dim=32, head_dim=16)
    for node in (encoder["enc_posemb_module"], decoder["dec_patches_posemb_module"]):
        node["max_sizes"] = [4, 4]
    encoder["enc_register_module"]["n_max"] = 8
    decoder["dec_registers_posemb_module"]["max_sizes"] = [8]
    encoder["enc_to_latents"]["dim_out"] = 4
    config["regularizer"]["levels"] = [4, 4, 3, 2]
    config["fixture_overrides"] = {"vae": {**VAE, "_class_name": "AutoencoderKL", "scaling_factor": None}}
    config["vae"]["scaling_factor"] = 0.5
    decoder["dec_time_embedder"].update(changes.pop("time", {}))
    if grid:
        del encoder["enc_register_module"], decoder["dec_registers_posemb_module"], decoder["dec_nested_dropout"]
        decoder["dec_transformer"]["adaLN_expansion"] = 1
        decoder["dec_add_noise_and_latents"] = {"_target_": "flextok.model.utils.dict_ops.BatchOp", "op": "sum_tensors"}
    if not changes.pop("head", True):
        decoder["dec_to_patches"]["adaLN_emb_read_key"] = None
    assert not changes
    return config


def original_state(config):
    """Random tensors under the authors' names for a configuration, by turning our names back."""
    plan = get_adapter("flextok").plan("tokenizer", config)
    model = shaken(FlexTokModel(plan.parts["image_tokenizer"].config))
    names = {
        "encoder.patch_embed.": "encoder.module_dict.enc_patch_emb.patch_proj.",
        "encoder.patch_position_table.table": "encoder.module_dict.enc_posemb_module.posembs",
        "encoder.registers": "encoder.module_dict.enc_register_module.registers",
        "encoder.layers.": "encoder.module_dict.enc_transformer.blocks.",
        "encoder.proj_out.": "encoder.module_dict.enc_to_latents.proj.",
        "transformer.token_embed.": "decoder.module_dict.dec_from_latents.proj.",
        "transformer.token_position_table.table": "decoder.module_dict.dec_registers_posemb_module.posembs",
        "transformer.mask_token": "decoder.module_dict.dec_nested_dropout.dropout_mask_token",
        "transformer.null_token": "decoder.module_dict.dec_latent_dropout.nullcond",
        "transformer.patch_embed.": "decoder.module_dict.dec_noise_patch_emb.patch_proj.",
        "transformer.patch_position_table.table": "decoder.module_dict.dec_patches_posemb_module.posembs",
        "transformer.time_embed.fc1.": "decoder.module_dict.dec_time_embedder.mlp.0.",
        "transformer.time_embed.fc2.": "decoder.module_dict.dec_time_embedder.mlp.2.",
        "transformer.layers.": "decoder.module_dict.dec_transformer.blocks.",
        "transformer.modulation_out.": "decoder.module_dict.dec_to_patches.adaLN_modulation.1.",
        "transformer.proj_out.": "decoder.module_dict.dec_to_patches.proj.",
        "vae.": "vae.vae.",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        old = next(old + name[len(new) :] for new, old in names.items() if name.startswith(new))
        if ".blocks." in old:
            old = old.replace(".modulation.", ".adaLN_modulation.1.").replace(".mlp.w", ".mlp.fc")
        if old.endswith("attn.qkv.weight"):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[old.replace("qkv", f"w{letter}")] = part.contiguous()
        else:
            state[old] = tensor.contiguous()
    return state, model.eval()


@pytest.mark.parametrize(
    "options", [{}, {"head": False}, {"time": {"max_timestep": 1000.0}}, {"grid": True}, {"grid": True, "head": False}]
)
def test_other_variants_convert(options, pixels):
    config = tiny_original(**options)
    state, model = original_state(config)
    parts = from_original_parts("flextok", "tokenizer", config, state)
    ours = parts["image_tokenizer"]
    assert list(parts)[0] == "image_tokenizer" and parts["transformer"] is ours.transformer
    assert parts["vae"] is ours.vae and parts["image_encoder"] is ours.encoder
    assert ours.vae.config.scaling_factor == 0.5 and ours.is_grid == options.get("grid", False)
    ids, noise = ours.encode(pixels).token_ids, draws(4, 4, 8, 8)
    assert torch.equal(ids, model.encode(pixels).token_ids)
    want = model.decode_tokens(ids, noise=noise, num_inference_steps=2).sample
    torch.testing.assert_close(ours.decode_tokens(ids, noise=noise, num_inference_steps=2).sample, want)
    assert ours.transformer.time_embed.scale == (1.0 if "time" in options else 1000.0)


@pytest.mark.parametrize("as_metadata", [False, True])
def test_original_folder(tmp_path, pixels, as_metadata):
    config = tiny_original()
    state, model = original_state(config)
    metadata = {name: repr(value) for name, value in config.items()} if as_metadata else {}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt", **metadata})
    if not as_metadata:
        (tmp_path / "config.json").write_text(json.dumps(config, sort_keys=True))
    ours = AutoImageTokenizer.from_pretrained(str(tmp_path))
    assert isinstance(ours, FlexTokModel) and torch.equal(ours.encode(pixels).token_ids, model.encode(pixels).token_ids)
    ours.save_pretrained(tmp_path / "ours")
    again = AutoImageTokenizer.from_pretrained(str(tmp_path / "ours"))
    assert torch.equal(again.encode(pixels).token_ids, model.encode(pixels).token_ids)


def test_unknown_modules_are_refused():
    config = tiny_original()
    config["decoder"]["module_dict"]["dec_extra"] = {"_target_": "os.system"}
    with pytest.raises(ConversionError, match="dec_extra.*os.system"):
        get_adapter("flextok").plan("tokenizer", config)
    config = tiny_original()
    state, _ = original_state(config)
    state["decoder.module_dict.dec_extra.weight"] = torch.zeros(1)
    with pytest.raises(ConversionError, match="left over.*dec_extra"):
        from_original_parts("flextok", "tokenizer", config, state)


def test_reconstruction_pipeline(model):
    pipe = ImageReconstructionPipeline(model)
    pictures = [Image.new("RGB", (20, 24), colour) for colour in ("red", "green")]
    out = pipe(pictures, num_tokens=torch.tensor([2, 8]), num_inference_steps=2, output_type="pt").images
    assert out.shape == (2, 3, 16, 16)
