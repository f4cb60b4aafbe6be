"""Adversarial losses of reconstruction training, as TiTok's and TA-TiTok's recipes use them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def hinge_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Half the sum of the two hinge terms: real logits should exceed 1, fake ones stay below -1."""
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())


def generator_loss(logits_fake: Tensor) -> Tensor:
    """What the generator minimises: minus the mean logit of its pictures."""
    return -logits_fake.mean()


def lecam_loss(logits_real: Tensor, logits_fake: Tensor, ema_real: Tensor, ema_fake: Tensor) -> Tensor:
    """
    LeCam regularisation (arXiv 2104.03310): mean logits should not run away from the other side's moving average.

    Args:
        logits_real, logits_fake: any shape; their means count, as in the authors' code.
        ema_real, ema_fake: moving averages of those means, scalars or of shape (1,).
    """
    real, fake = logits_real.mean(), logits_fake.mean()
    return F.relu(real - ema_fake).square().mean() + F.relu(ema_real - fake).square().mean()


class LeCam(nn.Module):
    """
    The moving averages of LeCam regularisation, as buffers, so that they are saved with the discriminator.

    Args:
        decay: of the averages.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("ema_real", torch.zeros(()))
        self.register_buffer("ema_fake", torch.zeros(()))

    def forward(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """The term, by the averages of the steps before."""
        return lecam_loss(logits_real, logits_fake, self.ema_real, self.ema_fake)

    @torch.no_grad()
    def update(self, mean_real: Tensor, mean_fake: Tensor) -> None:
        """Moves the averages; give means over all processes."""
        self.ema_real.lerp_(mean_real.to(self.ema_real), 1 - self.decay)
        self.ema_fake.lerp_(mean_fake.to(self.ema_fake), 1 - self.decay)


def summed_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Divergence from the standard normal, summed over everything but the batch, averaged over that."""
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)
    return kl.flatten(1).sum(1).mean()
