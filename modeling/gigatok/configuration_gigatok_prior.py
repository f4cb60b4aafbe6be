"""Configuration of GigaTok's priors."""

from huggingface_hub.dataclasses import strict

from ..llamagen.configuration_llamagen_prior import LlamaGenPriorConfig

POSITIONS = ("learned", "rotary")


@strict
class GigaTokPriorConfig(LlamaGenPriorConfig):
    r"""
    Configuration of [`GigaTokPrior`]; fields as in [`LlamaGenPriorConfig`].

    Args:
        positions (`str`): "learned" (one row per position, added once; all published checkpoints) or "rotary" (1-D, the
            class position has zero queries and keys).
    """

    model_type = "vistok_gigatok_prior"

    positions: str = "learned"

    def validate_condition(self) -> None:
        """Raises a ValueError for another condition than a class, or unknown positions."""
        if self.condition != "class":
            raise ValueError(f"GigaTok's priors are conditioned on classes, got condition={self.condition!r}.")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions must be one of {POSITIONS}, got {self.positions!r}.")
