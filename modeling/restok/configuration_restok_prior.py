"""Configuration of ResTok's hierarchical prior."""

from huggingface_hub.dataclasses import strict

from ..llamagen.configuration_llamagen_prior import LlamaGenPriorConfig


@strict
class ResTokPriorConfig(LlamaGenPriorConfig):
    r"""
    Configuration of [`ResTokPrior`]; fields as in [`LlamaGenPriorConfig`].

    Args:
        num_causal_tokens (`int`): first tokens that are written one by one; after them levels double the sequence.
        num_special_tokens (`int`): learned tokens that fill up the inputs of levels, at least as many as are needed.
    """

    model_type = "vistok_restok_prior"

    codebook_size: int = 8192
    num_image_tokens: int = 128
    num_causal_tokens: int = 4
    num_special_tokens: int = 127

    def validate_condition(self) -> None:
        """Raises a ValueError for another condition than a class, or levels that do not fill the sequence."""
        if self.condition != "class":
            raise ValueError(f"ResTok's prior is conditioned on classes, got condition={self.condition!r}.")
        if sum(self.step_lengths) != self.num_image_tokens:
            raise ValueError(
                f"num_image_tokens={self.num_image_tokens} is not num_causal_tokens={self.num_causal_tokens} times a "
                "power of two."
            )
        if self.num_special_tokens < self.step_lengths[-1] - 1:
            raise ValueError(f"Levels need {self.step_lengths[-1] - 1} special tokens, got {self.num_special_tokens}.")

    @property
    def step_lengths(self) -> list[int]:
        """Tokens that each step writes."""
        lengths = [1] * self.num_causal_tokens
        while 0 < sum(lengths) < self.num_image_tokens:
            lengths.append(sum(lengths))
        return lengths
