"""What families take from a CLIP text tower, and how they pad its ids."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class ClipText:
    """
    States of a CLIP text tower for a batch of captions.

    Args:
        last: of the last layer after the final norm, `(B, T, D)`.
        penultimate: of the layer before it, without a norm, `(B, T, D)`.
        pooled: the projected state at the end token, `(B, P)`; None of towers without projection.
    """

    last: Tensor
    penultimate: Tensor
    pooled: Tensor | None


def clip_text_states(text_encoder: nn.Module, input_ids: Tensor) -> ClipText:
    """
    Runs a `CLIPTextModel` or `CLIPTextModelWithProjection` without a mask over padding, as open_clip does.

    Args:
        text_encoder: of transformers.
        input_ids: int64 `(B, T)`, padded with 0; see [`pad_with_zeros`].
    """
    output = text_encoder(input_ids=input_ids, output_hidden_states=True)
    pooled = getattr(output, "text_embeds", None)
    return ClipText(output.last_hidden_state, output.hidden_states[-2], pooled)


def pad_with_zeros(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Ids `(B, T)` with 0 where the mask is 0: CLIP's tokenizer in transformers pads with the end token."""
    return input_ids.masked_fill(attention_mask == 0, 0)
