"""push_to_hub and from_pretrained over HTTP with the real client."""

import json

from .server import Repo

MODELS = """
    import torch
    from hf_vistok import (AutoImagePrior, AutoImageTokenizer, AutoImageTokenizerProcessor, ImageTokenizerProcessor,
        MaskGitPipeline, MaskGitPrior, MaskGitPriorConfig, OneDPieceConfig, OneDPieceModel, VisTokPipeline)
    def tokenizer():
        torch.manual_seed(0)
        sizes = dict(encoder_hidden_size=32, encoder_num_layers=1, encoder_num_heads=4, encoder_patch_size=8,
            decoder_hidden_size=32, decoder_num_layers=1, decoder_num_heads=4, decoder_patch_size=8)
        return OneDPieceModel(OneDPieceConfig(image_size=16, num_latent_tokens=4, token_size=4, codebook_size=32,
            pixel_head="patch", **sizes)).eval()
    def prior():
        p = MaskGitPrior(MaskGitPriorConfig(codebook_size=32, num_image_tokens=4, num_classes=3, hidden_size=16,
            num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)).eval()
        p.set_published_settings(num_inference_steps=3, cfg_scale=2.0)
        return p
    x = torch.rand(2, 3, 16, 16)
"""


def test_tokenizer_processor_and_prior(hub, client):
    out = client(
        MODELS
        + """
    t, p = tokenizer(), prior()
    t.push_to_hub("me/tok", private=True)
    ImageTokenizerProcessor.for_size(16).push_to_hub("me/tok")
    p.push_to_hub("me/prior")
    t2 = AutoImageTokenizer.from_pretrained("me/tok")
    assert torch.equal(t2.encode(x).token_ids, t.encode(x).token_ids)
    assert AutoImageTokenizerProcessor.from_pretrained("me/tok").size["shortest_edge"] == 16
    assert AutoImagePrior.from_pretrained("me/prior").generation_config.num_inference_steps == 3
    old = AutoImageTokenizer.from_pretrained("me/tok", revision="main")
    print("same", all(torch.equal(a, b) for a, b in zip(t.state_dict().values(), old.state_dict().values())))
    """
    )
    assert "same True" in out
    assert hub.repos["models/me/tok"].private
    names = set(hub.repos["models/me/tok"].commits[hub.repos["models/me/tok"].refs["main"]])
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= names


def test_pipeline(hub, client):
    out = client(
        MODELS
        + """
    pipe = MaskGitPipeline(tokenizer(), prior())
    pipe.push_to_hub("me/pipe")
    again = VisTokPipeline.from_pretrained("me/pipe")
    g = lambda: torch.Generator().manual_seed(0)
    a = pipe(class_labels=[1], generator=g(), output_type="pt").images
    b = again(class_labels=[1], generator=g(), output_type="pt").images
    print(type(again).__name__, torch.equal(a, b))
    """
    )
    assert "MaskGitPipeline True" in out


def test_original_repository_downloads_only_what_it_needs(hub, client):
    repo = Repo()
    hub.repos["models/authors/tok"] = repo
    sizes = {"tiny": {"width": 32, "num_layers": 1, "num_heads": 4}}
    vq = {"vit_enc_model_size": "tiny", "vit_dec_model_size": "tiny", "num_latent_tokens": 4, "token_size": 4}
    config = {
        "model": {"vq_model": {**vq, "vit_enc_patch_size": 8, "vit_dec_patch_size": 8, "codebook_size": 32}},
        "dataset": {"preprocessing": {"crop_size": 16}},
        "fixture_overrides": {"model_sizes": sizes},
    }
    repo.commit({"config.json": json.dumps(config).encode(), "big.bin": b"0" * 1000}, "main")
    out = client(
        """
        from hf_vistok import AutoImageTokenizer, AutoImageTokenizerProcessor
        print(AutoImageTokenizerProcessor.from_pretrained("authors/tok").size)
        try:
            AutoImageTokenizer.from_pretrained("authors/tok")
        except ValueError as error:
            print(error)
        """
    )
    assert "shortest_edge': 16" in out or "shortest_edge=16" in out
    assert "has no weights" in out
    assert not any("big.bin" in path for _, path in hub.requests)


def test_missing_private_and_gated(hub, client):
    hub.repos["models/me/secret"] = Repo(private=True)
    hub.repos["models/me/gated"] = Repo()
    hub.repos["models/me/gated"].gated = True
    code = """
        from hf_vistok import AutoImageTokenizer
        for name in ("me/nothing", "me/secret", "me/gated"):
            try:
                AutoImageTokenizer.from_pretrained(name)
            except OSError as error:
                print(name, "OSError", str(error).splitlines()[0][:200])
        """
    out = client(code, token=None)
    assert out.count("OSError") == 3 and "gated" in out


def test_cut_download_leaves_nothing_that_loads(hub, client):
    client(MODELS + '    tokenizer().push_to_hub("me/cut")')
    hub.cut["model.safetensors"] = 1000
    out = client(
        """
        from hf_vistok import AutoImageTokenizer
        AutoImageTokenizer.from_pretrained("me/cut")
        """,
        check=False,
    )
    assert "Error" in out
    hub.cut.clear()
    assert "OneDPieceModel" in client(
        'from hf_vistok import AutoImageTokenizer\nprint(type(AutoImageTokenizer.from_pretrained("me/cut")).__name__)'
    )


def test_create_pr_and_revision(hub, client):
    out = client(
        MODELS
        + """
    tokenizer().push_to_hub("me/pr")
    commit = tokenizer().push_to_hub("me/pr", create_pr=True)
    print(commit.pr_url)
    print(type(AutoImageTokenizer.from_pretrained("me/pr", revision="refs/pr/1")).__name__)
    try:
        AutoImageTokenizer.from_pretrained("me/pr", revision="nowhere")
    except OSError as error:
        print("refused", str(error)[:80])
    """
    )
    assert "discussions" in out and "OneDPieceModel" in out and "refused" in out


def test_malicious_model_index_runs_nothing(hub, client):
    index = {"_class_name": "os.system", "_diffusers_version": "0.42.1", "prior": ["subprocess", "Popen"]}
    hub.repos["models/me/evil"] = Repo()
    hub.repos["models/me/evil"].commit({"model_index.json": json.dumps(index).encode()}, "main")
    out = client(
        """
        from hf_vistok import VisTokPipeline
        try:
            VisTokPipeline.from_pretrained("me/evil")
        except ValueError as error:
            print("refused:", error)
        """
    )
    assert "refused:" in out and "no pipeline of hf_vistok" in out
