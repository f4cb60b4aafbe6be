"""`hf-vistok push` and `pull` with the real client: what is sent is complete, nothing is half done."""

import json
from pathlib import Path

import pytest
import yaml

from .server import Repo

ROOT = Path(__file__).parents[2]
HEAD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import json
from pathlib import Path
from tests.folders import save_pipeline, save_prior, save_tokenizer
from hf_vistok.cli.main import main
from hf_vistok import AutoImagePrior, AutoImageTokenizer, VisTokPipeline
save_tokenizer(Path("saved"))
"""


def files_of(repo: Repo, ref: str = "main") -> dict[str, bytes]:
    return repo.commits[repo.refs[ref]]


def card_of(files: dict[str, bytes]) -> tuple[dict, str]:
    _, head, body = files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(head), body


def test_what_is_pushed_is_complete(hub, client):
    """A tokenizer, a prior and a pipeline; again; on a branch; as a proposal; and they load."""
    out = client(
        HEAD
        + """
save_prior(Path("prior"))
save_pipeline(Path("pipe"))
scores = [{"num_tokens": n, "psnr": 10.0 + n, "mse": 0.1, "bytes_per_image": 2.0 * n} for n in (1, 8)]
figures = {"data": "me/pictures", "dataset_id": "me/pictures", "split": "test", "pictures": 5, "scores": scores}
Path("saved/evaluation.json").write_text(json.dumps(figures))
Path("prior/README.md").write_text("---\\nlicense: mit\\n---\\n# My own words\\n")
quick = ["--license", "apache-2.0", "--dataset", "me/pictures"]
codes = [
    main(["push", "saved", "me/tok", "--private", "--base-model", "me/base", *quick]),
    main(["push", "saved", "me/tok", "--message", "again", "--no-sheet"]),
    main(["push", "saved", "me/tok", "--revision", "v2", "--no-sheet"]),
    main(["push", "saved", "me/tok", "--create-pr", "--no-sheet"]),
    main(["push", "prior", "me/prior", "--license", "gpl-3.0"]),
    main(["push", "pipe", "me/pipe"]),
    main(["info", "me/tok"]),
    main(["info", "me/none"]),
    main(["pull", "me/tok", "pulled"]),
    main(["pull", "me/tok", "pulled"]),
]
print(codes, AutoImageTokenizer.from_pretrained("me/tok", revision="v2").num_tokens)
print(AutoImageTokenizer.from_pretrained("pulled").num_tokens, type(VisTokPipeline.from_pretrained("me/pipe")).__name__)
print(sorted(path.name for path in Path(".").iterdir() if path.name != "home"))
"""
    )
    assert "[0, 0, 0, 0, 0, 0, 0, 1, 0, 1] 8" in out and "8 MaskGitPipeline" in out
    assert "['pipe', 'prior', 'pulled', 'saved']" in out
    repo = hub.repos["models/me/tok"]
    assert repo.private and {"main", "v2", "refs/pr/2"} == set(repo.refs)
    files = files_of(repo)
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "sheet.png", "provenance.json"} <= set(
        files
    )
    assert files["sheet.png"].startswith(b"\x89PNG")
    head, body = card_of(next(f for f in repo.commits.values() if "sheet.png" in f))
    assert head["library_name"] == "hf_vistok" and head["pipeline_tag"] == "image-feature-extraction"
    assert head["license"] == "apache-2.0" and head["base_model"] == "me/base" and head["datasets"] == ["me/pictures"]
    assert "arxiv:2501.10064" in head["tags"]
    assert "](sheet.png)" in body and 'from_pretrained("me/tok")' in body and "| 8 | 16 | 18.00 |" in body
    results = yaml.safe_load(files[".eval_results/reconstruction.yaml"])
    assert results[0]["dataset"]["id"] == "me/pictures" and results[0]["value"] == 18.0 and "notes" not in results[0]
    assert yaml.safe_load(files[".eval_results/reconstruction_1_tokens.yaml"])[0]["notes"] == "first 1 tokens"
    head, body = card_of(files_of(hub.repos["models/me/prior"]))
    assert head["license"] == "mit" and head["library_name"] == "hf_vistok" and "# My own words" in body
    head, body = card_of(files_of(hub.repos["models/me/pipe"]))
    assert head["pipeline_tag"] == "unconditional-image-generation" and "VisTokPipeline" in body
    assert "sheet.png" in files_of(hub.repos["models/me/pipe"])


def test_wrong_pushes(hub, client):
    """No token, a wrong one, somebody else's name, other content under the name, a folder that does not load."""
    hub.repos["models/me/poems"] = Repo()
    hub.repos["models/me/poems"].commit({"poems.txt": b"roses", "README.md": b"# poems"}, "main")
    out = client(
        HEAD
        + """
import os, shutil
shutil.copytree("saved", "broken")
Path("broken/model.safetensors").write_bytes(b"0" * 100)
go = lambda *words: print("code", main(["push", *words]), flush=True)
sys.stderr = sys.stdout
quick = ["--no-sheet"]
go("saved", "me/tok", "--token", "hf_wrong", *quick)
go("saved", "other/tok", *quick)
go("saved", "me/poems", *quick)
go("broken", "me/broken", *quick)
go("nowhere", "me/tok", *quick)
go("saved", "not a name", *quick)
go("saved", "me/poems", "--overwrite", *quick)
"""
    )
    lines = [line for line in out.splitlines() if line.startswith(("error", "code"))]
    assert [line for line in lines if line.startswith("code")] == [f"code {code}" for code in (1, 1, 1, 1, 1, 1, 0)]
    errors = [line for line in lines if line.startswith("error")]
    words = ("needs a valid token", "may not write", "holds poems.txt", "safetensors", "no folder", "name")
    assert len(errors) == len(words)
    for line, word in zip(errors, words, strict=True):
        assert word in line and "not expected" not in line and "hf_wrong" not in line, line
    assert set(hub.repos) == {"models/me/poems"} and "poems.txt" in files_of(hub.repos["models/me/poems"])


