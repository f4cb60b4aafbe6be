"""
Peak memory of converting an original checkpoint, as a multiple of its size (the aim is at most 1.3).

    python -m benchmarks.bench_convert --model tokenizer_titok_l32_imagenet

A checkpoint of the preset's size with random weights is written under the original names, then loaded by
`AutoImageTokenizer` or `AutoImagePrior` (and, with `--save`, saved again) in a fresh process, which reports its peak
RssAnon less the value before. Files are mapped: tensors that need no change take no memory of their own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from hf_vistok.conversion.adapter import find_preset

from .measure import peak_memory


def original_names(model_preset):
    """Names and shapes of the published checkpoint, from the reference's list of keys."""
    import os

    root = Path(os.environ.get("HF_VISTOK_REFERENCE", "../shared/reference"))
    path = next(root.glob(f"*/keys/{model_preset}.txt"), None)
    if path is None:
        raise SystemExit(f"No list of keys for {model_preset} under {root}: set HF_VISTOK_REFERENCE.")
    from tests.parity.harness import read_key_list

    return read_key_list(path)


def write_checkpoint(name, folder, pickled):
    """Random weights under the original names, and the original configuration. Returns bytes."""
    _, preset = find_preset(name)
    torch.manual_seed(0)
    state = {key: torch.randn(meta.shape).to(meta.dtype) * 0.02 for key, meta in original_names(name).items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if pickled:
        torch.save(state, folder / "checkpoint.bin")
    else:
        save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(preset.config))
    return size


def convert(folder, name, save):
    """In the fresh process: prints the peak in bytes."""
    from hf_vistok import AutoImagePrior, AutoImageTokenizer

    _, preset = find_preset(name)
    auto = AutoImageTokenizer if preset.component == "tokenizer" else AutoImagePrior
    file = next(path.name for path in Path(folder).iterdir() if path.suffix in (".bin", ".safetensors"))

    def run():
        model = auto.from_pretrained(folder, preset=name, filename=file)
        if save:
            model.save_pretrained(Path(folder) / "converted")
        return model

    print(json.dumps({"peak": peak_memory(run)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tokenizer_titok_l32_imagenet", help="name of a preset")
    parser.add_argument("--pickle", action="store_true", help="write a pickle and not a safetensors file")
    parser.add_argument("--save", action="store_true", help="save the converted model too")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # of the fresh process
    options = parser.parse_args()
    if options.folder:
        convert(options.folder, options.model, options.save)
        return
    with tempfile.TemporaryDirectory() as folder:
        size = write_checkpoint(options.model, Path(folder), options.pickle)
        command = [sys.executable, "-m", "benchmarks.bench_convert", "--model", options.model, "--folder", folder]
        result = subprocess.run(command + ["--save"] * options.save, capture_output=True, text=True, check=False)
        if result.returncode:
            raise SystemExit(result.stderr[-2000:])
        peak = json.loads(result.stdout.splitlines()[-1])["peak"]
    print(f"{options.model}: {size / 2**20:.0f} MiB, peak {peak / 2**20:.0f} MiB = {peak / size:.2f} times its size")


if __name__ == "__main__":
    main()
