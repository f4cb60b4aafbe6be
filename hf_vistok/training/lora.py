"""LoRA through peft: low-rank updates beside frozen linear layers, in any model of a stage."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .recipe import LoraRecipe, RecipeError

IN_A_BLOCK = re.compile(r"\.\d+\.")


def lora_targets(model: nn.Module, recipe: LoraRecipe) -> list[str]:
    """
    Names of the linear layers that get an update: those whose name holds one of `recipe.targets`, by default those
    inside repeated blocks.

    Raises:
        RecipeError: where there is none, with some names that there are.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if recipe.targets is None:
        chosen = [name for name in linear if IN_A_BLOCK.search(f".{name}.")]
    else:
        chosen = [name for name in linear if any(part in name for part in recipe.targets)]
    if not chosen:
        shown = ", ".join(linear[:: max(1, len(linear) // 8)][:8]) or "none"
        raise RecipeError(f"recipe.model.lora.targets: no linear layer fits; there are: {shown}.")
    return chosen


def add_lora(model: nn.Module, recipe: LoraRecipe, seed: int = 0) -> list[str]:
    """
    Puts the updates into `model`, in place, and freezes everything else but `recipe.train`.

    Args:
        model: of any kind; it keeps its class and methods.
        recipe: rank and targets.
        seed: of the initial values. The updates start at zero, so the model's output is what it was.

    Returns:
        names of the layers.

    Raises:
        RecipeError: where peft is missing, or no layer fits.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RecipeError("recipe.model.lora needs peft: pip install 'hf_vistok[train]'.") from error
    targets = lora_targets(model, recipe)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha or 2 * recipe.rank, lora_dropout=recipe.dropout, target_modules=targets
    )
    model.requires_grad_(False)
    torch.manual_seed(seed)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if any(part in name for part in recipe.train):
            parameter.requires_grad_(True)
    return targets


def merge_lora(model: nn.Module) -> nn.Module:
    """Adds the updates to the weights and takes them out again, in place: the model is of plain layers afterwards."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in found:
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.get_base_layer())
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in vars(model):
            delattr(model, attribute)
    return model.requires_grad_(True)


def load_weights(model: nn.Module, tensors: dict[str, Tensor], recipe: LoraRecipe | None) -> nn.Module:
    """
    Loads the weights of a training state, with its updates merged.

    Args:
        model: as it was built for training, without updates.
        tensors: of the state.
        recipe: of the run.
    """
    if recipe is not None:
        add_lora(model, recipe)
    model.load_state_dict(tensors)
    return merge_lora(model) if recipe is not None else model


def save_lora(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> Path:
    """
    Writes the updates alone, as peft lays them out: `load_adapter` of transformers reads the folder.

    Args:
        model: with updates.
        tensors: its weights (their average), by name.
        folder: to make.
    """
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    updates = get_peft_model_state_dict(model, state_dict=tensors, adapter_name="default")
    save_file(
        {f"base_model.model.{name}": value.contiguous() for name, value in updates.items()},
        folder / "adapter_model.safetensors",
        {"format": "pt"},
    )
    config: Any = model.peft_config["default"]
    config.save_pretrained(folder)
    return folder
