"""ReToK (arXiv 2601.01535): GigaTok whose tail tokens have redundant twins, trained on prefixes padded with them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..gigatok.modeling_gigatok import GigaTokModel
from ..layers.losses import keep_lengths
from ..layers.quantizers import QuantizerOutput
from ..outputs import ImageTokenizerEncoderOutput, ImageTokenizerOutput
from .configuration_retok import ReTokConfig


class ReTokModel(GigaTokModel):
    """
    Images in [-1, 1] to up to `num_latent_tokens` ordered ids, and back from any prefix.

    The encoder makes `num_redundant_tokens` more latents; `encode_all` shows them, pictures and priors do without.
    """

    config: ReTokConfig

    @property
    def is_prefix_ordered(self) -> bool:
        """Any number of first tokens is a picture."""
        return True

    def encode_all(self, pixel_values: Tensor) -> tuple[Tensor, QuantizerOutput]:
        """Latents before and after the quantizer with the redundant ones behind, `(B, N + redundant, D)`."""
        self._check_pixel_values(pixel_values)
        return self.encode_features(self.encoder(pixel_values.to(self.dtype)))

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        count = self.config.num_latent_tokens
        pre_quant, output = self.encode_all(pixel_values)
        return ImageTokenizerEncoderOutput(
            latents=output.quantized[:, :count].to(pre_quant.dtype),
            token_ids=output.indices[:, :count],
            pre_quant=pre_quant[:, :count],
            loss=output.loss,
            losses=output.losses,
        )

    def padded_mask(self, lengths: Tensor) -> Tensor:
        """
        What the decoder sees of prefixes in training: the prefix, and redundant twins in place of the cut tail.

        Args:
            lengths: tokens that stay, int64 `(B,)`.

        Returns:
            bool `(B, N + redundant)`, or the prefix alone, `(B, N)`, without `config.redundant_decoder`.
        """
        count, redundant = self.config.num_latent_tokens, self.config.num_redundant_tokens
        if not self.config.redundant_decoder:
            return torch.arange(count, device=lengths.device) < lengths[:, None]
        slots = torch.arange(count + redundant, device=lengths.device)
        kept = (slots < count) & (slots < lengths[:, None])
        twins = (slots >= count) & (slots - redundant >= lengths[:, None])
        return kept | twins

    def forward(
        self,
        pixel_values: Tensor,
        teacher_features: Tensor | None = None,
        auxiliary: bool = False,
        keep: Tensor | None = None,
    ) -> ImageTokenizerOutput:
        """
        One training pass with nested dropout.

        The authors have not published their schedules; these choices are ours: lengths are uniform, and the alignment
        of an image with k of N tokens weighs `1 - (k - 1) / N`, so that early tokens are aligned the most.

        Args:
            pixel_values, teacher_features, auxiliary: as for [`GigaTokModel.forward`].
            keep: tokens that stay of each image, int64 `(B,)`; drawn where None.

        Returns:
            the losses of [`GigaTokModel.forward`].
        """
        self._check_pixel_values(pixel_values)
        count = self.config.num_latent_tokens
        features = self.encoder(pixel_values)
        _, output = self.encode_features(features)
        keep = (keep_lengths(len(pixel_values), count) if keep is None else keep).to(pixel_values.device)
        mask = self.padded_mask(keep)
        latents = output.quantized[:, : mask.shape[1]]
        decoded = self.decode_features(latents, mask)
        sample = self.decoder(decoded)
        losses = {"reconstruction_loss": F.mse_loss(sample, pixel_values), **output.losses}
        if teacher_features is not None:
            weights = 1 - (keep - 1) / count
            losses["alignment_loss"] = self._alignment_loss(latents, mask, teacher_features, weights)
        if auxiliary:
            losses["feature_reconstruction_loss"] = F.mse_loss(decoded, features)
            losses["direct_reconstruction_loss"] = F.mse_loss(self.decoder(features), pixel_values)
        return ImageTokenizerOutput(self._total(losses), losses, sample, output.indices[:, :count])
