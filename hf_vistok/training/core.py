"""
The training loop: one process or many, the same numbers.

Every draw depends on (seed, step, global index of the sample), the learning rate is a function of the step, and the
data position is the step. A training state is therefore the weights, their average, the optimizers and one number.
"""

import signal
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.draws import EpochOrder, hashed
from ..data.sources import Samples, StreamSource
from .accelerator import (
    TrainingStopped,
    check_sharding,
    flat_values,
    lost_processes,
    make_accelerator,
    peak_megabytes,
    show_sheet,
)
from .checkpoint import (
    BEST,
    PREFIX,
    CheckpointError,
    keep_last,
    newest,
    pack_optimizer,
    read_folder,
    settle,
    states,
    unpack_optimizer,
    write_folder,
)
from .lora import add_lora
from .optim import MovingAverage, learning_rate_factor, make_optimizer
from .recipe import OptimizerRecipe, Recipe, RecipeError, differences, parse_recipe
from .report import CodebookMeter, JsonLog, Progress, save_sheet
from .sharding import is_sharded, load_whole, whole
from .stages import Batch, build_stage

# what a resumed run may change without becoming another run
FREE_KEYS = (
    "name",
    "output",
    "start_from",
    "log.",
    "steps",
    "micro_batch_size",
    "validation",
    "precision",
    "model.init_from",
)


