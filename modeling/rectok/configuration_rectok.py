"""Configuration of RecTok."""

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig

SCHEDULES = ("shift", "uniform")
TARGETS = ("rec+align", "reconstruction")


@strict
class RecTokConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`RecTokModel`].

    Args:
        patch_size (`int`): pixels along a side that one token stands for.
        latent_dim (`int`): channels of a latent.
        encoder_hidden_size, encoder_num_layers, encoder_num_heads (`int`): of the encoder.
        decoder_hidden_size, decoder_num_layers, decoder_num_heads (`int`): of the pixel decoder.
        semantic_hidden_size, semantic_num_layers, semantic_num_heads (`int`): of the semantic decoder (training only).
        semantic_dim (`int`, *optional*): width of the teacher's features; `None`: there is no semantic decoder.
        qk_norm (`bool`): RMSNorm on each head's q and k.
        kl (`bool`): whether there is a posterior; else latents are the encoder's output.
        class_token (`str`): "none" (published), "learnable" (a token that only the semantic decoder is given) or
            "pooling" (without weights of its own).
        latents_scale (`float`): factor of normalised latents.
        latents_mean, latents_std (`list[float]`, *optional*): of each channel over the training set. The authors'
            files do not hold them.
        flow_noise (`float`): standard deviation of the noise at the far end of the flow in training (section 3.2).
        noise_schedule (`str`): "shift" (times shifted by the size of the latents) or "uniform".
        semantic_target (`str`): which tokens the semantic loss sees: "rec+align" (all) or "reconstruction" (masked).
        mask_ratio_min, mask_ratio_max (`float`): share of hidden patches in training, uniform; below 0 counts as 0.
        kl_weight, semantic_weight (`float`): of the terms beside the l1 loss.
        train_encoder (`bool`): False for the decoder's fine-tuning (stage 2), which leaves the latents as they are.
    """

    model_type = "vistok_rectok"

    pixel_range: tuple[float, ...] | list[float] | None = (-1.0, 1.0)
    patch_size: int = 16
    latent_dim: int = 128
    encoder_hidden_size: int = 768
    encoder_num_layers: int = 12
    encoder_num_heads: int = 12
    decoder_hidden_size: int = 768
    decoder_num_layers: int = 12
    decoder_num_heads: int = 12
    semantic_hidden_size: int = 192
    semantic_num_layers: int = 3
    semantic_num_heads: int = 4
    semantic_dim: int | None = 768
    qk_norm: bool = False
    kl: bool = True
    class_token: str = "none"
    latents_scale: float = 1.0
    latents_mean: list[float] | None = None
    latents_std: list[float] | None = None
    flow_noise: float = 1.0
    noise_schedule: str = "shift"
    semantic_target: str = "rec+align"
    mask_ratio_min: float = -0.1
    mask_ratio_max: float = 0.4
    kl_weight: float = 1e-6
    semantic_weight: float = 1.0
    train_encoder: bool = True

    @property
    def grid_size(self) -> int:
        """Tokens along a side."""
        return self.image_size // self.patch_size

    def validate_geometry(self) -> None:
        """Patches fill the picture; heads have widths that two axes of pairs can share."""
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}.")
        for part in ("encoder", "decoder", "semantic"):
            width, heads = (getattr(self, f"{part}_{name}") for name in ("hidden_size", "num_heads"))
            if width % (4 * heads):
                raise ValueError(f"{part}: {heads} heads of a width of {width} are no multiples of 4 channels.")

    def validate_choices(self) -> None:
        """Words are among those that are known; statistics have one number per channel."""
        for name, known in (
            ("noise_schedule", SCHEDULES),
            ("semantic_target", TARGETS),
            ("class_token", ("none", "learnable", "pooling")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")
        for values in (self.latents_mean, self.latents_std):
            if values is not None and len(values) != self.latent_dim:
                raise ValueError(f"latents_mean and latents_std need {self.latent_dim} numbers, got {len(values)}.")
