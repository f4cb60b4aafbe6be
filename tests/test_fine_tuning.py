"""Stages on sets of tokens, LoRA, and runs that start from checkpoints and states."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from hf_vistok.data.emoji import DataError
from hf_vistok.data.token_source import INDEX, safetensors_bytes
from hf_vistok.training import checkpoint
from hf_vistok.training.core import Trainer
from hf_vistok.training.export import export_checkpoint, load_trained
from hf_vistok.training.lora import add_lora, lora_targets, merge_lora, save_lora
from hf_vistok.training.recipe import LoraRecipe, RecipeError, parse_recipe
from hf_vistok.training.stages_tokens import class_ids

from . import folders

SHARED = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PRIORS = {
    "vistok_maskgit": {"codebook_size": 16, "num_image_tokens": 6, "num_classes": 3, "intermediate_size": 32, **SHARED},
    "vistok_llamagen": {"codebook_size": 16, "num_image_tokens": 4, "num_classes": 3, **SHARED},
}
FLOW = {
    "sample_size": 4, "in_channels": 3, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_classes": 3,
    "class_dropout": 0.5, "num_inference_steps": 2,
}  # fmt: skip


def maskgit(**changes) -> dict:
    return {"type": "vistok_maskgit", "config": {**PRIORS["vistok_maskgit"], **changes}}


def write_set(folder: Path, name: str, values: np.ndarray, codebook_size: int | None) -> Path:
    folder.mkdir()
    count = len(values)
    metadata = {
        "images": json.dumps([f"class{i % 3}/{i}.png" for i in range(count)]),
        "captions": json.dumps([f"caption {i}" for i in range(count)]),
        "records": "[]",
        "skipped": "0",
    }
    content = safetensors_bytes({name: values, "mirrored": values[::-1].copy()}, metadata)
    (folder / "tokens-00000.safetensors").write_bytes(content)
    index = {"format": "hf_vistok token set 1", "image_size": 32, "codebook_size": codebook_size, "shards": [count]}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def ids(tmp_path_factory) -> Path:
    values = np.random.default_rng(0).integers(0, 16, (12, 6)).astype(np.uint8)
    return write_set(tmp_path_factory.mktemp("set") / "ids", "token_ids", values, 16)


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    values = np.random.default_rng(0).normal(size=(12, 3, 4, 4)).astype(np.float16)
    return write_set(tmp_path_factory.mktemp("set") / "latents", "latents", values, None)


def recipe(stage: str, data: Path, model: dict, **changes) -> dict:
    return {
        "stage": stage,
        "name": "toy",
        "data": {"kind": "tokens", "path": str(data), "flip": 0.5},
        "validation": {"kind": "tokens", "path": str(data)},
        "labels": "folder",
        "model": model,
        "steps": 6,
        "batch_size": 4,
        "micro_batch_size": 2,
        "precision": "float32",
        "optimizer": {"lr": 1e-2, "warmup": 2, "ema": 0.5},
        "log": {"every": 2, "evaluate": 3, "sheets": 6, "checkpoints": 2},
        **changes,
    }


def run(values: dict, folder: Path, stop_after: int | None = None) -> Trainer:
    trainer = Trainer(parse_recipe(values), folder, quiet=True)
    trainer.run(stop_after)
    return trainer


def losses(folder: Path, key: str = "loss") -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def cases(ids: Path, latents: Path) -> dict[str, dict]:
    made = {kind: recipe("token_prior", ids, {"type": kind, "config": config}) for kind, config in PRIORS.items()}
    return made | {"flow": recipe("latent_flow", latents, {"type": "LatentFlowTransformer", "config": FLOW})}


@pytest.mark.parametrize("name", [*PRIORS, "flow"])
def test_a_resumed_run_equals_an_uninterrupted_one(ids, latents, tmp_path, name):
    values = cases(ids, latents)[name]
    run(values, tmp_path / "whole")
    for _ in range(2):
        run(values, tmp_path / "parts", 3)
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert sorted(whole) == list(range(1, 7))
    assert all(abs(whole[step] - parts[step]) < 1e-6 for step in whole)
    held_out = losses(tmp_path / "whole", "held_out_loss")
    assert sorted(held_out) == [3, 6] and held_out == pytest.approx(losses(tmp_path / "parts", "held_out_loss"))


def test_exports_load_again_and_train_on(ids, latents, tmp_path):
    from hf_vistok import AutoImagePrior
    from hf_vistok.modeling.dit_family.modeling_dit_family import LatentFlowTransformer

    loaders = {"vistok_llamagen": AutoImagePrior, "flow": LatentFlowTransformer}
    for name, loader in loaders.items():
        values = cases(ids, latents)[name]
        run({**values, "steps": 2}, tmp_path / name)
        folder = export_checkpoint(tmp_path / name, tmp_path / f"{name}-out")
        model = loader.from_pretrained(folder)
        trained = load_trained(tmp_path / name)[0].state_dict()
        assert all(torch.allclose(v.float(), trained[k].float(), atol=1e-2) for k, v in model.state_dict().items())
        again = {**values, "steps": 1, "model": {"init_from": str(folder), "lora": {"rank": 2}}}
        run(again, tmp_path / f"{name}-more")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "vistok_titok", "config": {}}}, "is no prior; there are"),
        (
            {"model": {"type": "vistok_maskgit", "config": {**PRIORS["vistok_maskgit"], "num_classes": 2}}},
            "has 3 classes, .* has 2",
        ),
        ({"model": {"type": "vistok_maskgit", "config": {**PRIORS["vistok_maskgit"], "codebook_size": 8}}}, "8 ids"),
        (
            {"model": {"type": "vistok_maskgit", "config": {**PRIORS["vistok_maskgit"], "num_image_tokens": 9}}},
            "writes 9 tokens, the set has 6",
        ),
        ({"data": {"kind": "folder", "path": "x"}}, "reads sets of tokens, got 'folder'"),
        ({"stage": "latent_flow"}, "holds ids; the stage 'latent_flow' trains on latents"),
    ],
)
def test_what_does_not_fit_is_refused(ids, tmp_path, changes, message):
    values = recipe("token_prior", ids, {"type": "vistok_maskgit", "config": PRIORS["vistok_maskgit"]}) | changes
    with pytest.raises((RecipeError, DataError), match=message):
        Trainer(parse_recipe(values), tmp_path, quiet=True)


def test_flows_that_do_not_fit_are_refused(latents, tmp_path):
    for model, message in (
        ({"type": "LatentFlow"}, "is no flow transformer; there are .*LatentFlowTransformer"),
        ({"type": "FlowTokTransformer"}, "needs more than latents|missing|has no"),
        ({"type": "LatentFlowTransformer", "config": {"width": 3}}, "has no 'width'"),
        ({"type": "LatentFlowTransformer", "config": {**FLOW, "in_channels": 4}}, r"takes latents \(4, 4, 4\)"),
    ):
        with pytest.raises(RecipeError, match=message):
            Trainer(parse_recipe(recipe("latent_flow", latents, model)), tmp_path, quiet=True)


def test_classes_are_folders_in_order():
    assert class_ids(["b/1.png", "a/x/2.png", "c.png", "b/3.png"]).tolist() == [2, 1, 0, 2]


# ---------------------------------------------------------------------- LoRA


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(6, 6)}) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block["fc"](x).tanh()
        return self.head(self.norm(x))


def test_targets_of_lora():
    assert lora_targets(Net(), LoraRecipe()) == ["blocks.0.fc", "blocks.1.fc"]
    assert lora_targets(Net(), LoraRecipe(targets=["head"])) == ["head"]
    with pytest.raises(RecipeError, match=r"no linear layer fits; there are: blocks\.0\.fc, blocks\.1\.fc, head"):
        lora_targets(Net(), LoraRecipe(targets=["attention"]))


def test_lora_starts_as_the_model_and_merges_to_plain_layers():
    pytest.importorskip("peft", reason="LoRA needs peft")
    model, x = Net(), torch.randn(4, 6)
    before, names = model(x), set(model.state_dict())
    add_lora(model, LoraRecipe(rank=2, train=["norm"]))
    assert torch.equal(model(x), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "norm" in name for name in trained) and len(trained) == 6
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    changed = model(x)
    merge_lora(model)
    assert torch.allclose(model(x), changed, atol=1e-5) and not torch.allclose(changed, before)
    assert set(model.state_dict()) == names and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["vistok_llamagen", "flow"])
def test_lora_on_priors_and_flows(ids, latents, tmp_path, name):
    pytest.importorskip("peft", reason="LoRA needs peft")
    values = cases(ids, latents)[name]
    run({**values, "steps": 2}, tmp_path / "base")  # a fresh transformer's gates are zero: no gradient behind them
    values["model"] = {"init_from": str(export_checkpoint(tmp_path / "base", tmp_path / "out")), "lora": {"rank": 2}}
    start = Trainer(parse_recipe(values), tmp_path / "plan", quiet=True)
    plan = start.dry_run()
    assert 0 < plan["trained_parameters"] < 0.5 * plan["parameters"]
    frozen = {k: v.clone() for k, v in start.stage.model.state_dict().items() if "lora_" not in k}
    trainer = run(values, tmp_path / "run")
    after = trainer.stage.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in frozen.items())
    assert any(v.abs().sum() > 0 for k, v in after.items() if "lora_B" in k)
    model, _ = load_trained(tmp_path / "run")
    assert not any("lora_" in key for key in model.state_dict())
    whole = losses(tmp_path / "run")
    for _ in range(2):
        run(values, tmp_path / "parts", 3)
    parts = losses(tmp_path / "parts")
    assert all(abs(whole[step] - parts[step]) < 1e-6 for step in whole)
    folder = save_lora(trainer.stage.model, trainer.ema.tensors, tmp_path / "adapter")
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}


def test_an_adapter_loads_in_transformers(ids, tmp_path):
    pytest.importorskip("peft", reason="LoRA needs peft")
    values = recipe("token_prior", ids, {"type": "vistok_llamagen", "config": PRIORS["vistok_llamagen"]})
    values["model"]["lora"] = {"rank": 2}
    trainer = run(values, tmp_path / "run")
    folder = save_lora(trainer.stage.model, trainer.ema.tensors, tmp_path / "adapter")
    merged, _ = load_trained(tmp_path / "run")
    values["model"].pop("lora")
    base = Trainer(parse_recipe(values), tmp_path / "base", quiet=True).stage.model.eval()
    base.load_adapter(str(folder))
    tokens, labels = torch.zeros(2, 4, dtype=torch.long), torch.tensor([0, 2])
    outputs = [model(token_ids=tokens, class_labels=labels).logits for model in (base, merged)]
    best = checkpoint.read_folder(tmp_path / "run" / "best")[1]["step"]
    assert best != 6 or torch.allclose(*outputs, atol=1e-5)


# ---------------------------------------------------------------------- starting from a state


def test_a_run_starts_from_the_state_of_another(ids, tmp_path):
    values = recipe("token_prior", ids, {"type": "vistok_maskgit", "config": PRIORS["vistok_maskgit"]})
    run(values, tmp_path / "first")
    values["start_from"] = str(tmp_path / "first")
    values["optimizer"]["lr"] = 1e-3
    trainer = Trainer(parse_recipe(values), tmp_path / "second", quiet=True)
    tensors, _ = checkpoint.read_folder(tmp_path / "first" / "states" / "step_00000006")
    assert trainer.step == 0
    assert all(torch.equal(v, tensors["model"][k]) for k, v in trainer.stage.model.state_dict().items())
    packed = checkpoint.pack_optimizer(trainer.optimizers["model"])
    assert packed and all(torch.equal(v, tensors["model_optimizer"][k]) for k, v in packed.items())
    trainer.run(2)
    # resumed from its own states from then on
    assert Trainer(parse_recipe(values), tmp_path / "second", quiet=True).step == 2
    values["start_from"] = str(tmp_path / "nothing")
    with pytest.raises(checkpoint.CheckpointError, match="is no training state and holds none"):
        Trainer(parse_recipe(values), tmp_path / "third", quiet=True)
    values["start_from"] = str(tmp_path / "first")
    values["model"]["config"] = {**PRIORS["vistok_maskgit"], "hidden_size": 16}
    with pytest.raises(checkpoint.CheckpointError, match="does not fit this recipe"):
        Trainer(parse_recipe(values), tmp_path / "fourth", quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PRIORS, "flow"])
def test_two_processes_draw_the_same(ids, latents, tmp_path, name):
    values = cases(ids, latents)[name]
    run(values, tmp_path / "one")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    arguments = ["hf_vistok.cli.train", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "two"), "--quiet"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert all(abs(one[step] - two[step]) < 1e-4 for step in one)


def test_checkpoints_of_the_original_authors_train_on(tmp_path):
    pictures = folders.save_pictures(tmp_path / "pictures", 4)
    source = folders.save_titok_original(tmp_path / "original")
    values = {
        "stage": "tokenizer",
        "name": "toy",
        "model": {"init_from": str(source)},
        "data": {"kind": "folder", "path": str(pictures)},
        "steps": 1,
        "batch_size": 2,
        "precision": "float32",
    }
    run(values, tmp_path / "run")
    assert losses(tmp_path / "run")[1] > 0
    prior = folders.save_prior_original(tmp_path / "prior")
    values = np.random.default_rng(0).integers(0, 64, (6, 8)).astype(np.uint8)
    tokens = write_set(tmp_path / "tokens", "token_ids", values, 64)
    run({**recipe("token_prior", tokens, {"init_from": str(prior)}), "steps": 1}, tmp_path / "tuned")
    assert losses(tmp_path / "tuned")[1] > 0
