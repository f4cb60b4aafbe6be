"""Interleaved timings, peak memory and the machine's own matmul rate, measured in one run."""

import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def interleaved(
    functions: dict[str, Callable[[], Any]], repeats: int, clock: str = "wall", warm_up: bool = True
) -> dict[str, list[float]]:
    """
    Seconds of each call, taken in turns, so that a slow phase of a shared machine meets all of them.

    The order is reversed every second round: what runs after the largest one finds other caches. The clock "cpu" counts
    the process's own time, for machines on which others work too. With `warm_up` each is called once before.
    """
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values() if warm_up else ():
        function()
    for repeat in range(repeats):
        names = list(functions) if repeat % 2 == 0 else list(functions)[::-1]
        for name in names:
            start = now()
            functions[name]()
            times[name].append(now() - start)
    return times


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """How much longer `slow` takes than `fast`: the median over rounds, each measured side by side."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def resident() -> int:
    """Bytes of anonymous memory that the process holds (RssAnon; mapped files do not count)."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def release() -> None:
    """Gives freed memory back to the system, so that the next measurement starts low."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_memory(function: Callable[[], Any]) -> int:
    """Bytes by which RssAnon grows at its highest point during a call, sampled every 2 ms."""
    release()
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            done.wait(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = function()
    peak = max(peak, resident())
    done.set()
    watcher.join()
    del result
    return peak - before


def matmul_call(rows: int, width: int = 1024, hidden: int = 4096) -> tuple[Callable[[], Any], float]:
    """A float32 product of the shape of a transformer's MLP, and its floating point operations."""
    a, b, out = torch.randn(rows, width), torch.randn(width, hidden), torch.empty(rows, hidden)
    return lambda: torch.mm(a, b, out=out), 2.0 * rows * width * hidden


def compare_guided(
    label: str,
    ways: dict[str, Callable[[], Any]],
    rate: tuple[Callable[[], Any], float],
    images: int,
    options: Any,
    more: str = "",
) -> None:
    """
    Times guided generation three ways in turns, and prints ratios, images per second, the share of the machine's matmul
    rate, and peak memory.

    Args:
        label: of the line.
        ways: "ours", "two passes" and "one pass".
        rate: of [`matmul_call`].
        images: of one call.
        options: `repeats` and `clock`.
        more: end of the line.
    """
    times = interleaved({**ways, "matmul": rate[0]}, options.repeats, options.clock)
    best = min(times["ours"])
    possible, achieved = rate[1] / min(times["matmul"]), flops(ways["ours"]) / best
    print(
        f"{label} two passes/ours {ratio(times, 'two passes', 'ours'):.3f}"
        f"  one pass/ours {ratio(times, 'one pass', 'ours'):.3f}"
        f"  images/s {images / best:.3f} ({best / images:.2f} s each)"
        f"  {achieved / 1e9:.1f} of {possible / 1e9:.1f} GFLOP/s = {achieved / possible:.0%} of matmul{more}",
        flush=True,
    )
    memory = [peak_memory(ways[name]) / 2**20 for name in ("ours", "two passes")]
    print(f"{'':<{len(label)}} peak memory {memory[0]:.0f} MiB, baseline {memory[1]:.0f} MiB", flush=True)


def flops(function: Callable[[], Any]) -> float:
    """Floating point operations of a call (products, convolutions and attention)."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        function()
    return float(counter.get_total_flops())
