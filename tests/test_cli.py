"""The command line: every command on tiny checkpoints, exit codes, one-line errors, no half-written output."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from hf_vistok import AutoImagePrior, AutoImageTokenizer, AutoImageTokenizerProcessor, hub
from hf_vistok.cli.main import app, main
from hf_vistok.cli.sheets import bytes_of
from hf_vistok.cli.token_files import TokenFile, read_tokens, write_tokens

from . import folders

COMMANDS = ["list", "info", "tokenize", "detokenize", "reconstruct", "generate", "convert", "push"]
COMMANDS += ["train", "evaluate", "data", "showcase"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder with checkpoints of every kind, and pictures."""
    root = tmp_path_factory.mktemp("bench")
    folders.save_tokenizer(root / "tokenizer")
    folders.save_tokenizer(root / "kl", folders.titok(quantizer="kl"))
    folders.save_prior(root / "prior")
    folders.save_pipeline(root / "pipe")
    folders.save_titok_original(root / "original")
    folders.save_prior_original(root / "original_prior")
    folders.save_pictures(root / "pictures")
    return root


@pytest.fixture
def run(capsys):
    """Runs a command; returns exit code, stdout, stderr."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def fails(result, *words: str, code: int = 1) -> None:
    found, _, err = result
    assert found == code, err
    assert "Traceback" not in err
    if code == 1:
        lines = [line for line in err.splitlines() if line.strip()]
        assert len(lines) == 1 and lines[0].startswith("error: "), err
    for word in words:
        assert word in err, err


# ---------------------------------------------------------------------- the program


def test_help_and_version(run):
    code, out, _ = run("--help")
    assert code == 0
    for name in COMMANDS:
        assert name in out
    assert run("--version")[1].strip() == "0.1.0"
    assert run()[0] in (0, 2)
    for name in ("tokenize", "convert", "generate"):
        assert run(name, "--help")[0] == 0


def test_help_needs_neither_torch_nor_transformers():
    heavy = "{'torch', 'transformers', 'numpy', 'PIL'}"
    code = f"import sys; from hf_vistok.cli.main import main; main(['--help']); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_module_runs(tmp_path):
    command = [sys.executable, "-m", "hf_vistok.cli.main", "tokenize", "model", str(tmp_path), "-o", "tokens.txt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.startswith("error: tokens.txt") and "Traceback" not in done.stderr


def test_usage_errors(run):
    for arguments in (
        ["nonsense"],
        ["list", "--nonsense"],
        ["tokenize"],
        ["tokenize", "m", "x", "-o", "y", "--seed", "z"],
    ):
        assert run(*arguments)[0] == 2, arguments


def test_debug_shows_the_traceback(run, bench):
    code, _, err = run("reconstruct", bench / "tokenizer", bench / "nowhere.png", "--debug")
    assert code == 1 and "Traceback" in err and "No such picture" in err
    fails(run("reconstruct", bench / "tokenizer", bench / "nowhere.png"), "No such picture", "nowhere.png")


def test_every_command_has_help_for_every_option():
    for command in app.registered_commands:
        assert command.callback.__doc__, command.callback


# ---------------------------------------------------------------------- list and info


def test_list(run):
    code, out, _ = run("list")
    assert code == 0 and "titok" in out and "one_d_piece" in out and "OneDPieceModel" in out
    content = json.loads(run("list", "--json")[1])
    assert {"titok", "one_d_piece"} <= {family["name"] for family in content["families"]}
    presets = json.loads(run("list", "--presets", "--json")[1])
    assert any(row["preset"] == "tokenizer_titok_l32_imagenet" and row["family"] == "titok" for row in presets)
    assert run("list", "--markdown")[1].startswith("| family |")


def test_list_updates_a_table(run, tmp_path):
    from hf_vistok.cli.listing import END, START

    path = tmp_path / "page.md"
    path.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    assert run("list", "--update", path)[0] == 0
    text = path.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("\nafter\n") and "TiTokModel" in text
    assert "is current" in run("list", "--update", path)[1]
    path.write_text("nothing")
    fails(run("list", "--update", path), "families")


def test_info(run, bench):
    _, out, _ = run("info", "titok")
    assert "2406.07550" in out and "TiTokModel" in out and "generator_titok_l32_imagenet" in out
    assert "RESTRICTED" in run("info", "karl")[1]
    assert run("info", "titok", "--card")[1].startswith("# TiTok")
    _, out, _ = run("info", bench / "tokenizer")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert facts["class"] == "OneDPieceModel" and facts["num_tokens"] == "8" and facts["bytes_per_image"] == "6.0"
    _, out, _ = run("info", bench / "original")
    assert "TiTokModel" in out and "original (tokenizer)" in out
    assert "MaskGitPrior" in run("info", bench / "prior")[1]
    assert "MaskGitPipeline" in run("info", bench / "pipe")[1]
    fails(run("info", bench / "pictures"), "no configuration")


def test_info_reads_no_weights(run, bench, tmp_path):
    (tmp_path / "config.json").write_text((bench / "original" / "config.json").read_text())
    assert run("info", tmp_path)[0] == 0


# ---------------------------------------------------------------------- tokens


@pytest.mark.parametrize("suffix", [".safetensors", ".jsonl"])
@pytest.mark.parametrize("name", ["tokenizer", "kl", "original"])
def test_there_and_back(run, bench, tmp_path, name, suffix):
    tokens, drawn = tmp_path / f"tokens{suffix}", tmp_path / "drawn"
    code, _, err = run("tokenize", bench / name, bench / "pictures", "-o", tokens, "--batch-size", 2, "--device", "cpu")
    assert code == 0, err
    content = read_tokens(tokens)
    assert len(content.images) == 3 and content.model["model"] == str(bench / name)
    model = AutoImageTokenizer.from_pretrained(bench / name)
    processor = AutoImageTokenizerProcessor.from_pretrained(bench / name)
    pixels = processor([str(path) for path in sorted((bench / "pictures").iterdir())], return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = model.encode(pixels)
        wanted = expected.token_ids if model.is_discrete else expected.latents
        torch.testing.assert_close(content.tokens, wanted, atol=1e-5, rtol=0)
        pictures = processor.postprocess(model.decode(expected.latents).sample)
    assert run("detokenize", tokens, "-o", drawn)[0] == 0
    files = sorted(drawn.glob("*.png"))
    assert [file.name for file in files] == [f"{i:05d}_picture_{i}.png" for i in range(3)]
    for file, picture in zip(files, pictures, strict=True):
        first, second = (torch.tensor(list(image.tobytes())) for image in (Image.open(file), picture))
        assert (first - second).abs().max() <= 1


def test_first_tokens(run, bench, tmp_path):
    tokens = tmp_path / "tokens.safetensors"
    pictures = sorted((bench / "pictures").iterdir())[:1]
    assert run("tokenize", bench / "tokenizer", *pictures, "-o", tokens, "--num-tokens", 3)[0] == 0
    assert read_tokens(tokens).tokens.shape == (1, 3)
    assert run("detokenize", tokens, "-o", tmp_path / "drawn", "--num-tokens", 2)[0] == 0
    fails(
        run("tokenize", bench / "tokenizer", *pictures, "-o", tmp_path / "x.jsonl", "--num-tokens", 99), "1 to 8", "99"
    )
    fails(run("detokenize", tokens, "-o", tmp_path / "y", "--num-tokens", 99), "1 to 8", "99")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn", "tokens.safetensors"]


def test_ids_are_stored_small(tmp_path):
    from safetensors import safe_open

    for high, name in ((200, "U8"), (60000, "U16"), (70000, "I32")):
        path = tmp_path / f"{high}.safetensors"
        write_tokens(path, ".safetensors", TokenFile(torch.tensor([[0, high]]), ["a"]))
        with safe_open(path, "pt") as file:
            assert file.get_slice("token_ids").get_dtype() == name
        assert read_tokens(path).tokens.tolist() == [[0, high]]


def test_masks_and_extras_survive(tmp_path):
    content = TokenFile(
        torch.tensor([[1, 2], [3, 4]]), ["a", "b"], {"model": "m"}, torch.tensor([[True, False], [True, True]]),
        {"offset": torch.tensor([[1], [2]])},
    )  # fmt: skip
    write_tokens(tmp_path / "t.safetensors", ".safetensors", content)
    again = read_tokens(tmp_path / "t.safetensors")
    assert again.token_mask.tolist() == [[True, False], [True, True]] and again.extras["offset"].tolist() == [[1], [2]]
    with pytest.raises(ValueError, match="offset"):
        write_tokens(tmp_path / "t.jsonl", ".jsonl", content)
    content.extras = {}
    write_tokens(tmp_path / "t.jsonl", ".jsonl", content)
    assert read_tokens(tmp_path / "t.jsonl").token_mask.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("{", "line 1"),
        ("[1]", "expected an object"),
        ('{"token_ids": [1, 2]}\n{"token_ids": [1]}', "one shape"),
        ('{"token_ids": [1, 2]}', "--model"),
    ],
)
def test_wrong_files_of_tokens(run, tmp_path, text, words):
    path = tmp_path / "tokens.jsonl"
    path.write_text(text)
    fails(run("detokenize", path, "-o", tmp_path / "drawn"), words)
    assert not (tmp_path / "drawn").exists()


def test_wrong_ids_in_a_file(run, bench, tmp_path):
    path = tmp_path / "tokens.jsonl"
    path.write_text(json.dumps({"token_ids": [64] * 8, "model": str(bench / "tokenizer")}))
    fails(run("detokenize", path, "-o", tmp_path / "drawn"), "[0, 63]", "64")
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.jsonl"]


def test_reconstruct(run, bench, tmp_path):
    sheet = tmp_path / "sheet.png"
    code, out, err = run(
        "reconstruct", bench / "tokenizer", bench / "pictures", "-o", sheet, "--num-tokens", 2, "--num-tokens", 8
    )
    assert code == 0, err
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows] == [("2", "1.5"), ("8", "6.0")]
    assert Image.open(sheet).width > 3 * 100
    code, out, _ = run("reconstruct", bench / "tokenizer", bench / "pictures", "-o", sheet, "--overwrite")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:]] == ["1", "2", "4", "8"]
    _, out, _ = run("reconstruct", bench / "kl", bench / "pictures", "-o", sheet, "--overwrite")
    assert out.splitlines()[1].split()[:2] == ["8", "-"]
    assert bytes_of(folders.one_d_piece(), 8) == 6.0


def test_existing_outputs_stay(run, bench, tmp_path):
    sheet, folder, tokens = tmp_path / "a.png", tmp_path / "drawn", tmp_path / "t.jsonl"
    for path in (sheet, tokens):
        path.write_text("mine")
    folder.mkdir()
    (folder / "precious").write_text("mine")
    pictures = bench / "pictures"
    fails(run("reconstruct", bench / "tokenizer", pictures, "-o", sheet), "exists already", "--overwrite")
    fails(run("tokenize", bench / "tokenizer", pictures, "-o", tokens), "exists already", "--overwrite")
    fails(run("convert", bench / "original", folder), "exists already", "--overwrite")
    fails(run("convert", bench / "original", folder, "--overwrite"), "not replaced", "config.json")
    assert sheet.read_text() == tokens.read_text() == (folder / "precious").read_text() == "mine"
    assert run("tokenize", bench / "tokenizer", pictures, "-o", tokens, "--overwrite")[0] == 0
    fails(run("detokenize", tokens, "-o", folder), "exists already")
    fails(run("detokenize", tokens, "-o", folder, "--overwrite"), "not replaced")
    assert (folder / "precious").read_text() == "mine"


def test_wrong_arguments(run, bench, tmp_path):
    pictures, out = bench / "pictures", tmp_path / "t.jsonl"
    fails(run("tokenize", bench / "tokenizer", pictures, "-o", tmp_path / "t.txt"), ".safetensors or .jsonl")
    fails(run("tokenize", bench / "tokenizer", pictures, "-o", out, "--dtype", "int8"), "float32", "int8")
    fails(run("tokenize", bench / "tokenizer", pictures, "-o", out, "--device", "abacus"), "abacus")
    fails(run("tokenize", bench / "tokenizer", pictures, "-o", out, "--batch-size", 0), "at least 1")
    fails(run("tokenize", bench / "prior", pictures, "-o", out), "prior", "not a tokenizer")
    fails(run("tokenize", bench / "tokenizer", bench / "prior", "-o", out), "no pictures")
    assert not out.exists() and not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- generate


def test_generate(run, bench, tmp_path):
    sheet = tmp_path / "g.png"
    code, _, err = run("generate", bench / "pipe", "--class-label", 1, "--class-label", 2, "--count", 2, "-o", sheet)
    assert code == 0, err
    assert Image.open(sheet).width > 300
    one, two = tmp_path / "one", tmp_path / "two"
    pair = ["--class-label", 3, "--seed", 5, "--steps", 2, "--guidance-scale", 1.5]
    assert run("generate", bench / "pipe", *pair, "-o", one)[0] == 0
    code, _, err = run("generate", bench / "original_prior", "--image-tokenizer", bench / "tokenizer", *pair, "-o", two)
    assert code == 0, err
    assert (one / "00000.png").read_bytes() == (two / "00000.png").read_bytes()
    assert json.loads((one / "pictures.json").read_text()) == {"00000.png": "class 3"}


def test_generate_wrong_arguments(run, bench, tmp_path):
    out = tmp_path / "g.png"
    assert run("generate", bench / "pipe", "-o", out)[0] == 2
    fails(run("generate", bench / "pipe", "a cat", "-o", out), "does not take prompt", "class_labels")
    fails(run("generate", bench / "pipe", "--class-label", 5, "-o", out), "[0, 4]", "5")
    fails(run("generate", bench / "pipe", "--class-label", 1, "--count", 0, "-o", out), "at least 1")
    fails(run("generate", bench / "prior", "--class-label", 1, "-o", out), "--image-tokenizer")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- convert and push


def test_convert(run, bench, tmp_path):
    target = tmp_path / "deep" / "titok"
    code, _, err = run("convert", bench / "original", target)
    assert code == 0, err
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= {
        p.name for p in target.iterdir()
    }
    ours, theirs = (AutoImageTokenizer.from_pretrained(path) for path in (target, bench / "original"))
    x = torch.rand(2, 3, folders.SIZE, folders.SIZE)
    assert torch.equal(ours.encode(x).token_ids, theirs.encode(x).token_ids)
    assert run("convert", bench / "original", target, "--overwrite", "--half")[0] == 0
    assert AutoImageTokenizer.from_pretrained(target).dtype == torch.float32
    assert [path.name for path in target.parent.iterdir()] == ["titok"]
    fails(run("convert", target, tmp_path / "again"), "checkpoint of hf_vistok already")
    fails(run("convert", target, target, "--overwrite"), "holds the checkpoint that is read")
    fails(run("convert", target, target.parent, "--overwrite"), "holds the checkpoint that is read")
    assert (target / "config.json").is_file()


def test_convert_keeps_the_published_settings(run, bench, tmp_path):
    assert run("convert", bench / "original_prior", tmp_path / "prior")[0] == 0
    settings = AutoImagePrior.from_pretrained(tmp_path / "prior").generation_config
    assert settings.num_inference_steps == 3 and settings.anneal_logits is True
    assert not (tmp_path / "prior" / "preprocessor_config.json").exists()


def test_push_refuses_what_is_no_checkpoint(run, bench):
    fails(run("push", bench / "pictures", "me/x"), "config.json", "no folder of a checkpoint")


def test_push_sends_one_commit_with_a_card(run, bench, monkeypatch):
    import huggingface_hub

    sent = {}

    class Api:
        def __init__(self, token=None):
            sent["token"] = token

        def create_repo(self, repo, **options):
            sent.update(options)
            return type("Url", (), {"repo_id": repo})

        def list_repo_files(self, repo, revision=None):
            return [".gitattributes"]

        def create_commit(self, repo, operations, **options):
            sent["names"] = [operation.path_in_repo for operation in operations]
            return type("Commit", (), {"commit_url": f"https://hub/{repo}/commit/1"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    code, out, err = run("push", bench / "tokenizer", "me/x", "--private", "--token", "secret")
    assert code == 0 and "me/x" in out and sent["private"] is True and sent["token"] == "secret", err
    made = {"README.md", "provenance.json", "sheet.png"}
    assert set(sent["names"]) == {"config.json", "model.safetensors", "preprocessor_config.json", *made}
    assert "secret" not in out + err


# ---------------------------------------------------------------------- data, train, evaluate, showcase


def test_train_and_evaluate_are_here(run):
    assert "recipe" in run("train", "--help")[1].lower()
    assert run("evaluate", "--help")[0] == 0 and run("data", "emoji", "--help")[0] == 0
    fails(run("train", "no-such-recipe"), "no-such-recipe")


def test_showcase(run, bench, tmp_path, monkeypatch):
    embedded = tmp_path / "embedded"
    folders.save_tokenizer(embedded / "tiny")
    folders.save_pipeline(embedded / "drawer")
    monkeypatch.setattr(hub, "EMBEDDED_FOLDER", embedded)
    demo = tmp_path / "demo"
    for _ in range(2):  # a second time renews the files
        code, out, err = run("showcase", "--output", demo)
        assert code == 0, err
    names = {path.name for path in demo.iterdir()}
    assert {"tiny.png", "tiny.safetensors", "drawer.png", "drawer_generated.png"} <= names
    assert not [name for name in names if name.endswith(".part")]
    assert "hf-vistok/tiny: 8 pictures" in out
    assert len(read_tokens(demo / "tiny.safetensors").images) == 8
    monkeypatch.setattr(hub, "EMBEDDED_FOLDER", tmp_path / "nothing")
    fails(run("showcase", "--output", demo), "no embedded checkpoints")
