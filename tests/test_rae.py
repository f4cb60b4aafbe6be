"""RAE and RPiAE beside parity: diffusers' format both ways, published encoders under old names, training stages."""

import re

import pytest
import torch
import transformers
from safetensors.torch import save_file

from hf_vistok import AutoImageTokenizer
from hf_vistok.conversion.adapter import ConversionError, recognise
from hf_vistok.conversion.rae_diffusers import to_diffusers
from hf_vistok.conversion.vision_towers import published_encoder

from .tiny import TINY, shaken

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4, "image_size": 16}
ENCODERS = {
    "dinov2": (transformers.Dinov2WithRegistersModel, transformers.Dinov2WithRegistersConfig, VIT),
    "dinov2_plain": (transformers.Dinov2Model, transformers.Dinov2Config, VIT),
    "mae": (transformers.ViTMAEModel, transformers.ViTMAEConfig, {**VIT, "intermediate_size": 48}),
    "siglip2": (transformers.SiglipVisionModel, transformers.SiglipVisionConfig, {**VIT, "intermediate_size": 48}),
    "clip": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig, {**VIT, "intermediate_size": 48}),
}
LONG = {"q": "query", "k": "key", "v": "value"}


def old_name(kind: str, name: str) -> str:
    """A tensor's name in files of transformers 4."""
    if kind in ("siglip2", "clip"):
        return f"vision_model.{name}"
    name = re.sub(r"\.attention\.([qkv])_proj\.", lambda m: f".attention.attention.{LONG[m[1]]}.", name)
    name = name.replace(".attention.o_proj.", ".attention.output.dense.")
    if kind == "mae":
        name = name.replace(".mlp.fc1.", ".intermediate.dense.").replace(".mlp.fc2.", ".output.dense.")
        name = re.sub(r"^layers\.", "encoder.layer.", name)
    return name


@pytest.mark.parametrize("kind", ENCODERS)
def test_published_encoders_are_bit_equal(kind, tmp_path):
    model_class, config_class, fields = ENCODERS[kind]
    torch.manual_seed(0)
    model = shaken(model_class(config_class(**fields)).eval())
    old = {old_name(kind, name): tensor.contiguous() for name, tensor in model.state_dict().items()}
    other = "text_model.x" if kind in ("siglip2", "clip") else "classifier.x"
    ours = published_encoder(kind, model.config.to_dict(), {**old, other: torch.zeros(1)})
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(tmp_path)
    theirs = model_class.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 16, 16)
    options = {"noise": torch.arange(16.0)[None]} if kind == "mae" else {}
    assert torch.equal(ours(pixels, **options).last_hidden_state, theirs(pixels, **options).last_hidden_state)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in ours.state_dict().items())
    with pytest.raises(ConversionError, match="missing"):
        published_encoder(kind, model.config.to_dict(), dict(list(old.items())[1:]))


def diffusers_model(kind: str):
    from diffusers import AutoencoderRAE

    torch.manual_seed(0)
    patch, size = (14, 28) if kind == "dinov2" else (16, 32)
    mean, std = torch.randn(64, 2, 2), torch.rand(64, 2, 2) + 0.5
    return AutoencoderRAE(
        encoder_type=kind, encoder_hidden_size=64, encoder_patch_size=patch, encoder_num_hidden_layers=1,
        decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=48, patch_size=8, encoder_input_size=size, latents_mean=mean, latents_std=std,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("kind", ["dinov2", "mae"])
def test_diffusers_format_both_ways(kind, tmp_path):
    other = diffusers_model(kind)
    other.save_pretrained(tmp_path)
    model = AutoImageTokenizer.from_pretrained(str(tmp_path))
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        latents, expected = model.encode(pixels).latents, other.encode(pixels).latent
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.decode(latents).sample, other.decode(expected).sample, atol=1e-5, rtol=1e-5)
        back = to_diffusers(model)
        torch.testing.assert_close(back.encode(pixels).latent, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(back.decode(expected).sample, other.decode(expected).sample, atol=1e-5, rtol=1e-5)


def test_what_diffusers_cannot_express_is_refused():
    with pytest.raises(ConversionError, match="num_attention_heads"):
        to_diffusers(TINY["rae"]())


def test_generators_of_rae_and_rpiae_are_told_apart():
    def config(target, **guidance):
        return {"stage_2": {"target": f"stage2.models.{target}", "params": {}}, "guidance": guidance}

    wide, lightning = "DDT.DiTwDDTHead", "lightningDiT.LightningDiT"
    assert recognise(config(wide, **{"t-min": 0}))[0].system == "rae"
    assert recognise(config(lightning, t_min=0.0))[0].system == "rae"
    assert recognise(config(lightning, **{"t-min": 0}))[0].system == "rpiae"
    both = {**config(wide), "stage_1": {"target": "stage1.RPiAE_VB", "params": {}}}
    assert recognise(both)[0].system == "rpiae"


def test_stages_of_rpiae_train_their_parts():
    model = TINY["rpiae"]()
    parts = {"stage1": {"encoder", "decoder"}, "stage2": {"bridge_encoder", "bridge_decoder"}, "stage3": {"decoder"}}
    for stage, expected in parts.items():
        model.set_training_stage(stage)
        assert {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad} == expected
    with pytest.raises(ValueError, match="training_stage"):
        model.set_training_stage("stage4")
    with pytest.raises(ValueError, match="bridge"):
        TINY["rpiae-pivot"]().set_training_stage("stage2")


def test_pivot_of_rpiae_is_zero_at_the_start():
    model = TINY["rpiae"]()
    model.set_training_stage("stage1")
    pixels = torch.rand(1, 3, 32, 32)
    losses = model(pixels, pivot_features=model.pivot_features(model.pivot_encoder(), pixels)).losses
    assert losses["pivot_loss"].item() == 0.0 and "l1_loss" in losses


def test_rectok_without_statistics_says_so():
    model = TINY["rectok"]()
    latents = model.encode(torch.rand(1, 3, 32, 32) * 2 - 1).latents
    with pytest.raises(ValueError, match="statistics"):
        model.normalize_latents(latents)
    model.set_latent_statistics([0.5] * 6, [2.0] * 6)
    torch.testing.assert_close(model.denormalize_latents(model.normalize_latents(latents)), latents)
    with pytest.raises(ValueError, match="6 channels"):
        model.set_latent_statistics([0.0], [1.0])
