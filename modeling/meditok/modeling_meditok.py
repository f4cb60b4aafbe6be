"""MedITok (arXiv 2505.19225): UniTok on medical pictures, aligned with BiomedCLIP's pictures, then with its texts."""

from torch import Tensor

from ..outputs import ImageTokenizerOutput
from ..unitok.modeling_unitok import UniTokModel
from .configuration_meditok import MedITokConfig


class MedITokModel(UniTokModel):
    """
    Images `(B, 3, 256, 256)` in [-1, 1] to ids `(B, 256, 8)` in raster order, and back.

    As [`UniTokModel`], but the projections to and from the codes see earlier tokens only, and the text tower is a
    frozen BiomedCLIP that is no part of the checkpoint: training takes its embeddings as `teacher_features`. For
    classification the authors read `encode(...).pooled_features`, for language models `encode(...).latents`.
    """

    config: MedITokConfig
    teacher_inputs = {"teacher_features": "pooled"}

    def forward(self, pixel_values: Tensor, teacher_features: Tensor | None = None) -> ImageTokenizerOutput:
        """
        One training pass.

        Args:
            pixel_values: `(B, 3, H, W)` in [-1, 1].
            teacher_features: `(B, embed_dim)`: BiomedCLIP's embeddings of the same pictures in the first stage, of
                their texts in the second.

        Returns:
            weighted losses `l1_loss`, `l2_loss`, `commitment_loss`, `codebook_loss`, and `contrastive_loss` where
            features are given. The perceptual and adversarial terms are the trainer's.
        """
        return super().forward(pixel_values, teacher_features=teacher_features)
