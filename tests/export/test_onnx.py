"""ONNX export: graphs give what PyTorch gives, for any batch; loops over them give what the models write and draw."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_vistok.cli.main import main
from hf_vistok.hub import embedded_checkpoints

from .. import folders
from ..common import Case

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="ONNX export is the extra `export`: onnx, onnxscript, onnxruntime")

from hf_vistok.export.onnx import export_onnx, session  # noqa: E402

# What is exported -> its graphs. One is fast enough for every run.
GRAPHS = {
    "titok-vq": {"encoder", "decoder"},
    "one_d_piece": {"encoder", "decoder"},
    "titok-kl": {"encoder", "decoder"},
    "maskgit_vqgan": {"encoder", "decoder"},
    "fqgan-dual": {"encoder", "decoder"},
    "flextok": {"encoder", "transformer", "vae_decoder"},
    "maskgit-bert": {"prior"},
    "llamagen-prior": {"prior_prefill", "prior_step"},
    "llamagen-prior-text": {"prior_prefill", "prior_step"},
}


class Graphs:
    """Runs the graphs of a folder on numpy arrays, by name."""

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "export.json").read_text())
        self.runs = {name: session(folder / graph["file"]) for name, graph in manifest["graphs"].items()}
        self.inputs = {name: set(graph["inputs"]) for name, graph in manifest["graphs"].items()}

    def __call__(self, name: str, **inputs: np.ndarray) -> list[np.ndarray]:
        return self.runs[name].run(None, {key: value for key, value in inputs.items() if key in self.inputs[name]})

    def write(self, count: int, **condition: np.ndarray) -> np.ndarray:
        """The most probable ids, one a step."""
        logits, keys, values = self("prior_prefill", **condition)
        ids = [logits[:, -1:].argmax(-1)]
        while len(ids) < count:
            logits, keys, values = self("prior_step", token_ids=ids[-1], keys=keys, values=values, **condition)
            ids.append(logits[:, -1:].argmax(-1))
        return np.concatenate(ids, 1)

    def draw(self, noise: np.ndarray, ids: np.ndarray, steps: int, **options: np.ndarray) -> np.ndarray:
        """Pixels of ids: Euler steps of the flow without guidance, then the VAE."""
        x, batch = noise, len(noise)
        options = {"token_mask": np.ones(ids.shape, bool), "null_mask": np.zeros(batch, bool), **options}
        for step in range(steps):
            time = np.full(batch, 1 - step / steps, np.float32)
            (velocity,) = self("transformer", hidden_states=x, timestep=time, token_ids=ids, **options)
            x = x - velocity / steps
        return self("vae_decoder", latents=x)[0]


def check(name: str, folder: Path) -> None:
    """The export itself compares each graph with PyTorch on three pictures; it was made with two."""
    written = export_onnx(Case(name).model, folder)
    assert {path.removesuffix(".onnx") for path in written} - {"export.json"} == GRAPHS[name]
    manifest = json.loads((folder / "export.json").read_text())
    for graph in manifest["graphs"].values():
        assert graph["max_error"] < 1e-3
        assert all("batch" in shape for shape in graph["inputs"].values())


def test_tokenizer(tmp_path):
    """TiTok; the graphs alone tokenize four pictures at once, and one."""
    check("titok-vq", tmp_path)
    case, graphs = Case("titok-vq"), Graphs(tmp_path)
    for batch in (4, 1):
        pixels = case.pixels(batch)
        with torch.no_grad():
            ids = case.model.encode(pixels).token_ids
            sample = case.model.decode_tokens(ids).sample
        (found,) = graphs("encoder", pixel_values=pixels.numpy())
        assert (found == ids.numpy()).all()
        assert np.abs(graphs("decoder", tokens=found)[0] - sample.numpy()).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", list(GRAPHS)[1:])
def test_graphs(name, tmp_path):
    check(name, tmp_path)


@pytest.mark.slow
def test_any_prefix(tmp_path):
    """The mask of a prefix-ordered tokenizer is an input."""
    case = Case("one_d_piece")
    export_onnx(case.model, tmp_path)
    encoded = case.encode(3, num_tokens=torch.tensor([1, 3, 6]))
    (sample,) = Graphs(tmp_path)("decoder", tokens=encoded.token_ids.numpy(), token_mask=encoded.token_mask.numpy())
    assert np.abs(sample - case.decode(encoded, 3).numpy()).max() < 1e-4


def check_chain(pipe, prompts: list[str], folder: Path, tokens: int, steps: int = 2) -> None:
    """Loops over the graphs write the ids and draw the pictures of the pipeline: greedy ids, flow, VAE."""
    export_onnx(pipe, folder)
    compare_chain(pipe, prompts, Graphs(folder), tokens, steps)


@torch.no_grad()
def compare_chain(pipe, prompts: list[str], graphs: Graphs, tokens: int, steps: int) -> None:
    options = {"prior_guidance_scale": 1.0, "guidance_scale": 1.0, "temperature": 0.0, "num_tokens": tokens}
    noise = pipe.prepare_noise(len(prompts), torch.Generator().manual_seed(0))
    expected = pipe(prompts, noise=noise, num_inference_steps=steps, output_type="pt", **options)
    text = pipe.make_conditions(1, prompt=prompts).prior
    hidden, mask = text["encoder_hidden_states"], text["encoder_attention_mask"]
    condition = pipe.prior.condition(encoder_hidden_states=hidden, encoder_attention_mask=mask)
    ids = graphs.write(tokens, **{name: value.numpy() for name, value in condition.items()})
    assert (ids == expected.prior_token_ids.numpy()).all()
    full = np.zeros((len(ids), pipe.transformer.num_tokens), np.int64)
    full[:, :tokens] = ids
    seen = np.arange(full.shape[1])[None].repeat(len(ids), 0) < tokens
    picture = graphs.draw(noise.numpy(), full, steps, token_mask=seen)
    assert np.abs((picture / 2 + 0.5).clip(0, 1) - expected.images.numpy()).max() < 1e-3


@pytest.mark.slow
def test_chain(tmp_path):
    from ..test_pipeline_flextok import TEXTS, text_pipeline

    check_chain(text_pipeline(), TEXTS, tmp_path, tokens=5)


@pytest.mark.slow
def test_embedded_chain(tmp_path):
    if "hf-vistok/emoji-64" not in embedded_checkpoints():
        pytest.skip("the embedded chain is not there yet")
    from hf_vistok import VisTokPipeline

    pipe = VisTokPipeline.from_pretrained("hf-vistok/emoji-64")
    pipe.set_progress_bar_config(disable=True)
    export_onnx(pipe, tmp_path)
    manifest = json.loads((tmp_path / "export.json").read_text())
    assert {"text_encoder", "prior_prefill", "prior_step", "transformer", "vae_decoder"} <= set(manifest["graphs"])
    assert all(graph["max_error"] < 1e-3 for graph in manifest["graphs"].values())


@pytest.mark.parametrize("name", ["far", "restok-prior", "ta_titok", "comit"])
def test_what_is_not_exported_says_why(name, tmp_path):
    with pytest.raises(ValueError, match="not exported"):
        export_onnx(Case(name).model, tmp_path)


@pytest.mark.slow
def test_command(tmp_path, capsys):
    saved = folders.save_tokenizer(tmp_path / "saved")
    assert main(["export", str(saved), str(tmp_path / "out"), "--onnx"]) == 0
    assert {"encoder.onnx", "decoder.onnx", "export.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    import hf_vistok.export.onnx as module

    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert main(["export", "hf-vistok/titok-emoji-64", str(tmp_path / "out"), "--onnx"]) == 1
    assert "hf_vistok[export]" in capsys.readouterr().err and not (tmp_path / "out").exists()
