"""The chain of stages at toy size, on synthetic pictures with captions: trains, resumes, makes a pipeline."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hf_vistok import FlexTokPipeline
from hf_vistok.training import checkpoint
from hf_vistok.training.chain import build_pipeline, export_pipeline, part_recipes, train_chain
from hf_vistok.training.core import Trainer
from hf_vistok.training.export import export_checkpoint
from hf_vistok.training.recipe import LoraRecipe, RecipeError, load_recipe, parse_recipe, recipe_folder
from hf_vistok.training.stages_flow import load_flow_tokenizer

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "grey": (120, 120, 120)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Squares of four colours at drawn places, each with its caption beside it."""
    folder, rng = tmp_path_factory.mktemp("captioned"), np.random.default_rng(0)
    for i in range(48):
        name, colour = list(COLOURS.items())[i % 4]
        image = np.full((64, 64, 3), 255, np.uint8)
        top, left = rng.integers(0, 32, 2)
        image[top : top + 32, left : left + 32] = colour
        Image.fromarray(image).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a {name} square")
    return folder


def toy_chain(pictures):
    """The smoke recipe on those pictures, smaller still."""
    values = yaml.safe_load((recipe_folder() / "emoji_smoke.yaml").read_text())
    data = {"kind": "folder", "path": str(pictures), "flip": 0.5}
    for stage, overrides in values["overrides"].items():
        overrides.pop("data.styles")
        overrides |= {"data": data, "validation": data, "steps": 6, "batch_size": 8}
        overrides["log"] = {"every": 2, "evaluate": 6, "sheets": 6, "checkpoints": 3, "evaluate_images": 16}
        if stage == "flow_tokenizer":
            small = {"num_registers": 8, "num_components": 16, "num_passes": 2}
            overrides |= {f"model.config.encoder_config.{key}": value for key, value in small.items()}
            overrides |= {"model.config.transformer_config.num_tokens": 8, "short_tokens": 4, "linear_scale": 0.5}
            overrides["linear_data"] = data
        if stage == "prior":
            overrides["model.config.num_image_tokens"] = 4
    return values


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    recipe = parse_recipe(toy_chain(pictures))
    train_chain(recipe, folder / "runs", folder / "pipeline", quiet=True)
    return recipe, folder


def test_a_chain_ends_with_a_pipeline(trained):
    from hf_vistok import AutoImageTokenizer

    _, folder = trained
    pipe = FlexTokPipeline.from_pretrained(str(folder / "pipeline"))
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a red square", num_tokens=3, generator=torch.Generator().manual_seed(0))
    assert out.images[0].size == (64, 64) and out.prior_token_ids.shape == (1, 3)
    again = pipe("a red square", num_tokens=3, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(again.images[0]))
    model = AutoImageTokenizer.from_pretrained(str(folder / "pipeline"))
    assert model.num_tokens == 8 and next(model.parameters()).dtype == torch.float32
    ids = model.encode(torch.zeros(2, 3, 64, 64)).token_ids
    assert ids.shape == (2, 8)


def test_a_finished_chain_is_not_trained_again(trained):
    recipe, folder = trained
    before = (folder / "runs" / "emoji-smoke-prior" / "log.jsonl").stat().st_mtime_ns
    train_chain(recipe, folder / "runs", folder / "again", quiet=True)
    assert (folder / "runs" / "emoji-smoke-prior" / "log.jsonl").stat().st_mtime_ns == before


def test_parts_are_exported_alone(trained, tmp_path):
    from hf_vistok import AutoImagePrior, AutoImageTokenizer

    recipe, folder = trained
    _, tokenizer_run, prior_run = (folder / "runs" / part.name for part in part_recipes(recipe, folder / "runs"))
    model = AutoImageTokenizer.from_pretrained(str(export_checkpoint(tokenizer_run, tmp_path / "tokenizer")))
    pictures = model.decode_tokens(model.encode(torch.zeros(1, 3, 64, 64)).token_ids).sample
    assert pictures.shape == (1, 3, 64, 64)
    prior = AutoImagePrior.from_pretrained(str(export_checkpoint(prior_run, tmp_path / "prior")))
    assert prior.num_tokens == 4 and prior.codebook_size == model.codebook_size


def continued(part, source, lora, **config):
    """The recipe of a part that goes on from `source`."""
    part = copy.deepcopy(part)
    part.model.type, part.model.config, part.model.init_from = None, config, str(source)
    part.model.lora = LoraRecipe(rank=2) if lora else None
    part.steps, part.name = 3, "continued"
    return part


