"""Original checkpoints: recognised by their configuration, converted on the fly, with every tensor accounted for."""

from .adapter import Adapter, ConversionError, Part, Plan, Preset, get_adapter
from .build import convert_state_dict, from_original, from_original_parts, plan_of

__all__ = [
    "Adapter",
    "ConversionError",
    "Part",
    "Plan",
    "Preset",
    "convert_state_dict",
    "from_original",
    "from_original_parts",
    "get_adapter",
    "plan_of",
]
