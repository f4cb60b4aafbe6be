"""`hf-vistok push` with the real client."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = f"""
    import sys
    sys.path.insert(0, {str(ROOT)!r})
    from pathlib import Path
    from tests.folders import save_tokenizer
    from hf_vistok.cli.main import main
    from hf_vistok import AutoImageTokenizer
    save_tokenizer(Path("saved"))
    codes = [main(["push", "saved", "me/tok", "--private"]), main(["push", "saved", "me/tok", "--message", "again"])]
    codes += [main(["info", "me/tok"]), main(["info", "me/none"])]
    print(codes, AutoImageTokenizer.from_pretrained("me/tok").num_tokens)
"""


@pytest.mark.slow
def test_push(hub, client):
    assert "[0, 0, 0, 1] 8" in client(CODE)
    repo = hub.repos["models/me/tok"]
    names = set(repo.commits[repo.refs["main"]])
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= names
    assert repo.private
