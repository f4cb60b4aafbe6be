"""RAE (arXiv 2510.11690): latents are the tokens of a frozen representation encoder; a ViT turns them into pixels.

Shape suffixes in comments: B images, D width of the encoder, h and w sides of the token grid.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..layers.conv_codec import flatten_grid, unflatten_grid
from ..layers.mae_decoder import MaeDecoder
from ..layers.vision_towers import build_tower, resize_pixels, tower_tokens
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import (
    ImageTokenizerDecoderOutput,
    ImageTokenizerEncoderOutput,
    ImageTokenizerOutput,
    TokenSegment,
)
from .configuration_rae import RaeConfig


class LatentStatistics(nn.Module):
    """
    Mean and variance of each channel at each position, over a data set.

    Args:
        shape: `(D, h, w)`.
        eps: added to the variance.
    """

    def __init__(self, shape: tuple[int, int, int], eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))

    def init_own_weights(self) -> None:
        """No change: mean 0, variance 1."""
        init.zeros_(self.mean)
        init.ones_(self.var)

    def normalize(self, raw: Tensor) -> Tensor:
        """`(B, D, h, w)` to the same with mean 0 and variance 1."""
        return (raw - self.mean) / torch.sqrt(self.var + self.eps)

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return latents * torch.sqrt(self.var + self.eps) + self.mean


class RaeTokenizer(PreTrainedImageTokenizer):
    """What RAE and its descendants share: the encoder, the picture's ends of the pipeline, properties."""

    latent_layout = "grid"
    _no_split_modules = ["TransformerBlock"]

    def __init__(self, config: RaeConfig) -> None:
        super().__init__(config)
        self.encoder = build_tower(config.encoder_type, config.encoder_config) if config.has_encoder else None
        self.decoder = MaeDecoder(
            config.latent_dim,
            config.decoder_hidden_size,
            config.decoder_num_layers,
            config.decoder_num_heads,
            config.decoder_intermediate_size,
            patch_size=config.decoder_patch_size,
            grid=config.grid,
            eps=config.decoder_layer_norm_eps,
            qkv_bias=config.decoder_qkv_bias,
            num_channels=config.num_channels,
            config=config,
        )
        shape = (self.latent_dim, config.grid, config.grid)
        self.statistics = LatentStatistics(shape, config.statistics_eps) if config.has_statistics else None

    @property
    def is_discrete(self) -> bool:
        """Always False."""
        return False

    @property
    def num_tokens(self) -> int:
        """Positions of the grid."""
        return self.config.grid**2

    @property
    def latent_dim(self) -> int:
        """Channels of `latents`."""
        return self.config.latent_dim

    def token_segments(self, height: int | None = None, width: int | None = None) -> list[TokenSegment]:
        """One map in raster order."""
        return [TokenSegment("tokens", (self.config.grid, self.config.grid), 0)]

    def _mean_std(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = like.new_tensor(self.config.encoder_mean), like.new_tensor(self.config.encoder_std)
        return mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def encode_tokens(self, pixel_values: Tensor) -> Tensor:
        """
        The representation: patch tokens behind the encoder's last norm, which has neither gain nor bias here.

        Args:
            pixel_values: `(B, 3, H, W)` in [0, 1].

        Returns:
            `(B, h * w, D)`.

        Raises:
            ValueError: where the checkpoint is a decoder alone.
        """
        if self.encoder is None:
            raise ValueError(
                f"This {type(self).__name__} is a decoder alone. Its encoder is a checkpoint of its own: see "
                "hf_vistok.conversion.rae.assemble."
            )
        mean, std = self._mean_std(pixel_values)
        pixels = resize_pixels(pixel_values, self.config.encoder_input_size)
        return tower_tokens(self.config.encoder_type, self.encoder, (pixels - mean) / std)

    def encode_map(self, pixel_values: Tensor) -> Tensor:
        """`encode_tokens` as a map `(B, D, h, w)`."""
        return unflatten_grid(self.encode_tokens(pixel_values), self.config.grid, self.config.grid)

    def draw(self, features: Tensor) -> Tensor:
        """Features of the encoder `(B, D, h, w)`, not normalised, to pixels `(B, 3, H, W)` in [0, 1]."""
        mean, std = self._mean_std(features)
        return self.decoder(features) * std + mean

    def normalize_latents(self, raw: Tensor) -> Tensor:
        """The encoder's map to `latents`; the map itself where there are no statistics."""
        return raw if self.statistics is None else self.statistics.normalize(raw)

    def denormalize_latents(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize_latents`."""
        return latents if self.statistics is None else self.statistics.denormalize(latents)

    def set_statistics(self, mean: Tensor, var: Tensor) -> None:
        """
        Takes statistics of a data set: from now on latents are normalised.

        Args:
            mean, var: `(D, h, w)`, as in the authors' `stat.pt`.

        Raises:
            ValueError: for another shape.
        """
        shape = (self.latent_dim, self.config.grid, self.config.grid)
        if tuple(mean.shape) != shape or tuple(var.shape) != shape:
            raise ValueError(f"mean and var must have shape {shape}, got {tuple(mean.shape)} and {tuple(var.shape)}.")
        self.config.has_statistics = True
        self.statistics = LatentStatistics(shape, self.config.statistics_eps).to(self.device)
        self.statistics.mean.copy_(mean)
        self.statistics.var.copy_(var)


class RaeModel(RaeTokenizer):
    """
    Images in [0, 1] to normalised tokens of a frozen encoder `(B, D, h, w)`, and back.

    `encode` also returns `features`: the same tokens before normalisation, `(B, h * w, D)`.
    """

    config: RaeConfig

    def __init__(self, config: RaeConfig) -> None:
        super().__init__(config)
        if self.encoder is not None:
            self.encoder.requires_grad_(False)
        self.post_init()

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        with torch.no_grad():
            tokens = self.encode_tokens(pixel_values)
        latents = self.normalize_latents(unflatten_grid(tokens, self.config.grid, self.config.grid))
        return ImageTokenizerEncoderOutput(latents=latents.to(pixel_values.dtype), features=tokens)

    def _decode(self, latents: Tensor, token_mask: Tensor | None) -> ImageTokenizerDecoderOutput:
        raw = self.denormalize_latents(latents).to(latents.dtype)
        return ImageTokenizerDecoderOutput(sample=self.draw(raw), features=flatten_grid(raw))

    def forward(
        self, pixel_values: Tensor, noise: Tensor | None = None, sigma: Tensor | None = None
    ) -> ImageTokenizerOutput:
        """
        One training pass of the decoder (section 3.3): in training, latents are noised with `sigma` in [0, tau].

        Args:
            pixel_values: `(B, 3, H, W)` in [0, 1].
            noise: standard normal draws `(B, D, h, w)`.
            sigma: standard deviations `(B,)`.

        Returns:
            losses `l1_loss`. The perceptual and the adversarial term come from the trainer.
        """
        latents = self.encode(pixel_values).latents
        if self.training and self.config.noise_tau > 0:
            noise = torch.randn_like(latents) if noise is None else noise
            sigma = self.config.noise_tau * torch.rand(len(latents)).to(latents) if sigma is None else sigma
            latents = latents + sigma.view(-1, 1, 1, 1) * noise
        decoded = self.decode(latents)
        losses = {"l1_loss": F.l1_loss(decoded.sample, pixel_values)}
        return ImageTokenizerOutput(losses["l1_loss"], losses, decoded.sample, features=decoded.features)