class Trainer:
    """
    Trains what a recipe describes.

    Args:
        recipe: of the run.
        output: folder of the run, `recipe.output` or `runs/<name>` by default.
        resume: "auto" (go on from the last state, if there is one), "never" (refuse a folder that has states), or the
            path of a state.
        overfit_one_batch: train on the first batch again and again, without augmentation.
        quiet: no progress bar.

    Raises:
        RecipeError: for a recipe that does not fit the machine or the model.
        CheckpointError: for a state of another recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        output: Path | None = None,
        *,
        resume: str = "auto",
        overfit_one_batch: bool = False,
        quiet: bool = False,
    ) -> None:
        self.recipe, self.overfit = recipe, overfit_one_batch
        self.output = output or Path(recipe.output or Path("runs") / recipe.name)
        self.states_folder = self.output / "states"
        self.accelerator = make_accelerator(recipe.log.tracker, self.output)
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self._split_batch()
        self.stage = build_stage(recipe, self.device)
        if recipe.model.lora is not None:
            add_lora(self.stage.model, recipe.model.lora, recipe.seed)
        self.order = (
            None if isinstance(self.stage.data, StreamSource) else EpochOrder(len(self.stage.data), recipe.seed)
        )
        self._prepare()
        self.step, self.best, self.precision, self.seconds = 0, float("-inf"), recipe.precision, 0.0
        self.quiet, self._signal = quiet or not self.main, None
        self._first_samples: Samples | None = None
        self.output.mkdir(parents=True, exist_ok=True)
        if self.main:
            self.stage.write_assets(self.output / "assets")
        self._restore(resume)

    # ------------------------------------------------------------------ set-up

    def _split_batch(self) -> None:
        world, batch = self.accelerator.num_processes, self.recipe.batch_size
        micro = self.recipe.micro_batch_size or max(1, batch // world)
        if batch % world or (batch // world) % micro:
            raise RecipeError(
                f"batch_size {batch} cannot be split over {world} processes in micro batches of {micro} pictures."
            )
        perceptual = getattr(self.recipe, "perceptual", None)
        if perceptual and perceptual.weight and perceptual.images:
            stride = max(1, batch // perceptual.images)
            if micro % stride:
                raise RecipeError(
                    f"perceptual.images {perceptual.images} of batch_size {batch} is every {stride}th picture: a micro "
                    f"batch of {micro} does not hold a whole number of them."
                )
        self.share, self.micro = batch // world, micro
        self.first = self.accelerator.process_index * self.share

    def _prepare(self) -> None:
        """Wraps modules and optimizers; the bare ones stay in `stage.modules`."""
        self.modules, self.optimizers = {}, {}
        self.plain = check_sharding(self.accelerator, self.recipe, self.stage)
        for name, module in self.stage.modules.items():
            optimizer = make_optimizer(module, self._optimizer_recipe(name))
            self.modules[name], self.optimizers[name] = self.accelerator.prepare(module, optimizer)
            module.train()
        self.sharded = is_sharded(self.stage.model)
        self.ema = MovingAverage(self.stage.model, self.recipe.optimizer.ema)
        model = self.stage.model
        self.codebook = CodebookMeter(model.codebook_size) if getattr(model, "is_discrete", False) else None

    def _optimizer_recipe(self, name: str) -> OptimizerRecipe:
        if name == "model":
            return self.recipe.optimizer
        return OptimizerRecipe(lr=self.recipe.adversarial.lr, betas=[0.9, 0.999], schedule="hold", hold=1.0)

    # ------------------------------------------------------------------ states

    def _restore(self, resume: str) -> None:
        if self.main:
            settle(self.states_folder)
            settle(self.output)
        self.accelerator.wait_for_everyone()
        found = states(self.states_folder)
        if resume == "never" and found:
            raise RecipeError(f"{self.output} holds training states; choose another --output, or --resume auto.")
        if resume in ("auto", "never"):
            last = newest(self.states_folder, self._say)
            if last is None:
                self._start_from()
                return
            path, tensors, state = last
        else:
            path = Path(resume)
            tensors, state = read_folder(path)
        self._check_same_recipe(path, state["recipe"])
        if resume != "auto" and found and path.name < found[-1].name:
            raise RecipeError(
                f"{self.output} went on to {found[-1].name}; to branch off {path}, choose another --output."
            )
        self._load(path, tensors)
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
        if self.recipe.precision == "auto":
            self.precision = state["precision"]
        if state["world_size"] != self.accelerator.num_processes:
            self._say(f"was trained on {state['world_size']} processes, goes on with {self.accelerator.num_processes}")
        self._say(f"resumed {path.name}")

    def _load(self, path: Path, tensors: dict[str, dict[str, Tensor]]) -> None:
        try:
            for name, module in self.stage.modules.items():
                load_whole(module, tensors[name])
                unpack_optimizer(self.optimizers[name], tensors[f"{name}_optimizer"])
            self.ema.load(tensors["ema"])
            self.stage.load_state(tensors.get("stage", {}))
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit this recipe: {error}") from error

    def _start_from(self) -> None:
        """Fine-tuning with everything that another run had: discriminator and optimizers too."""
        if self.recipe.start_from is None:
            return
        path = Path(self.recipe.start_from)
        if not (path / "state.json").is_file():
            found = states(path / "states")
            if not found:
                raise CheckpointError(f"recipe.start_from: {path} is no training state and holds none.")
            path = found[-1]
        self._load(path, read_folder(path)[0])
        self._say(f"starts from {path}")

    def _check_same_recipe(self, path: Path, old: dict[str, Any]) -> None:
        with suppress(RecipeError):  # keys that came later have their defaults
            old = asdict(parse_recipe(old))
        changed = [key for key in differences(old, asdict(self.recipe)) if not key.startswith(FREE_KEYS)]
        if changed:
            raise CheckpointError(
                f"{path} belongs to another recipe: {', '.join(changed)} differ. Choose another --output for a new run."
            )

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
            "precision": self.precision,
            "world_size": self.accelerator.num_processes,
            "recipe": asdict(self.recipe),
        }

    def save(self) -> Path:
        """Writes the training state of this step; returns its folder."""
        target = self.states_folder / f"{PREFIX}{self.step:08d}"
        tensors = self._tensors() if self.main or self.sharded else {}
        if self.main:
            write_folder(target, tensors, self._state())
            keep_last(self.states_folder, self.recipe.log.keep)
        self.accelerator.wait_for_everyone()
        return target

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        tensors = {"ema": whole(self.ema.tensors), "stage": self.stage.state()}
        for name, module in self.stage.modules.items():
            tensors |= {name: whole(module.state_dict())}
            tensors |= {f"{name}_optimizer": whole(pack_optimizer(self.optimizers[name]))}
        return tensors

    def _save_best(self, score: float, averaged: dict[str, Tensor]) -> None:
        if score > self.best and self.recipe.log.best:
            self.best = score
            write_folder(self.output / BEST, {"ema": averaged}, self._state())

    @contextmanager
    def _averaged(self, averaged: dict[str, Tensor]) -> Iterator[nn.Module]:
        """A whole model with the averaged weights; where the trained one lies in parts, a copy of it."""
        if self.plain is None:
            with self.ema.applied(self.stage.model) as model:
                yield model
        else:
            self.plain.load_state_dict(averaged)
            yield self.plain.to(self.device).eval()

    # ------------------------------------------------------------------ the loop

    def run(self, stop_after: int | None = None) -> None:
        """
        Trains to the end of the recipe.

        Args:
            stop_after: leave (with a saved state) after this many steps of this call.

        Raises:
            TrainingStopped: when the loss is no number, or the run was asked to stop by a signal.
        """
        recipe = self.recipe
        self.precision = self._choose_precision()
        for optimizer in self.optimizers.values():
            optimizer.optimizer.half_products = self.precision == "bfloat16"
        self.log = JsonLog(self.output / "log.jsonl", self.step) if self.main else None
        self._start_tracker()
        bar = self.bar = Progress(recipe.steps, self.step, recipe.batch_size, not self.quiet)
        end = recipe.steps if stop_after is None else min(recipe.steps, self.step + stop_after)
        window: deque[float] = deque(maxlen=recipe.log.every)
        try:
            with self._signals(), lost_processes(self.states_folder), self._batches() as batches:
                while self.step < end:
                    began = time.perf_counter()
                    values = self._train_step(next(batches))
                    self.seconds += time.perf_counter() - began
                    window.append(values["loss"])
                    rate = bar.step()
                    bar.show(loss=f"{np.mean(window):.4f}", images_per_s=f"{rate:.0f}")
                    self._report(values, rate)
                    self._stop_if_asked()
            self.save()
        finally:
            bar.close()
            if self.log:
                self.log.close()
        self.accelerator.end_training()

    @contextmanager
    def _batches(self) -> Iterator[Iterator[Batch]]:
        """Batches of this process from the current step on; the next one is read while the model works."""
        with ThreadPoolExecutor(1) as pool:
            yield self._prefetched(pool)

    def _prefetched(self, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        stream = None
        if self.order is None:
            part = slice(self.first, self.first + self.share)
            stream = self.stage.data.batches(self.step * self.recipe.batch_size, self.recipe.batch_size, part)
        step = self.step
        coming = pool.submit(self._read, step, stream)
        while True:
            ready = coming.result()
            step += 1
            coming = pool.submit(self._read, step, stream)
            yield ready

    def _read(self, step: int, stream: Iterator[Samples] | None) -> list[Batch]:
        """The micro batches of this process at a step."""
        start = 0 if self.overfit else step * self.recipe.batch_size
        positions = start + self.first + np.arange(self.share)
        if stream is not None:
            samples = (self.overfit and self._first_samples) or next(stream)
            self._first_samples = samples
        else:
            samples = self.stage.data.take(self.order(positions))
        parts = [slice(i, i + self.micro) for i in range(0, self.share, self.micro)]
        return [self.stage.batch(samples[part], positions[part], self.overfit) for part in parts]

    def _train_step(self, batches: list[Batch]) -> dict[str, float]:
        factor = learning_rate_factor(self.step, self.recipe.steps, self.recipe.optimizer)
        values: dict[str, float] = {}
        for name in self.stage.objectives(self.step):
            optimizer = self.optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            optimizer.zero_grad(set_to_none=True)
            values |= self._backward(name, batches)
            norm = self.accelerator.clip_grad_norm_(self.modules[name].parameters(), self.recipe.optimizer.clip)
            values["gradient_norm" if name == "model" else f"{name}_gradient_norm"] = float(norm)
            self._guard(values)
            optimizer.step()
        self.step += 1
        self.ema.update(self.stage.model, self.step)
        self.stage.after_step(values)
        return values | {"lr": self.recipe.optimizer.lr * factor}

    def _backward(self, name: str, batches: list[Batch]) -> dict[str, float]:
        """Gradients of one module over all micro batches; returns the terms, averaged over all processes."""
        module, total = self.modules[name], None
        for index, batch in enumerate(batches):
            torch.manual_seed(self._torch_seed(batch))
            last = index == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(module), self._autocast():
                out = self.stage.loss(name, self.modules, batch, self.step)
                self.accelerator.backward(out.loss.float() / len(batches))
            key = "loss" if name == "model" else f"{name}_total"
            terms = {key: out.loss, **out.terms}
            stacked = torch.stack([value.detach().float() for value in terms.values()])
            total = stacked if total is None else total + stacked
            if self.codebook is not None and out.token_ids is not None:
                self.codebook.add(out.token_ids)
        mean = self.accelerator.reduce(total / len(batches), "mean").tolist()
        return dict(zip(terms, mean, strict=True))

    def _torch_seed(self, batch: Batch) -> int:
        """Seed of the draws that a model makes itself, by the first sample of the micro batch."""
        position = int(batch["positions"][0]) + (self.step * self.recipe.batch_size if self.overfit else 0)
        return int(hashed(self.recipe.seed, "torch", position)[0] >> np.uint64(1))

    def _guard(self, values: dict[str, float]) -> None:
        """Stops before a bad gradient reaches the weights."""
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        if not bad:
            return
        found = states(self.states_folder)
        where = f"The last good state is {found[-1]}" if found else "There is no saved state yet"
        raise TrainingStopped(
            f"Step {self.step}: {', '.join(bad)} is not a finite number. {where}; the weights were not touched by this "
            "step. A lower learning rate, more warm-up steps or float32 precision usually help."
        )

    # ------------------------------------------------------------------ precision

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _choose_precision(self) -> str:
        """Times one pass in both precisions and takes the faster one; all processes take what the first one found."""
        if self.precision != "auto":
            return self.precision
        batch = self._read(self.step, None)[0] if self.order is not None else None
        if batch is None:
            return "bfloat16" if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
        model = self.stage.model
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        seconds = self._time_both(batch, 4)  # a CPU without bfloat16 units would take minutes for all of it
        if seconds["bfloat16"] < 4 * seconds["float32"]:
            seconds = self._time_both(batch, len(batch["positions"]))
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        faster = torch.tensor(float(seconds["bfloat16"] < 0.9 * seconds["float32"]), device=self.device)
        from accelerate.utils import broadcast

        chosen = "bfloat16" if bool(broadcast(faster)) else "float32"
        self._say(
            f"{chosen}: a pass takes {seconds['float32']:.2f} s in float32, {seconds['bfloat16']:.2f} s in bfloat16"
        )
        return chosen

    def _time_both(self, batch: Batch, count: int) -> dict[str, float]:
        return {name: self._time_pass(name, batch, count) for name in ("float32", "bfloat16")}

    def _time_pass(self, precision: str, batch: Batch, count: int) -> float:
        model, self.precision = self.stage.model, precision
        small = {k: v[:count] for k, v in batch.items() if k != "fake"}
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            with self._autocast():
                out = self.stage.loss("model", {"model": model}, dict(small), -1)
            out.loss.float().backward()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
        model.zero_grad(set_to_none=True)
        return best

    # ------------------------------------------------------------------ reports

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(f"[{self.recipe.name}] {text}", flush=True)

    def _start_tracker(self) -> None:
        if self.recipe.log.tracker:
            self.accelerator.init_trackers(self.recipe.name, config=flat_values(asdict(self.recipe)))

    def _report(self, values: dict[str, float], rate: float) -> None:
        """Whatever is due after a step."""
        log, step = self.recipe.log, self.step
        last = step == self.recipe.steps
        if step % log.every == 0 or last:
            values |= self._codebook_values() | {"images_per_second": round(rate, 1)}
            if self.stage.data.skipped:
                values["skipped_pictures"] = self.stage.data.skipped
        if step % log.evaluate == 0 or last:
            values |= self._evaluate()
        if step % log.sheets == 0 or last:
            self._sheet()
        if self.log:  # before the state: a kill between the two must not lose the line
            self.log.write(step=step, **values)
        if step % log.checkpoints == 0 and not last:
            self.save()
        if log.tracker:
            self.accelerator.log(values, step=step)

    def _codebook_values(self) -> dict[str, float]:
        if self.codebook is None:
            return {}
        counts = self.accelerator.reduce(self.codebook.counts.to(self.device), "sum")
        drawn = int(counts.sum())
        values = self.codebook.report(counts)
        if CodebookMeter.collapsed(values, drawn, len(counts)) and self.step > self.recipe.optimizer.warmup:
            self._say(
                f"step {self.step}: the codebook has collapsed to {values['codebook_perplexity']:.1f} codes in use"
            )
        return values

    def _evaluate(self) -> dict[str, float]:
        """Held-out figures of the averaged weights, on the first process."""
        figures: dict[str, float] = {}
        averaged = whole(self.ema.tensors)
        if self.main:
            with self._averaged(averaged) as model:
                figures = self.stage.evaluate(model)
        if figures:
            self._save_best(figures.pop("score"), averaged)
            self.bar.say(f"step {self.step}: " + ", ".join(f"{k} {v:.2f}" for k, v in figures.items()))
        self.accelerator.wait_for_everyone()
        return figures

    def _sheet(self) -> None:
        averaged = whole(self.ema.tensors)
        if not self.main:
            return
        folder = self.output / "sheets"
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.step:08d}.png"
        with self._averaged(averaged) as model:
            rows = self.stage.sheet(model)
        if rows:
            save_sheet(path, rows, zoom=2)
            show_sheet(self.accelerator, path, self.step)

    # ------------------------------------------------------------------ signals

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Within the context, an interrupt or a termination lets the step end and saves the state."""

        def note(number: int, frame: Any) -> None:
            self._signal = number

        old = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                old[number] = signal.signal(number, note)
            except ValueError:  # not in the main thread
                break
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _stop_if_asked(self) -> None:
        asked = torch.tensor(float(self._signal is not None), device=self.device)
        if self.accelerator.num_processes > 1:
            asked = self.accelerator.reduce(asked, "sum")
        if asked.item():
            where = self.save()
            raise TrainingStopped(
                f"Stopped by a signal after step {self.step}; the state is {where}. Run again to go on."
            )

    # ------------------------------------------------------------------ dry run

    def dry_run(self) -> dict[str, Any]:
        """One pass forward and back without a step: shapes, sizes and the plan of the run."""
        self.precision = "float32" if self.precision == "auto" else self.precision
        stream = None
        if self.order is None:
            stream = self.stage.data.batches(0, self.recipe.batch_size, slice(self.first, self.first + self.share))
        batches = self._read(0, stream)
        began = time.perf_counter()
        values = self._backward("model", batches)
        seconds = time.perf_counter() - began
        model: nn.Module = self.stage.model
        count = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        tensors: dict[str, Tensor] = {k: v for k, v in batches[0].items() if isinstance(v, Tensor)}
        return {
            "parameters": count,
            "trained_parameters": trained,
            "state_megabytes": round((2 * count + 2 * trained) * 4 / 2**20, 1),
            "checkpoint_megabytes_float16": round(2 * count / 2**20, 1),
            "pictures": None if self.order is None else len(self.stage.data),
            "steps": self.recipe.steps,
            "epochs": None
            if self.order is None
            else round(self.recipe.steps * self.recipe.batch_size / self.order.size, 2),
            "processes": self.accelerator.num_processes,
            "micro_batches": len(batches),
            "shapes": {k: list(v.shape) for k, v in tensors.items() if k != "fake"},
            "loss": values["loss"],
            "seconds_of_a_pass": round(seconds, 2),
            "process_megabytes": peak_megabytes(),
            **(
                {"device_megabytes": round(torch.cuda.max_memory_allocated() / 2**20)}
                if torch.cuda.is_available()
                else {}
            ),
        }
