"""Options and settings of the whole suite."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "0")

import torch

torch.set_num_threads(1)  # two test processes share two cores


def pytest_addoption(parser):
    parser.addoption("--system", help="parity: only these systems, separated by commas")
