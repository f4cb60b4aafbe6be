"""
Autoregressive generation with a key-value cache and one batch for guidance, against the plain ways.

    python -m benchmarks.bench_ar --table --threads 1 --clock cpu
    python -m benchmarks.bench_ar --model FlexAR-113M-T2I --tokens 256
    python -m benchmarks.bench_ar --model c2i_B_256 --ways cached,doubled

`--table` takes every autoregressive prior of the library, all of the same width and depth and with their published
numbers of tokens, and prints calls, seconds, and how much longer the plain way takes that computes all positions again
at each call. Ways of one model, all in one run and on the same random weights:

- `uncached`: the whole prefix is computed again for every token (FlexAR's authors);
- `doubled`: a cache, but conditional and unconditional rows in two forwards;
- `cached`: ours, `generate(...)`;
- `static`: ours with a static cache; with `--compile` the decode step is compiled.

Prints seconds, tokens per second and the ratio to `cached`, as JSON. Greedy ids of all ways are compared.
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import torch

import hf_vistok
from hf_vistok.conversion.adapter import Preset, find_preset
from hf_vistok.conversion.build import plan_of
from hf_vistok.modeling.ar_prior_utils import PreTrainedARPrior
from hf_vistok.modeling.layers.generation import make_cache
from hf_vistok.registry import model_entries

from .measure import interleaved, ratio


def build(name: str, device: str, dtype: torch.dtype, layers: int | None) -> PreTrainedARPrior:
    """A published prior's architecture at full size with random weights."""
    adapter, preset = find_preset(name)
    assert isinstance(preset, Preset) and preset.component == "ar_prior", f"{name} is no autoregressive prior"
    part = plan_of(adapter, preset.component, preset.config).parts["prior"]
    if layers:
        part.config.num_hidden_layers = layers
    torch.manual_seed(0)
    with torch.device(device):
        model = part.model(part.config)
    return model.to(dtype).eval()


def conditions(model: PreTrainedARPrior, batch: int) -> dict[str, Any]:
    """Random conditions of a batch, and what guidance leads away from."""
    if not model.is_text_conditional:
        return {"class_labels": torch.arange(batch) % model.config.num_classes}
    width = getattr(model.config, "text_dim", None) or model.config.caption_dim
    given = {"encoder_hidden_states": torch.randn(batch, min(32, model.text_length), width, device=model.device)}
    if model.needs_negative_text:
        given["negative_encoder_hidden_states"] = torch.randn(1, 1, width, device=model.device)
    return given


@torch.no_grad()
def two_passes(model: PreTrainedARPrior, given: dict[str, Any], num_tokens: int, scale: float) -> torch.Tensor:
    """Greedy ids with one cache for each half of guidance."""
    positive = {name: value for name, value in given.items() if not name.startswith("negative_")}
    negative = {name.removeprefix("negative_"): value for name, value in given.items() if name not in positive}
    halves = [model.condition(**positive)]
    batch = model.batch_size(halves[0])
    other = model.condition(**negative) if negative else model.null_condition(halves[0])
    halves.append({name: value.expand(batch, *value.shape[1:]) for name, value in other.items()})
    caches, ids, written = [make_cache(None, 0, 0) for _ in halves], None, []
    for _ in range(num_tokens):
        call = model.decode_step if written else None
        cond, uncond = (
            call(ids, half, cache) if call else model.prefill(half, None, cache)
            for half, cache in zip(halves, caches, strict=True)
        )
        ids = (uncond + scale * (cond - uncond)).float().argmax(-1)
        written.append(ids)
    return torch.cat(written, 1)


def timed(function: Any, device: str, repeats: int) -> tuple[float, torch.Tensor]:
    """The shortest of several runs in seconds, and the ids."""
    best, ids = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        ids = function()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best, ids


def every_prior(width: int, layers: int, names: list[str] | None) -> Iterator[tuple[str, PreTrainedARPrior]]:
    """Priors of all families, or those of `names`, with default (published) numbers of tokens and codes."""
    for entry in model_entries():
        if names and entry.model not in names:
            continue
        prior = getattr(hf_vistok, entry.model) if entry.kind == "prior" else None
        if prior is None or not issubclass(prior, PreTrainedARPrior):
            continue
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
        default = getattr(hf_vistok, entry.config)()
        if getattr(default, "intermediate_size", None):
            sizes["intermediate_size"] = 4 * width
        torch.manual_seed(0)
        yield entry.model, prior(type(default)(**sizes)).eval()


