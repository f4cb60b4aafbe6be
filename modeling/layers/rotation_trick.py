"""The rotation trick (arXiv 2410.06424): gradients through a quantizer are rotated and not copied."""

from torch import Tensor
from torch.nn import functional as F


def rotate_to(latents: Tensor, codes: Tensor) -> Tensor:
    """
    Values of `codes`, with the gradient of the rotation and scaling that takes each latent to its code (section 4.2).

    Args:
        latents, codes: `(..., D)`.

    Returns:
        `(..., D)`, equal to `codes` up to rounding.
    """
    source, target = F.normalize(latents, dim=-1).detach(), F.normalize(codes, dim=-1).detach()
    middle = F.normalize(source + target, dim=-1)
    scale = (codes.norm(dim=-1, keepdim=True) / latents.norm(dim=-1, keepdim=True).clamp_min(1e-6)).detach()
    reflected = latents - 2 * (latents * middle).sum(-1, keepdim=True) * middle
    return scale * (reflected + 2 * (latents * source).sum(-1, keepdim=True) * target)
