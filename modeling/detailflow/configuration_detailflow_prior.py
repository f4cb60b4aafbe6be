"""Configuration of DetailFlow's priors."""

from huggingface_hub.dataclasses import strict

from ..llamagen.configuration_llamagen_prior import LlamaGenPriorConfig


@strict
class DetailFlowPriorConfig(LlamaGenPriorConfig):
    r"""
    Configuration of [`DetailFlowPrior`]; fields as in [`LlamaGenPriorConfig`].

    Args:
        group_size (`int`): tokens that are written in parallel.
        num_causal_tokens (`int`): first tokens that are written one by one; a multiple of `group_size`.
    """

    model_type = "vistok_detailflow_prior"

    codebook_size: int = 8192
    num_image_tokens: int = 128
    group_size: int = 8
    num_causal_tokens: int = 8

    def validate_condition(self) -> None:
        """Raises a ValueError for another condition than a class, or tokens that do not divide into groups."""
        if self.condition != "class":
            raise ValueError(f"DetailFlow's priors are conditioned on classes, got condition={self.condition!r}.")
        group, causal = self.group_size, self.num_causal_tokens
        if group < 1 or causal < 1 or causal % group or self.num_image_tokens % group:
            raise ValueError(
                f"num_causal_tokens={causal} and num_image_tokens={self.num_image_tokens} must be multiples of "
                f"group_size={group}."
            )

    @property
    def step_lengths(self) -> list[int]:
        """Tokens that each step writes."""
        causal = min(self.num_causal_tokens, self.num_image_tokens)
        return [1] * causal + [self.group_size] * ((self.num_image_tokens - causal) // self.group_size)
