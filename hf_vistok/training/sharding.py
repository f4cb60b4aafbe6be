"""Models whose weights lie in parts on several processes (FSDP2): whole tensors for the disk, and back."""

from torch import Tensor, nn


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor is a `DTensor`; its module is slow to import, and one process needs none of it."""
    return hasattr(tensor, "full_tensor")


def is_sharded(module: nn.Module) -> bool:
    """Whether weights of `module` lie in parts on several processes."""
    return any(is_part(parameter) for parameter in module.parameters())


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, on every process; all processes have to call this where some lie in parts."""
    return {name: value.full_tensor() if is_part(value) else value for name, value in tensors.items()}


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, laid out as `like`; the tensor itself where that is whole."""
    if not is_part(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_whole(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """
    Loads whole tensors into a module of parts or a plain one.

    Raises:
        RuntimeError: where names or shapes do not fit.
    """
    own = module.state_dict()
    module.load_state_dict({name: part_like(value, own.get(name, value)) for name, value in tensors.items()})
