"""Configuration of RPiAE."""

from huggingface_hub.dataclasses import strict

from ..rae.configuration_rae import RaeConfig

STAGES = ("stage1", "stage2", "stage3")


@strict
class RpiaeConfig(RaeConfig):
    r"""
    Configuration of [`RpiaeModel`]: fields of [`RaeConfig`] and these.

    Args:
        bridge_dim (`int`, *optional*): channels of a latent behind the variational bridge; `None`: latents are the
            encoder's tokens, as in the first stage of training.
        bridge_num_layers (`int`): blocks of the bridge's decoder.
        training_stage (`str`): what trains: "stage1" (encoder and pixel decoder), "stage2" (the bridge) or "stage3"
            (the pixel decoder).
        pivot_weight (`float`): of the distance to the original encoder in stage 1, before the trainer adapts it.
        feature_weight, kl_weight, reconstruction_weight (`float`): of the terms of stage 2.
    """

    model_type = "vistok_rpiae"

    has_statistics: bool = False
    noise_tau: float = 0.0
    bridge_dim: int | None = 64
    bridge_num_layers: int = 6
    training_stage: str = "stage3"
    pivot_weight: float = 0.75
    feature_weight: float = 1.0
    kl_weight: float = 1e-3
    reconstruction_weight: float = 0.05

    @property
    def bridge_num_heads(self) -> int:
        """Heads of the bridge's attention."""
        return min(8, max(1, self.latent_dim // 64))

    def validate_stage(self) -> None:
        """The stage is known, and has what it trains."""
        if self.training_stage not in STAGES:
            raise ValueError(f"training_stage must be one of {STAGES}, got {self.training_stage!r}.")
        if self.training_stage == "stage2" and self.bridge_dim is None:
            raise ValueError("Stage 2 trains the bridge: bridge_dim must be a number.")
