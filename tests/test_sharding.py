"""
FSDP2 on two CPU processes with gloo.

accelerate turns FSDP on for accelerators only; the worker below switches its state by hand, all else is as on GPUs.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from hf_vistok.training import checkpoint
from hf_vistok.training.core import Trainer
from hf_vistok.training.recipe import RecipeError, parse_recipe

from .test_training import launch, losses, make_pictures, toy

WORKER = """
import sys, yaml
from pathlib import Path
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from hf_vistok.training import core
from hf_vistok.training.recipe import parse_recipe

plain = core.make_accelerator

def sharded(tracker, output):
    accelerator = plain(tracker, output)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["TransformerBlock"],
        cpu_ram_efficient_loading=False,
    )
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator

core.make_accelerator = sharded
trainer = core.Trainer(parse_recipe(yaml.safe_load(open(sys.argv[1]))), Path(sys.argv[2]), quiet=True)
assert trainer.sharded
trainer.run(int(sys.argv[3]))
"""


@pytest.mark.slow
def test_two_sharded_processes_equal_one_and_resume(tmp_path):
    changes = {"optimizer__muon_lr": 0.0, "log__sheets": 6}
    recipe = toy(make_pictures(tmp_path / "pictures"), steps=6, **changes)
    Trainer(parse_recipe(recipe), tmp_path / "one", quiet=True).run()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for _ in range(2):  # three steps, then the state of whole tensors is cut again
        arguments = ["", str(tmp_path / "worker.py"), str(tmp_path / "recipe.yaml"), str(tmp_path / "two"), "3"]
        done = subprocess.run(launch(2, arguments), env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-4000:]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert sorted(two) == list(range(1, 7)) and all(abs(one[step] - two[step]) < 1e-4 for step in one)
    a, b = (checkpoint.read_folder(tmp_path / run / "states" / "step_00000006")[0] for run in ("one", "two"))
    for stem in ("model", "ema", "model_optimizer"):
        assert all(torch.allclose(a[stem][k], b[stem][k], atol=1e-3) for k in a[stem]), stem
    # whole tensors: one process goes on
    trainer = Trainer(parse_recipe({**recipe, "steps": 7}), tmp_path / "two", quiet=True)
    assert trainer.step == 6
    ends = [(tmp_path / run / "log.jsonl").read_text().splitlines()[-1] for run in ("one", "two")]
    scores = [json.loads(line)["psnr@4"] for line in ends]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({}, "Muon needs whole matrices"), ({"optimizer__muon_lr": 0.0, "adversarial": {"weight": 0.1}}, "one module")],
)
def test_what_cannot_be_sharded_is_refused(tmp_path, changes, message):
    from types import SimpleNamespace

    from hf_vistok.training.accelerator import check_sharding

    recipe = parse_recipe(toy(Path(tmp_path), **changes))
    fake = SimpleNamespace(distributed_type=SimpleNamespace(value="FSDP"), is_fsdp2=True)
    with pytest.raises(RecipeError, match=message):
        check_sharding(fake, recipe, SimpleNamespace(model=None, modules={"model": None, "discriminator": None}))
