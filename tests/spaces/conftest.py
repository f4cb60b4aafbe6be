"""The Spaces as running pages: each is started once, inside this process, on a tiny model."""

import importlib.util
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from .. import folders

ROOT = Path(__file__).parents[2]
SCREENSHOTS = Path(__file__).parent / "screenshots"
PATIENT = {"timeout": 300}  # seconds; on a busy machine the client gives up too early
HAS_GRADIO = importlib.util.find_spec("gradio") is not None
if not HAS_GRADIO:
    collect_ignore_glob = ["test_*.py"]  # the demo extra is not installed


def load_app(name: str):
    """The module app.py of a Space, with its folder on the path as `python app.py` has it."""
    folder = str(ROOT / "spaces" / name)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(f"{name}_app", f"{folder}/app.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def running(name: str):
    """Yields (module, address)."""
    from hf_vistok.spaces import common

    module = load_app(name)
    _, url, _ = common.launch(module.demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        yield module, url
    finally:
        module.demo.close()


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory):
    """Folder of a tiny text pipeline."""
    from ..test_pipeline_flextok import text_pipeline

    folder = tmp_path_factory.mktemp("pipeline")
    text_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    """Folder of a second tokenizer, with fewer tokens than the embedded one."""
    return folders.save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tiny")


@pytest.fixture(scope="session")
def text_space(tiny_pipeline):
    os.environ["HF_VISTOK_MODEL"] = str(tiny_pipeline)
    with running("text_to_image") as space:
        yield space


@pytest.fixture(scope="session")
def lab_space(tiny_tokenizer):
    os.environ["HF_VISTOK_TOKENIZERS"] = f"hf-vistok/titok-emoji-64,{tiny_tokenizer}"
    with running("tokenizer_lab") as space:
        yield space


@pytest.fixture(scope="session")
def text_client(text_space):
    from gradio_client import Client

    return Client(text_space[1], verbose=False, httpx_kwargs=PATIENT)


@pytest.fixture(scope="session")
def lab_client(lab_space):
    from gradio_client import Client

    return Client(lab_space[1], verbose=False, httpx_kwargs=PATIENT)
