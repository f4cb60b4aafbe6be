"""How the outputs of TiTok's `training_losses` variants come from their inputs."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_vistok.modeling.layers.losses import masked_token_loss, next_token_loss
from hf_vistok.modeling.layers.posterior import DiagonalGaussian
from hf_vistok.training.discriminator import PatchDiscriminator
from hf_vistok.training.losses import generator_loss, hinge_discriminator_loss, lecam_loss, summed_kl


def rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names of the discriminator to ours; the blur kernels are theirs, not recomputed."""
    parts = {"block_in.0": "conv_in", "to_logits.0": "head", "to_logits.2": "conv_out"}
    inner = {"0": "convs", "1": "downs", "2": "norms"}
    out = {}
    for name, value in weights.items():
        if name.startswith("blocks."):
            _, stage, part, leaf = name.split(".")
            out[f"{inner[part]}.{stage}.{leaf}"] = value.float()
        else:
            prefix, _, leaf = name.rpartition(".")
            out[f"{parts[prefix]}.{leaf}"] = value.float()
    return out


def build_discriminator(weights: dict[str, Tensor], config: dict) -> PatchDiscriminator:
    model = PatchDiscriminator(
        config.get("hidden_channels", 128),
        config.get("num_stages", 3),
        config.get("num_channels", 3),
        blur=config.get("blur_resample", True),
        blur_kernel_size=config.get("blur_kernel_size", 4),
    )
    model.load_state_dict(rename(weights))
    return model.eval()


@torch.no_grad()
def training_losses(weights: dict[str, Tensor], config: dict, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every output of a `training_losses` variant."""
    judge = build_discriminator(weights, config)
    real, fake = judge(inputs["real"]), judge(inputs["fake"])
    posterior = DiagonalGaussian.from_moments(inputs["moments"], dim=1)
    mlm, _ = masked_token_loss(
        inputs["mlm_logits"],
        inputs["mlm_targets"],
        inputs["mlm_mask"],
        label_smoothing=config.get("label_smoothing", 0.1),
        unmasked_weight=config.get("loss_weight_unmasked_token", 0.1),
    )
    return {
        "logits_real": real,
        "logits_fake": fake,
        "hinge_d": hinge_discriminator_loss(real, fake),
        "generator_gan": generator_loss(fake),
        "lecam": lecam_loss(real, fake, inputs["ema_real"], inputs["ema_fake"]),
        "mlm_loss": mlm,
        "ar_loss": next_token_loss(inputs["ar_logits"], inputs["mlm_targets"]),
        "proxy_ce": F.cross_entropy(inputs["proxy_logits"].flatten(2), inputs["proxy_targets"]),
        "kl_loss": summed_kl(posterior.mean, posterior.logvar),
    }
