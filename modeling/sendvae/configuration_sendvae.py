"""Configuration of Send-VAE."""

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig


@strict
class SendVaeConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`SendVaeModel`].

    Args:
        hidden_channels (`int`): width that `channel_mult` multiplies.
        channel_mult (`tuple[int]`): one factor per level, fine to coarse; every level but the last halves the picture.
        num_res_blocks (`int`): per level of the encoder; the decoder has one more.
        attention_resolutions (`tuple[int]`): levels with attention, by the side that a map of `nominal_resolution` has
            there, whatever the size of the picture.
        nominal_resolution (`int`): see `attention_resolutions`.
        latent_channels (`int`): of the latents.
        variational (`bool`): False: the posterior's logarithm of the variance is 1 everywhere.
        latents_mean, latents_std (`list[float]`, *optional*): of each channel over a data set; None where not known.
        norm_num_groups (`int`): of the GroupNorms.
        kl_weight (`float`): of the KL term in training, summed over an image's latents.
        mapper_target_size (`int`, *optional*): width of the vision model's features; None without a mapper, as in
            published checkpoints: it is needed in training only.
        mapper_hidden_size, mapper_num_layers, mapper_num_heads (`int`): of the mapper's transformer.
        mapper_patch_size (`int`): latent positions along a side of one token of the mapper.
        mapper_noise (`float`): largest standard deviation of the noise on latents in front of the mapper, in units of
            theirs.
        alignment_weight (`float`): of the alignment term.
    """

    model_type = "vistok_sendvae"

    pixel_range: tuple[float, ...] | list[float] | None = (-1.0, 1.0)
    hidden_channels: int = 128
    channel_mult: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] | list[int] = (16,)
    nominal_resolution: int = 256
    latent_channels: int = 32
    variational: bool = True
    latents_mean: list[float] | None = None
    latents_std: list[float] | None = None
    norm_num_groups: int = 32
    kl_weight: float = 1e-6
    mapper_target_size: int | None = None
    mapper_hidden_size: int = 768
    mapper_num_layers: int = 4
    mapper_num_heads: int = 12
    mapper_patch_size: int = 1
    mapper_noise: float = 1.0
    alignment_weight: float = 1.5

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def grid_size(self) -> int:
        """Tokens of the mapper along a side, for pictures of `image_size`."""
        return self.image_size // self.downsample_factor // self.mapper_patch_size

    @property
    def attention_flags(self) -> list[bool]:
        """Whether each level has attention, fine to coarse."""
        sides = [self.nominal_resolution // 2**level for level in range(len(self.channel_mult))]
        return [side in self.attention_resolutions for side in sides]

    def validate_sizes(self) -> None:
        """Pictures are whole latent positions, and those whole patches of the mapper."""
        unit = self.downsample_factor * (1 if self.mapper_target_size is None else self.mapper_patch_size)
        if self.image_size % unit:
            raise ValueError(f"image_size must be a multiple of {unit}, got {self.image_size}.")
        if self.mapper_hidden_size % self.mapper_num_heads:
            raise ValueError("mapper_hidden_size must be a multiple of mapper_num_heads.")
