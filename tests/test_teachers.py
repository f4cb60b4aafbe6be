"""Teachers: the classes of transformers at tiny size, their own processors, and the families that learn from them."""

import json

import numpy as np
import pytest
import torch
import transformers

from hf_vistok.training.teachers import VisionTeacher, teacher_kwargs

from .tiny import TINY

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "image_size": 16,
}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
SETTINGS = {"image_mean": MEAN, "image_std": STD, "resample": 3, "size": {"height": 16, "width": 16}}
NAFLEX = {"image_mean": MEAN, "image_std": STD, "resample": 2, "patch_size": 4, "max_num_patches": 16}

KINDS = {
    "dinov2": ("Dinov2Model", "Dinov2Config", {}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {"num_register_tokens": 3}),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 2}),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", {}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", {}),
    "siglip2_naflex": ("Siglip2VisionModel", "Siglip2VisionConfig", {"num_patches": 16}),
}


def tiny(kind: str, **sizes):
    model, config, extra = KINDS[kind]
    torch.manual_seed(0)
    options = {**SIZES, **extra, **sizes}
    if kind == "siglip2_naflex":
        del options["image_size"]
    return getattr(transformers, model)(getattr(transformers, config)(**options)).eval()


def save(kind: str, folder, settings=None):
    tiny(kind).save_pretrained(folder)
    settings = settings or (NAFLEX if kind == "siglip2_naflex" else SETTINGS)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


