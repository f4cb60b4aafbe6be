"""Each test gets a fresh stand-in Hub; the real client reads its address at import, so tests run it in a process."""

import os
import subprocess
import sys
import textwrap

import pytest

from .server import TOKEN, FakeHub


@pytest.fixture
def hub():
    with FakeHub() as server:
        yield server


@pytest.fixture
def client(hub, tmp_path):
    """Runs code in a process whose Hub is the stand-in; returns what it prints. `check=False` returns errors too."""

    def run(code: str, token: str | None = TOKEN, check: bool = True, **env: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            **({"HF_TOKEN": token} if token else {}),
            **env,
        }
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        if check:
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout
        return done.stdout + done.stderr

    return run
