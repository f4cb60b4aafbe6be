"""Repositories and servers that mean harm or are broken: refused with a clear message, nothing is executed."""

import io
import json
import os
import pickle

import pytest
import torch

from .server import Repo


class Payload:
    """Makes the folder `owned` when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("owned",))


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2), "x": Payload()}, buffer)
    return buffer.getvalue()


CODE = b"import os\nos.mkdir('owned')\nclass X: pass\n"
OURS = {"model_type": "vistok_one_d_piece", "architectures": ["OneDPieceModel"], "image_size": 16, "codebook_size": 32}
REMOTE = {"auto_map": {"AutoConfig": "evil.X", "AutoModel": "evil.X"}}
PIPE = {"_class_name": "MaskGitPipeline", "_diffusers_version": "0.42.1", "prior": ["hf_vistok", "MaskGitPrior"]}
HYDRA = {"_target_": "os.mkdir", "path": "owned", "model": {"_target_": "os.mkdir", "name": "owned"}}

# name of the repository -> its files, and words that the message has to hold
BAD: dict[str, tuple[dict[str, bytes | dict], str]] = {
    "a-pickle-for-our-config": ({"config.json": OURS, "pytorch_model.bin": pickled()}, "model.safetensors"),
    "a-bare-pickle": ({"pytorch_model.bin": pickled()}, "no configuration"),
    "code-for-our-config": ({"config.json": {**OURS, **REMOTE}, "evil.py": CODE}, "model.safetensors"),
    "code-for-an-unknown-config": ({"config.json": {"model_type": "evil", **REMOTE}, "evil.py": CODE}, "known layout"),
    "another-library": ({"config.json": {"model_type": "bert", "architectures": ["BertModel"]}}, "known layout"),
    "a-hydra-config": ({"config.json": HYDRA, "model.safetensors": b""}, "known layout"),
    "a-config-that-is-a-list": ({"config.json": b"[1, 2]"}, "JSON object"),
    "a-config-that-is-a-page": ({"config.json": b"<html>"}, "not valid JSON"),
    "weights-that-are-a-page": ({"config.json": OURS, "model.safetensors": b"<html>busy</html>"}, "safetensors"),
}
BAD_PIPELINES: dict[str, tuple[dict[str, bytes | dict], str]] = {
    "os-system": ({"model_index.json": {**PIPE, "_class_name": "os.system"}}, "no pipeline of hf_vistok"),
    "class-is-a-list": ({"model_index.json": {**PIPE, "_class_name": ["evil", "X"]}, "evil.py": CODE}, "no pipeline"),
    "class-is-a-model": ({"model_index.json": {**PIPE, "_class_name": "TiTokModel"}}, "no pipeline of hf_vistok"),
    "foreign-module": ({"model_index.json": {**PIPE, "image_tokenizer": ["subprocess", "Popen"]}}, "subprocess"),
    "module-path": ({"model_index.json": {**PIPE, "prior": ["hf_vistok.cli.main", "main"]}}, "hf_vistok.cli.main"),
    "own-code": ({"model_index.json": {**PIPE, "prior": ["evil", "X"]}, "prior/evil.py": CODE}, "evil"),
    "dotted-class": ({"model_index.json": {**PIPE, "prior": ["hf_vistok", "os.system"]}}, "os.system"),
    "three-names": ({"model_index.json": {**PIPE, "prior": ["hf_vistok", "MaskGitPrior", "x"]}}, "prior"),
    "no-json": ({"model_index.json": b"{"}, "not valid JSON"),
    "a-list": ({"model_index.json": b"[]"}, "JSON object"),
}


def as_bytes(value: bytes | dict) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def fill(hub, repositories: dict) -> None:
    for name, (files, _) in repositories.items():
        contents = {
            path: value if isinstance(value, bytes) else json.dumps(value).encode() for path, value in files.items()
        }
        hub.repos[f"models/bad/{name}"] = Repo()
        hub.repos[f"models/bad/{name}"].commit(contents, "main")


def test_bad_repositories(hub, client):
    fill(hub, BAD)
    fill(hub, BAD_PIPELINES)
    names = {"AutoImageTokenizer": list(BAD), "VisTokPipeline": list(BAD_PIPELINES)}
    out = client(
        f"""
        import os, json
        import hf_vistok
        told = {{}}
        for cls, names in {names!r}.items():
            for name in names:
                try:
                    getattr(hf_vistok, cls).from_pretrained("bad/" + name)
                    told[name] = ["loaded", ""]
                except Exception as error:
                    told[name] = [type(error).__name__, str(error)]
                if os.path.exists("owned"):
                    told[name] = ["executed", ""]
                    os.rmdir("owned")
        print(json.dumps(told))
        """
    )
    told = json.loads(out.splitlines()[-1])
    kinds = ("ValueError", "OSError", "ConversionError")
    wrong = {
        name: told[name]
        for name, (_, words) in {**BAD, **BAD_PIPELINES}.items()
        if told[name][0] not in kinds or words not in told[name][1]
    }
    assert not wrong
    assert pickle.dumps(Payload())  # the pickles are real


SETUP = """
import torch
from huggingface_hub import HfApi
from hf_vistok import AutoImageTokenizer, OneDPieceConfig, OneDPieceModel
torch.manual_seed(0)
sizes = dict(encoder_hidden_size=32, encoder_num_layers=1, encoder_num_heads=4, encoder_patch_size=8,
    decoder_hidden_size=32, decoder_num_layers=1, decoder_num_heads=4, decoder_patch_size=8)
