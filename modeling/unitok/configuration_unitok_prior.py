"""Configuration of the prior of UniTok and MedITok."""

from huggingface_hub.dataclasses import strict

from ..llamagen.configuration_llamagen_prior import LlamaGenPriorConfig

EMBEDDINGS = ("sum", "codes")


@strict
class UniTokPriorConfig(LlamaGenPriorConfig):
    r"""
    Configuration of [`UniTokPrior`]: LlamaGen's (see [`LlamaGenPriorConfig`]), and what several ids at a position need.

    Args:
        num_codebooks (`int`): ids at one position.
        codebook_size (`int`): different ids of each.
        num_head_layers (`int`): blocks of the head that writes the ids of a position one after the other.
        id_embedding (`str`): "sum" of one vector for each id, or "codes": the tokenizer's own codes through a
            causal attention projection and an MLP.
        code_width, code_hidden_size (`int`): of the codes of a position together and of that projection, for "codes".
    """

    model_type = "vistok_unitok_prior"

    codebook_size: int = 4096
    num_codebooks: int = 8
    num_head_layers: int = 1
    id_embedding: str = "sum"
    code_width: int = 64
    code_hidden_size: int = 1024

    def validate_embedding(self) -> None:
        """Raises a ValueError for an unknown embedding, or codes that cannot be shared out among the codebooks."""
        if self.id_embedding not in EMBEDDINGS:
            raise ValueError(f"id_embedding must be one of {EMBEDDINGS}, got {self.id_embedding!r}.")
        if self.code_width % self.num_codebooks or self.code_hidden_size % self.code_width:
            raise ValueError("code_hidden_size, code_width and num_codebooks must be multiples of each other.")