def table(args: argparse.Namespace) -> None:
    """Prints the table of all priors, each measured in turns with its plain way."""
    layers, batch = args.layers or 4, args.batch
    print(f"width {args.width}, {layers} layers, batch {batch}, guidance {args.scale}, float32, ", end="")
    print(f"{torch.get_num_threads()} thread(s), {args.clock} clock\n")
    print("| prior | tokens | calls | cached, s | uncached, s | uncached / cached | same ids |")
    print("|---|---|---|---|---|---|---|")
    for name, model in every_prior(args.width, layers, args.priors):
        options = {**conditions(model, batch), "cfg_scale": args.scale, "temperature": 0.0, "top_k": 0}
        ids = {}

        def write(way: str, cache: Any, model: Any = model, options: Any = options, ids: Any = ids) -> None:
            ids[way] = model.generate(**options, cache=cache).token_ids

        model.generate(**options, num_tokens=model.step_lengths(model.num_tokens)[0])  # warm-up
        ways = {"cached": lambda run=write: run("cached", None), "uncached": lambda run=write: run("uncached", False)}
        times = interleaved(ways, args.repeats, args.clock, warm_up=False)
        same = (ids["cached"] == ids["uncached"]).float().mean().item()
        fast, slow = min(times["cached"]), min(times["uncached"])
        tokens, calls = "x".join(map(str, ids["cached"].shape[1:])), len(model.step_lengths(model.num_tokens))
        print(f"| {name} | {tokens} | {calls} | {fast:.2f} | {slow:.2f} | ", end="")
        print(f"{ratio(times, 'uncached', 'cached'):.1f} | {same:.1%} |", flush=True)


def main() -> None:
    """Runs the ways and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="FlexAR-113M-T2I", help="name of a published prior")
    parser.add_argument("--layers", type=int, help="fewer layers than published")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true", help="compile the decode step of the static way")
    parser.add_argument("--ways", default="uncached,doubled,cached,static")
    parser.add_argument("--table", action="store_true", help="every prior, with --width and --layers (4)")
    parser.add_argument("--priors", nargs="+", help="classes for the table")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="of the table; cpu: a shared machine")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.table:
        return table(args)
    model = build(args.model, args.device, getattr(torch, args.dtype), args.layers)
    given = conditions(model, args.batch)
    options = {"num_tokens": args.tokens, "cfg_scale": args.scale, "temperature": 0.0, "top_k": 0}
    step = torch.compile(model.decode_step, fullgraph=True, mode="reduce-overhead") if args.compile else None
    ways = {
        "uncached": lambda: model.generate(**given, **options, cache=False).token_ids,
        "doubled": lambda: two_passes(model, given, args.tokens, args.scale),
        "cached": lambda: model.generate(**given, **options).token_ids,
        "static": lambda: model.generate(**given, **options, cache="static", compiled_step=step).token_ids,
    }
    model.generate(**given, **{**options, "num_tokens": 2})  # warm-up
    if args.compile:
        ways["static"]()
    results = {name: timed(ways[name], args.device, args.repeats) for name in args.ways.split(",")}
    base, reference = results.get("cached", next(iter(results.values())))
    report = {
        name: {
            "seconds": round(seconds, 3),
            "tokens_per_second": round(args.batch * args.tokens / seconds, 1),
            "ratio_to_cached": round(seconds / base, 2),
            "equal_ids": round((ids == reference).float().mean().item(), 4),
        }
        for name, (seconds, ids) in results.items()
    }
    parameters = sum(parameter.numel() for parameter in model.parameters())
    device = torch.cuda.get_device_name() if args.device != "cpu" else f"cpu, {torch.get_num_threads()} threads"
    print(json.dumps({**vars(args), "device": device, "parameters": parameters, "ways": report}, indent=1))


if __name__ == "__main__":
    main()