model = OneDPieceModel(OneDPieceConfig(image_size=16, num_latent_tokens=4, token_size=4, codebook_size=32,
    pixel_head="patch", **sizes)).eval()
def load(name, **options):
    try:
        other = AutoImageTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        return "refused: " + str(error)[:300].replace(chr(10), " ")
    pairs = zip(model.state_dict().values(), other.state_dict().values())
    return "same" if all(torch.equal(a, b) for a, b in pairs) else "other weights"
"""


@pytest.mark.slow
def test_slow_and_wrong_servers(hub, client, tmp_path):
    """A server that takes its time works; one that hangs, fails or answers nonsense gives a clear error."""
    hub.delay = 0.2
    assert "same" in client(SETUP + 'model.push_to_hub("me/tok")\nprint(load("me/tok"))')
    quick = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}

    def again(home: str) -> str:
        """In a process with an empty cache."""
        return client(SETUP + 'print(load("me/tok"))', **quick, HF_HOME=str(tmp_path / home))

    hub.delay = 3.0
    assert "refused" in again("slow")
    hub.delay, hub.broken = 0.0, {r"/resolve/": 500}
    assert "refused" in again("broken")
    hub.broken, hub.wrong = {}, {r"resolve/.*/config.json": b"<html>maintenance</html>"}
    assert "refused" in again("wrong")


def test_sharded_and_variant_checkpoints(hub, client):
    """Both go up and come back equal; a shard that is cut off never loads, and the next try does."""
    out = client(
        SETUP
        + """
model.push_to_hub("me/shards", max_shard_size="40KB")
model.save_pretrained("variant", variant="fp16")
HfApi().create_repo("me/variant")
HfApi().upload_folder(repo_id="me/variant", folder_path="variant")
print(load("me/variant", variant="fp16"))
print(load("me/variant"))
"""
    )
    assert out.splitlines()[-2] == "same" and out.splitlines()[-1].startswith("refused")
    repo = hub.repos["models/me/shards"]
    names = set(repo.commits[repo.refs["main"]])
    shards = sorted(name for name in names if name.endswith(".safetensors"))
    assert len(shards) > 2 and "model.safetensors.index.json" in names
    hub.cut[shards[-1]] = 500
    assert "same" not in client(SETUP + 'print(load("me/shards"))', check=False)
    hub.cut.clear()
    assert "same" in client(SETUP + 'print(load("me/shards"))')


@pytest.mark.parametrize("name", [*BAD, *BAD_PIPELINES])
def test_every_bad_repository_has_words(name):
    files, words = {**BAD, **BAD_PIPELINES}[name]
    assert files and words