@pytest.mark.parametrize("lora", [False, True])
def test_a_chain_is_trained_on_from_its_pipeline(trained, lora, tmp_path):
    from hf_vistok import AutoImageTokenizer

    recipe, folder = trained
    _, tokenizer, prior = part_recipes(recipe, folder / "runs")
    tokenizer = continued(tokenizer, folder / "pipeline", lora, token_corruption=0.5)
    before = AutoImageTokenizer.from_pretrained(str(folder / "pipeline")).transformer.state_dict()
    trainer = Trainer(tokenizer, tmp_path / "tokenizer", quiet=True)
    assert trainer.stage.model.image_tokenizer.config.token_corruption == 0.5
    trainer.run()
    after = load_flow_tokenizer(tmp_path / "tokenizer")[0].image_tokenizer.transformer.state_dict()
    assert after.keys() == before.keys()
    changed = [name for name in before if not torch.allclose(after[name], before[name], atol=1e-7)]
    assert any("layers" in name for name in changed)
    prior = continued(prior, export_checkpoint(Path(prior.output), tmp_path / "exported"), lora)
    prior.tokenizer = str(tmp_path / "tokenizer")
    Trainer(prior, tmp_path / "prior", quiet=True).run()
    pipe = build_pipeline(tmp_path / "tokenizer", tmp_path / "prior")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red square", num_tokens=2).images[0].size == (64, 64)


def test_a_masked_prior_takes_the_place_of_the_other(trained, tmp_path):
    recipe, folder = trained
    part = copy.deepcopy(part_recipes(recipe, folder / "runs")[2])
    sizes = {"num_image_tokens": 4, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    part.model.type, part.model.config = "vistok_maskgen", {**sizes, "micro_condition": False, "num_spare_rows": 0}
    part.sheet_settings = {"num_inference_steps": 2, "cfg_scale": 1.0}
    Trainer(part, tmp_path / "run", quiet=True).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and lines[-1]["held_out_loss"] > 0
    settings = {"prior": {"num_inference_steps": 3, "cfg_scale": 1.0}}
    export_pipeline(folder / "runs" / "emoji-smoke-tokenizer", tmp_path / "run", tmp_path / "pipeline", settings)
    pipe = FlexTokPipeline.from_pretrained(str(tmp_path / "pipeline"))
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.prior).__name__ == "MaskGenPrior"
    seeded = {"generator": torch.Generator().manual_seed(0)}
    out = pipe(["a red square", "a blue square"], num_tokens=3, **seeded)
    assert out.prior_token_ids.shape == (2, 3) and len(out.images) == 2 and out.log_probs is None
    kept = torch.full((1, 2), 5)
    ids = pipe.generate_prior_tokens("a red square", prior_token_ids=kept, **seeded)
    assert ids.shape == (1, 4) and torch.equal(ids[:, :2], kept)


def test_a_prior_of_classes_is_refused(trained, tmp_path):
    recipe, folder = trained
    part = copy.deepcopy(part_recipes(recipe, folder / "runs")[2])
    part.model.type, part.model.config = "vistok_rar", {"num_image_tokens": 4}
    with pytest.raises(RecipeError, match="RARPrior takes no text"):
        Trainer(part, tmp_path, quiet=True)


def test_a_teacher_teaches_the_decoder(trained, tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    recipe, folder = trained
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "teacher")
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 28}, "resample": 3}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_center_crop": False}
    (tmp_path / "teacher" / "preprocessor_config.json").write_text(json.dumps(processor))
    part = copy.deepcopy(part_recipes(recipe, folder / "runs")[1])
    part.teachers = [str(tmp_path / "teacher")]
    with pytest.raises(RecipeError, match="teacher"):
        Trainer(copy.deepcopy(part), tmp_path / "refused", quiet=True)
    part.model.config |= {"alignment_dim": 16, "alignment_hidden_dim": 32}
    part.model.config["transformer_config"]["feature_layer"] = 0
    Trainer(part, tmp_path / "run", quiet=True).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    alignment = [line["alignment_loss"] for line in lines]
    assert len(alignment) == 6 and all(0 < value < 2 for value in alignment) and alignment[-1] < alignment[0]


@pytest.mark.parametrize(
    ("config", "message"), [({"vae_config": {}}, "cannot be changed"), ({"tokn_corruption": 1}, "'tokn_corruption'")]
)
def test_what_a_checkpoint_cannot_change_is_refused(trained, config, message, tmp_path):
    recipe, folder = trained
    part = continued(part_recipes(recipe, folder / "runs")[1], folder / "pipeline", False, **config)
    with pytest.raises(RecipeError, match=message):
        Trainer(part, tmp_path, quiet=True)