def test_no_token_and_no_network(hub, client):
    code = HEAD + 'print("code", main(["push", "saved", "me/tok", "--no-sheet"]))'
    out = client(code, token=None, check=False)
    assert "code 1" in out and "needs a valid token" in out
    out = client(code, check=False, HF_ENDPOINT="http://127.0.0.1:9")
    assert "code 1" in out and "not reached" in out and not hub.repos


def test_an_interrupted_upload_goes_on(hub, client):
    """What was sent is not sent again, and nothing half done is visible."""
    hub.uploads_left = 1
    code = HEAD + 'print("code", main(["push", "saved", "me/tok"]))'
    assert "code 1" in client(code, check=False)
    assert not files_of(hub.repos["models/me/tok"])
    hub.uploads_left = None
    before = sum(method == "PUT" for method, _ in hub.requests)
    assert "code 0" in client(code)
    sent = sum(method == "PUT" for method, _ in hub.requests) - before
    large = sum(name.endswith((".safetensors", ".png")) for name in files_of(hub.repos["models/me/tok"]))
    assert large == 2 and sent == 1


RUN = """
import torch
from hf_vistok.training.checkpoint import write_folder
state = {"step": 20, "recipe": {"name": "toy"}}
for step in (10, 20):
    tensors = {"model": {"w": torch.full((3,), float(step))}, "optimizer": {"0.exp": torch.ones(2)}}
    write_folder(Path(f"runs/toy/states/step_{step:08d}"), tensors, {**state, "step": step})
Path("runs/toy/log.jsonl").write_text("{}")
"""


def test_training_state(hub, client):
    """A run goes up with its last state and comes back equal; a damaged one stays at home."""
    out = client(
        HEAD
        + RUN
        + """
codes = [main(["push", "runs/toy", "me/run"]), main(["pull", "me/run", "runs/again"])]
from hf_vistok.training.checkpoint import read_folder, states
(found,) = states(Path("runs/again/states"))
tensors, state = read_folder(found)
print(codes, found.name, state["step"], tensors["model"]["w"].tolist(), tensors["optimizer"]["0.exp"].tolist())
Path("runs/toy/states/step_00000020/model.safetensors").write_bytes(b"half")
print("damaged", main(["push", "runs/toy", "me/run2"]))
"""
    )
    assert "[0, 0] step_00000020 20 [20.0, 20.0, 20.0] [1.0, 1.0]" in out and "damaged 1" in out
    assert "models/me/run2" not in hub.repos
    names = set(files_of(hub.repos["models/me/run"]))
    assert "log.jsonl" in names and not any("step_00000010" in name for name in names)


@pytest.mark.slow
def test_a_full_disk(hub, client):
    """A download that does not fit leaves no folder behind, and says so."""
    assert "code 0" in client(HEAD + 'print("code", main(["push", "saved", "me/tok", "--no-sheet"]))')
    out = client(
        HEAD
        + """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
print("code", main(["pull", "me/tok", "pulled"]), Path("pulled").exists())
""",
        check=False,
    )
    assert "code 1 False" in out and "error:" in out


def test_provenance_of_a_conversion(tmp_path, monkeypatch):
    """The original's public name is noted; of a local folder only its last part."""
    from hf_vistok.provenance import conversion_provenance

    monkeypatch.chdir(tmp_path)
    told = conversion_provenance("authors/tok", {"filename": "a.pt"}, "titok")
    assert told["base_model"] == told["source"] == "authors/tok" and told["filename"] == "a.pt"
    local = conversion_provenance(str(tmp_path / "secret" / "tok"), {}, "titok")
    assert local["source"] == "tok" and "base_model" not in local and str(tmp_path) not in json.dumps(local)


@pytest.mark.parametrize("system", ["titok", "fqgan"])
def test_the_licence_of_converted_weights_is_that_of_the_authors(system):
    from hf_vistok.cli.publishing import Publication, metadata
    from hf_vistok.registry import family_of

    family, model = family_of(system), type("Model", (), {})()
    head = metadata("tokenizer", family, {"source": "a/b", "base_model": "a/b"}, Publication("me/x"), model)
    assert head["license"] == {"titok": "apache-2.0", "fqgan": "cc-by-nc-4.0"}[system] and head["base_model"] == "a/b"
    assert "license" not in metadata("tokenizer", family, {"recipe": "own"}, Publication("me/x"), model)
