"""One-D-Piece (arXiv 2501.10064): TiTok trained with tail token drop, decoded from any prefix."""

import torch
from torch import Tensor

from ..titok.modeling_titok import TiTokModel
from .configuration_one_d_piece import OneDPieceConfig


class OneDPieceModel(TiTokModel):
    """Images in [0, 1] to up to `num_latent_tokens` ids, the most important first; any prefix decodes."""

    config: OneDPieceConfig

    @property
    def is_prefix_ordered(self) -> bool:
        """Always True."""
        return True

    def _training_mask(self, latents: Tensor) -> Tensor | None:
        """Keeps the first 1..N tokens, uniformly drawn (section 3.2)."""
        if not (self.training and self.config.tail_token_drop):
            return None
        batch, count = latents.shape[:2]
        draws = batch if self.config.per_image_drop else 1
        keep = torch.randint(1, count + 1, (draws, 1), device=latents.device)
        return (torch.arange(count, device=latents.device) < keep).expand(batch, count)