@pytest.mark.parametrize("stage", ["flow_tokenizer", "prior"])
def test_a_resumed_run_equals_an_uninterrupted_one(trained, stage, tmp_path):
    recipe, folder = trained
    part = next(p for p in part_recipes(recipe, folder / "runs") if p.stage == stage)
    losses = {}
    for name, stops in (("whole", [None]), ("broken", [4, None])):
        for stop in stops:
            trainer = Trainer(copy.deepcopy(part), tmp_path / name, quiet=True)
            trainer.run(stop_after=stop)
        lines = [yaml.safe_load(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines]
    assert len(losses["whole"]) == 6
    np.testing.assert_allclose(losses["broken"], losses["whole"], rtol=0, atol=1e-6)


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def command(recipe, folder, run, processes=1):
    """The command that trains a part, and its environment."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(asdict(recipe)))
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"] if processes > 1 else []
    train = ["-m", "hf_vistok.cli.train", str(folder / "recipe.yaml"), "--output", str(run), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return [sys.executable, *launcher, *train], environment


@pytest.fixture
def part(trained, request):
    """A part of the chain whose draws do not depend on the number of processes."""
    recipe, folder = trained
    part = copy.deepcopy(next(p for p in part_recipes(recipe, folder / "runs") if p.stage == request.param))
    part.micro_batch_size = 4
    return part


@pytest.mark.slow
@pytest.mark.parametrize("part", ["vae", "flow_tokenizer", "prior"], indirect=True)
def test_two_processes_equal_one(part, tmp_path):
    for name, count in (("one", 1), ("two", 2)):
        start, environment = command(part, tmp_path, tmp_path / name, count)
        done = subprocess.run(start, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 6
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["vae", "flow_tokenizer", "prior"], indirect=True)
def test_a_killed_run_goes_on_as_if_nothing_had_been(part, tmp_path):
    part.log.checkpoints, part.steps = 1, 40
    start, environment = command(part, tmp_path, tmp_path / "whole")
    subprocess.run(start, env=environment, check=True, timeout=300)
    start, environment = command(part, tmp_path, tmp_path / "killed")
    process = subprocess.Popen(start, env=environment)
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None and not checkpoint.states(tmp_path / "killed" / "states"):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was killed, and did not end by itself
    subprocess.run(start, env=environment, check=True, timeout=300)
    np.testing.assert_allclose(losses(tmp_path / "killed"), losses(tmp_path / "whole"), rtol=0, atol=1e-6)


def test_linear_tokens_start_better_with_each_doubling(trained):
    """The closed form alone: the error of the coarse picture falls with every token that is added."""
    from hf_vistok.training.stages_flow import FlowTokenizerStage

    recipe, folder = trained
    stage = FlowTokenizerStage(part_recipes(recipe, folder / "runs")[1], torch.device("cpu"))
    model = stage.model.image_tokenizer
    latents = stage.batch(stage.data.take(np.arange(48)), np.arange(48), plain=True)["latents"]
    codes = model.encode_latents(latents).latents
    errors = [
        float((model.transformer.token_map(codes[:, :k], None, None)[0] - latents).square().mean())
        for k in (1, 2, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": {"vae": "emoji-64-vae"}}, "flow_tokenizer, prior missing"),
        ({"overrides": {"vea": {}}}, "'vea' is none of"),
        ({"parts": dict.fromkeys(("vae", "flow_tokenizer", "prior"), "emoji-64-prior")}, "is a recipe of stage"),
        ({"overrides": {"vae": {"stepps": 3}}}, "stepps"),
    ],
)  # fmt: skip
def test_wrong_chains_are_refused(change, message):
    values = {**yaml.safe_load((recipe_folder() / "emoji-64.yaml").read_text()), **change}
    with pytest.raises(RecipeError, match=message):
        part_recipes(parse_recipe(values))


@pytest.mark.parametrize("settings", [{"temperatur": 0.5}, {"cfg_scale": "much"}])
def test_wrong_sheet_settings_are_refused_before_training(trained, settings, tmp_path):
    recipe, folder = trained
    part = copy.deepcopy(part_recipes(recipe, folder / "runs")[2])
    part.sheet_settings = settings
    with pytest.raises(RecipeError, match="sheet_settings"):
        Trainer(part, tmp_path / "run", quiet=True)


def test_package_recipes_are_valid():
    for path in recipe_folder().glob("*.yaml"):
        recipe = load_recipe(path)
        if recipe.stage == "chain":
            assert [part.stage for part in part_recipes(recipe)] == ["vae", "flow_tokenizer", "prior"]
