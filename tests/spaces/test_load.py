"""Twenty clients at once: each gets its own pictures or a clean message, and memory stays bounded."""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import PATIENT, ROOT

pytestmark = pytest.mark.slow
CLIENTS, SECONDS = 20, 40


@contextmanager
def served(tiny_pipeline, **environment):
    """`hf-vistok demo text_to_image` in a process of its own: yields (process, address, seconds until it was there)."""
    command = [sys.executable, "-m", "hf_vistok.cli.main", "demo", "text_to_image", "--model", str(tiny_pipeline)]
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **environment}
    start = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        address = next(match[0] for line in process.stdout if (match := re.search(r"http://127[\d.:]+", line)))
        yield process, address, time.monotonic() - start
    finally:
        process.terminate()
        process.wait(20)


def resident(process) -> float:
    """Memory of a process in MB."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


def ask(client, seed: int):
    """One request; its (tokens, pixels), or the message of an error."""
    try:
        options = {"prompt": "a red apple", "pictures": 1, "steps": 2, "seed": seed}
        gallery, tokens, _, _ = client.predict(**options, api_name="/generate")
    except Exception as error:
        return str(error)
    return tokens, np.asarray(Image.open(gallery[0]["image"]).convert("RGB"))


def test_twenty_clients(tiny_pipeline):
    from gradio_client import Client

    with served(tiny_pipeline, HF_VISTOK_QUEUE="12") as (process, address, seconds):
        print(f"the page was there after {seconds:.1f} s")
        start = time.monotonic()
        clients = [Client(address, verbose=False, httpx_kwargs=PATIENT) for _ in range(CLIENTS)]
        expected = {seed: ask(clients[0], seed) for seed in range(CLIENTS)}
        assert all(isinstance(answer, tuple) for answer in expected.values()), expected
        print(f"first pictures {time.monotonic() - start:.1f} s")
        memory = resident(process)
        good = full = rounds = 0
        start = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            while time.monotonic() - start < SECONDS:
                rounds += 1
                for seed, answer in zip(range(CLIENTS), pool.map(ask, clients, range(CLIENTS)), strict=True):
                    if isinstance(answer, str):
                        assert "full" in answer.lower(), answer
                        full += 1
                        continue
                    good += 1
                    assert answer[0] == expected[seed][0], "another client's tokens"
                    assert np.array_equal(answer[1], expected[seed][1]), "another client's picture"
        growth = resident(process) - memory
        print(f"{rounds} rounds, {good} answers, {full} times 'queue is full', memory {memory:.0f} + {growth:.0f} MB")
        assert good and growth < 200, (good, growth)


def test_the_page_is_there_soon(tiny_pipeline):
    """The bound is for two free cores; a busy machine gets more."""
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 2))
    with served(tiny_pipeline) as (_, _, seconds):
        assert seconds < 20 * busy, f"{seconds:.1f} s"
