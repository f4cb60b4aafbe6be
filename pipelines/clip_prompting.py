"""Prompts for models that were trained on open_clip's text tower: all positions, padded with 0."""

from typing import Any

import torch

from ..modeling.layers.text import ClipText, clip_text_states, pad_with_zeros
from .prompting import check_prompts


class ClipPromptMixin:
    """For pipelines with CLIP's `tokenizer` and `text_encoder`, and a text-aware `image_tokenizer`."""

    def encode_prompt(
        self, prompt: str | list[str], num_images_per_prompt: int = 1, *, allow_empty: bool = False
    ) -> ClipText:
        """
        States of prompts, of which longer ones are cut.

        Args:
            prompt: one text or several.
            num_images_per_prompt: rows per text.
            allow_empty: whether "" is a text; it stands for "no text".

        Raises:
            ValueError: for something that is no text, and where there is no text encoder.
        """
        prompts = check_prompts(prompt, allow_empty=allow_empty)
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("This pipeline has no text_encoder and tokenizer: give prompt_embeds.")
        length = self.image_tokenizer.config.text_context_length
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids = pad_with_zeros(tokens.input_ids, tokens.attention_mask).to(self._execution_device)
        return repeat_text(clip_text_states(self.text_encoder, ids), num_images_per_prompt)

    def make_text(
        self, prompt: str | list[str] | None, prompt_embeds: ClipText | None, num_images_per_prompt: int
    ) -> ClipText:
        """
        The texts of a call, one row per picture.

        Raises:
            ValueError: unless exactly one of prompt and prompt_embeds is given.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("Give either prompt or prompt_embeds (what encode_prompt returns).")
        if isinstance(num_images_per_prompt, bool) or not isinstance(num_images_per_prompt, int):
            raise ValueError(f"num_images_per_prompt must be a whole number, got {num_images_per_prompt!r}.")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}.")
        if prompt is not None:
            return self.encode_prompt(prompt, num_images_per_prompt)
        return repeat_text(prompt_embeds, num_images_per_prompt)


def repeat_text(text: ClipText, count: int) -> ClipText:
    """Each row `count` times, one after the other."""
    pooled = None if text.pooled is None else text.pooled.repeat_interleave(count, 0)
    return ClipText(text.last.repeat_interleave(count, 0), text.penultimate.repeat_interleave(count, 0), pooled)


def check_text_aware(image_tokenizer: Any) -> None:
    """Raises a ValueError unless the tokenizer's decoder reads a text."""
    if "text_hidden_states" not in getattr(image_tokenizer, "decode_conditioning", ()):
        raise ValueError(f"image_tokenizer must be a text-aware one (TA-TiTok), got {type(image_tokenizer).__name__}.")


def draw_text_aware(pipe: Any, latents: torch.Tensor, text: ClipText, output_type: str) -> Any:
    """Latents of a text-aware tokenizer as pictures."""
    sample = pipe.image_tokenizer.decode(latents, text_hidden_states=text.last).sample
    return pipe.image_processor.postprocess(sample.float(), output_type)
