"""Parity with the originals: discovery of variants, the choice of systems, the report."""

import json
import os
from pathlib import Path

import pytest

from .harness import REPORT, discover

ROOT = Path(os.environ.get("HF_VISTOK_REFERENCE", Path(__file__).parents[2] / ".." / "shared" / "reference"))


def selected(config) -> list[str] | None:
    value = config.getoption("--system", default=None)
    return [name.strip() for name in value.split(",") if name.strip()] if value else None


def pytest_generate_tests(metafunc):
    systems = selected(metafunc.config)
    if "variant" in metafunc.fixturenames:
        variants = discover(ROOT, systems)
        metafunc.parametrize("variant", variants, ids=[variant.name for variant in variants])
    if "key_list" in metafunc.fixturenames:
        lists = [
            path for path in sorted(ROOT.glob("*/keys/*.txt")) if not systems or path.parent.parent.name in systems
        ]
        metafunc.parametrize("key_list", lists, ids=[f"{path.parent.parent.name}/{path.stem}" for path in lists])


def pytest_sessionfinish(session):
    target = os.environ.get("HF_VISTOK_PARITY_REPORT")
    if not target or not REPORT:
        return
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    path = Path(f"{target}.{worker}" if worker else target)
    path.write_text(json.dumps(REPORT, indent=1, sort_keys=True))
    if not worker:
        merge_worker_reports(Path(target))


def merge_worker_reports(target: Path) -> None:
    """With several processes each writes a part; the main one joins them."""
    merged = json.loads(target.read_text())
    for part in target.parent.glob(f"{target.name}.gw*"):
        merged.update(json.loads(part.read_text()))
        part.unlink()
    target.write_text(json.dumps(merged, indent=1, sort_keys=True))


@pytest.hookimpl
def pytest_report_header(config):
    return f"parity root: {ROOT}" + ("" if ROOT.is_dir() else " (absent: parity is skipped)")