def pictures(batch: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_a_saved_teacher(kind, tmp_path):
    teacher = VisionTeacher.from_pretrained(save(kind, tmp_path))
    images = pictures()
    features = teacher(images)
    assert features.patches.shape == (2, 16, 16) and features.pooled.shape == features.mean.shape == (2, 16)
    one = teacher(images[1:])
    torch.testing.assert_close(one.patches[0], features.patches[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(features.pooled[0], features.pooled[1])
    assert teacher(images, (2, 6)).patches.shape == (2, 12, 16)
    # the whole picture is seen: a patch's features follow its place
    images[:, :, :4, :4] += 0.5
    moved = (teacher(images).patches - features.patches).abs().mean(-1)
    assert (moved.argmax(1) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_is_frozen(kind, tmp_path):
    teacher = VisionTeacher.from_pretrained(save(kind, tmp_path)).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(pictures().requires_grad_()).patches.requires_grad


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2_naflex"])
def test_preprocessing_is_the_processor_s(kind):
    names = {"clip": "CLIP", "siglip": "Siglip", "siglip2_naflex": "Siglip2"}
    module = f"transformers.models.{names[kind].lower()}.image_processing_pil_{names[kind].lower()}"
    settings = NAFLEX if kind == "siglip2_naflex" else {**SETTINGS, "do_center_crop": False}
    processor = getattr(__import__(module, fromlist=["x"]), f"{names[kind]}ImageProcessorPil")(**settings)
    array = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    theirs = processor(list(array), return_tensors="pt")
    model = tiny(kind)
    teacher = VisionTeacher(model, settings)
    images = torch.from_numpy(array).permute(0, 3, 1, 2) / 255
    expected = model(**theirs).last_hidden_state
    ours = teacher(images).patches
    torch.testing.assert_close(ours, expected[:, -16:], atol=1e-5, rtol=1e-4)


def test_resizing_is_near_the_processor_s():
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    array = np.random.default_rng(0).integers(0, 255, (1, 48, 48, 3), dtype=np.uint8)
    theirs = SiglipImageProcessorPil(**SETTINGS)(list(array), return_tensors="pt")["pixel_values"]
    ours = VisionTeacher(tiny("siglip"), SETTINGS).preprocess(torch.from_numpy(array).permute(0, 3, 1, 2) / 255)
    assert (ours - theirs).abs().max() < 0.02  # PIL rounds to 8 bits


def test_only_the_image_half_of_clip_is_loaded(tmp_path):
    text = {key: SIZES[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
    text |= {"vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=8))
    whole.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    teacher = VisionTeacher.from_pretrained(str(tmp_path))
    pixels = teacher.preprocess(pictures())
    expected = whole.vision_model(pixels, interpolate_pos_encoding=True)
    torch.testing.assert_close(teacher(pictures()).pooled, expected.pooler_output)


SUPERVISED = {
    "gigatok": (["dinov2"], "alignment_loss"),
    "retok": (["dinov2_with_registers"], "alignment_loss"),
    "restok": (["dinov2"], "decoder_alignment_loss"),
    "detailflow": (["siglip2_naflex"], "global_loss"),
    "fqgan-triple": (["dinov2", "clip"], "feature_loss"),
    "mingtok": (["dinov3"], "semantic_loss"),
    "comit": (["siglip"], "alignment_loss"),
    "flextok-text": (["dinov2"], "alignment_loss"),
    "meditok": (["clip"], "contrastive_loss"),
}


def width_of(model) -> list[int]:
    config = model.config
    for name in ("alignment_dim", "global_dim", "semantic_hidden_size", "embed_dim"):
        if getattr(config, name, None):
            return [getattr(config, name)]
    return list(config.feature_sizes)


@pytest.mark.parametrize("name", SUPERVISED)
def test_families_learn_from_teachers(name):
    kinds, term = SUPERVISED[name]
    found = next(key for key in (name, *TINY) if key in TINY and (key == name or key.startswith(name)))
    torch.manual_seed(0)
    model = TINY[found]()
    teachers = [
        VisionTeacher(tiny(kind, hidden_size=width, num_attention_heads=1), NAFLEX if "naflex" in kind else SETTINGS)
        for kind, width in zip(kinds, width_of(model), strict=True)
    ]
    images = torch.rand(2, 3, model.config.image_size, model.config.image_size)
    given = {**TINY[found].kwargs("forward", 2), **teacher_kwargs(model, teachers, images)}
    model.train()
    output = model(model.normalize_pixels(images), **given)
    assert torch.isfinite(output.losses[term])
    output.losses[term].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_clear_errors(tmp_path):
    with pytest.raises(OSError, match="no local folder"):
        VisionTeacher.from_pretrained(str(tmp_path / "nothing"), local_files_only=True)
    transformers.BertConfig().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(ValueError, match="'bert'"):
        VisionTeacher.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="no known teacher"):
        VisionTeacher(torch.nn.Linear(2, 2), SETTINGS)
    with pytest.raises(ValueError, match="image_mean"):
        VisionTeacher(tiny("dinov2"), {"size": 16})
    with pytest.raises(ValueError, match="size"):
        VisionTeacher(tiny("dinov2"), {"image_mean": MEAN, "image_std": STD})
    teacher = VisionTeacher(tiny("dinov2"), SETTINGS)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        teacher(torch.rand(3, 16, 16))
    with pytest.raises(ValueError, match="without a teacher"):
        teacher_kwargs(TINY["titok"](), [teacher], pictures())
    with pytest.raises(ValueError, match=r"takes the features of 1 teacher\(s\), got 2"):
        teacher_kwargs(TINY["restok"](), [teacher, teacher], pictures())
    model = TINY["restok"]()
    with pytest.raises(ValueError, match="must have shape"):
        model(pictures(), **teacher_kwargs(model, [teacher], pictures()))


def test_a_recipe_names_its_teachers(tmp_path):
    from hf_vistok.training.core import Trainer
    from hf_vistok.training.recipe import RecipeError, parse_recipe

    from .test_training import make_pictures
    from .tiny_restok import SIZES as RESTOK

    folder = str(make_pictures(tmp_path / "pictures"))
    values = {
        "stage": "tokenizer",
        "name": "taught",
        "model": {"type": "vistok_restok", "config": {**RESTOK, "alignment_dim": 16}},
        "data": {"kind": "folder", "path": folder},
        "steps": 2,
        "batch_size": 2,
        "precision": "float32",
        "log": {"every": 1, "evaluate": 100, "sheets": 100, "checkpoints": 2},
        "teachers": [save("dinov3", tmp_path / "teacher")],
    }
    Trainer(parse_recipe(values), tmp_path / "run", quiet=True).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("decoder_alignment_loss" in line for line in lines)
    wrong = {**values, "teachers": values["teachers"] * 2}
    with pytest.raises(RecipeError, match=r"recipe.teachers: .* 1 teacher\(s\), got 2"):
        Trainer(parse_recipe(wrong), tmp_path / "wrong", quiet=True)
