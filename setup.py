"""The map from folders to packages; everything else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

FOLDERS = {
    "hf_vistok": "hf_vistok",
    "hf_vistok.modeling": "modeling",
    "hf_vistok.pipelines": "pipelines",
    "hf_vistok.spaces": "spaces",
    "hf_vistok.model_cards": "model_cards",
}
packages = [
    name
    for package, folder in FOLDERS.items()
    for name in (package, *(f"{package}.{sub}" for sub in find_namespace_packages(folder)))
    if "__pycache__" not in name
]
setup(package_dir=FOLDERS, packages=packages)
