"""TA-TiTok (arXiv 2501.07730): TiTok in one stage, with the caption's tokens behind the latent tokens in the decoder.

Shape suffixes in comments: B images, N latent tokens, T text positions, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerOutput
from ..titok.modeling_titok import TiTokDecoder, TiTokModel
from .configuration_ta_titok import TaTiTokConfig


class TaTiTokDecoder(TiTokDecoder):
    """ViT over [class token, mask tokens, latents, text] (section 3.2); padding of the text is looked at too."""

    def __init__(self, config: TaTiTokConfig) -> None:
        super().__init__(config)
        width = config.decoder_hidden_size
        self.text_proj = nn.Linear(config.text_embed_dim, width)
        self.text_position_embedding = nn.Parameter(torch.empty(config.text_context_length, width))

    def text_tokens(self, text_hidden_states: Tensor) -> Tensor:
        """States of the text encoder `(B, T, text_embed_dim)` to tokens `(B, T, D)`."""
        return self.text_proj(text_hidden_states) + self.text_position_embedding


class TaTiTokModel(TiTokModel):
    """
    Images in [0, 1] to `num_latent_tokens` ids (or continuous tokens of the "kl" quantizer), and back with a caption.

    `decode` needs `text_hidden_states`, `(B, text_context_length, text_embed_dim)`: of the published checkpoints the
    states of the last layer of CLIP ViT-L/14-336 after its final norm, for ids padded with 0
    (`hf_vistok.modeling.layers.text.clip_text_states`). `encode` sees no text.
    """

    config: TaTiTokConfig
    decoder_class = TaTiTokDecoder
    decode_conditioning = ("text_hidden_states",)

    def _check_text(self, text: Tensor, batch: int) -> None:
        shape = (batch, self.config.text_context_length, self.config.text_embed_dim)
        if not isinstance(text, Tensor) or not text.is_floating_point() or tuple(text.shape) != shape:
            found = tuple(text.shape) if isinstance(text, Tensor) else type(text).__name__
            raise ValueError(f"{type(self).__name__}.decode takes float text_hidden_states {shape}, got {found}.")

    def _decode(
        self, latents: Tensor, token_mask: Tensor | None, text_hidden_states: Tensor
    ) -> ImageTokenizerDecoderOutput:
        self._check_text(text_hidden_states, latents.shape[0])
        text = self.decoder.text_tokens(text_hidden_states.to(self.dtype))
        return ImageTokenizerDecoderOutput(sample=self.to_pixels(self.decoder(latents, token_mask, text)))

    def forward(self, pixel_values: Tensor, text_hidden_states: Tensor, **kwargs: Any) -> ImageTokenizerOutput:
        """
        One training pass; see [`TiTokModel`] for arguments and losses.

        Args:
            pixel_values: `(B, 3, H, W)` in [0, 1].
            text_hidden_states: of the captions, `(B, T, text_embed_dim)`.
            kwargs: of `encode`.
        """
        return super().forward(pixel_values, text_hidden_states=text_hidden_states, **kwargs)
