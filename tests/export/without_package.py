"""
Runs exported folders where hf_vistok cannot be imported: `python without_package.py folder ...`.

Each folder holds a checkpoint with its code, and `expected.pt`: calls of its methods with what they gave at home.
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


class Refuse:
    """Nothing called hf_vistok can be imported."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_vistok":
            raise ModuleNotFoundError(f"No module named {name!r}")


if __name__ == "__main__":  # the tests import this file, too
    sys.meta_path.insert(0, Refuse())
    sys.path[:] = [path for path in sys.path if not (Path(path or ".") / "hf_vistok").is_dir()]

import torch  # noqa: E402

torch.set_num_threads(1)


def load(folder: str, library: str):
    if library == "diffusers":
        from diffusers import AutoModel

        return AutoModel.from_pretrained(folder, trust_remote_code=True)
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, trust_remote_code=True)


def generators(batch: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(index) for index in range(batch)]


def run(model, method: str, kwargs: dict, draws: int):
    torch.manual_seed(0)
    options = {"generator": generators(draws)} if draws else {}
    with torch.no_grad():
        output = getattr(model, method)(**kwargs, **options)
    items = output.items() if hasattr(output, "items") else enumerate(output)
    return {str(name): value for name, value in items if isinstance(value, torch.Tensor)}


def main(folders: list[str]) -> None:
    for folder in folders:
        told = torch.load(Path(folder, "expected.pt"), weights_only=False)
        model = load(folder, told["library"]).eval()
        assert "transformers_modules" in type(model).__module__ or "diffusers_modules" in type(model).__module__
        for method, kwargs, draws, expected in told["calls"]:
            found = run(model, method, kwargs, draws)
            assert found.keys() == expected.keys(), (folder, method, found.keys(), expected.keys())
            for name, value in expected.items():
                assert torch.equal(found[name], value), (folder, method, name)
        if told["picture"]:
            from transformers import AutoImageProcessor

            processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
            values = processor(told["picture"], return_tensors="pt").pixel_values
            assert torch.equal(values, told["pixel_values"]), folder
            processor.postprocess(values)[0].save(Path(folder, "again.png"))
        print("ok", Path(folder).name)


if __name__ == "__main__":
    main(sys.argv[1:])
