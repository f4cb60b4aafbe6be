"""RPiAE (arXiv 2603.19206): a representation encoder fine-tuned around a pivot, a variational bridge, a ViT decoder.

Shape suffixes in comments: B images, N tokens, D width of the encoder, C latent channels, h and w sides of the grid.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.attention import Attention, Mlp, TransformerBlock
from ..layers.conv_codec import flatten_grid, unflatten_grid
from ..layers.posterior import DiagonalGaussian
from ..layers.vision_towers import resize_pixels, tower_tokens
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput
from ..rae.modeling_rae import RaeTokenizer
from .configuration_rpiae import RpiaeConfig


class BridgeEncoder(nn.Module):
    """
    One attention block with a linear skip, and moments of the latents.

    Args:
        config: of the model.
    """

    def __init__(self, config: RpiaeConfig) -> None:
        super().__init__()
        dim = config.latent_dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, config.bridge_num_heads, config=config)
        self.skip_proj = nn.Linear(dim, dim)
        self.mlp = Mlp(dim, dim)
        self.to_moments = nn.Linear(dim, 2 * config.bridge_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, N, D)` to `(B, N, 2C)`, means before log-variances."""
        x = self.skip_proj(tokens) + self.attn(self.norm1(tokens))
        return self.to_moments(x + self.mlp(self.norm2(x)))


class BridgeDecoder(nn.Module):
    """
    Latents back to the encoder's tokens.

    Args:
        config: of the model.
    """

    def __init__(self, config: RpiaeConfig) -> None:
        super().__init__()
        dim = config.latent_dim
        self.proj_in = nn.Linear(config.bridge_dim, dim)
        self.layers = nn.ModuleList(
            TransformerBlock(dim, config.bridge_num_heads, 4 * dim, config=config)
            for _ in range(config.bridge_num_layers)
        )
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, latents: Tensor) -> Tensor:
        """`(B, N, C)` to `(B, N, D)`."""
        x = self.proj_in(latents)
        for layer in self.layers:
            x = layer(x)
        return self.proj_out(x)


class RpiaeModel(RaeTokenizer):
    """
    Images in [0, 1] to latents `(B, C, h, w)` and back. `encode` also returns `features`, the encoder's tokens
    `(B, h * w, D)`; `decode` what the bridge makes of the latents in their place.
    """

    config: RpiaeConfig

    def __init__(self, config: RpiaeConfig) -> None:
        super().__init__(config)
        bridged = config.bridge_dim is not None
        self.bridge_encoder = BridgeEncoder(config) if bridged and config.has_encoder else None
        self.bridge_decoder = BridgeDecoder(config) if bridged else None
        # tables that are never trained (MAE's positions) stay so in every stage
        self._fixed = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        self.set_training_stage(config.training_stage)
        self.post_init()

    def set_training_stage(self, stage: str) -> None:
        """
        Says what trains, as `training_stage` of the configuration.

        Raises:
            ValueError: for an unknown stage, or the bridge's where there is none.
        """
        previous, self.config.training_stage = self.config.training_stage, stage
        try:
            self.config.validate_stage()
        except ValueError:
            self.config.training_stage = previous
            raise
        trained = {"stage1": ("encoder", "decoder"), "stage2": ("bridge_encoder", "bridge_decoder")}
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0]
            parameter.requires_grad_(part in trained.get(stage, ("decoder",)) and name not in self._fixed)

    @property
    def latent_dim(self) -> int:
        """Channels of `latents`."""
        return self.config.latent_dim if self.config.bridge_dim is None else self.config.bridge_dim

    # ------------------------------------------------------------------ contract

    def _map(self, tokens: Tensor) -> Tensor:
        return unflatten_grid(tokens, self.config.grid, self.config.grid)

    def moments(self, tokens: Tensor) -> Tensor:
        """The encoder's tokens `(B, N, D)` to a map of means and log-variances `(B, 2C, h, w)`."""
        return self._map(self.bridge_encoder(tokens))

    def expand(self, latents: Tensor) -> Tensor:
        """Latents `(B, C, h, w)` to a map for the pixel decoder `(B, D, h, w)`."""
        if self.bridge_decoder is None:
            return latents
        tokens = self.bridge_decoder(flatten_grid(latents))
        return unflatten_grid(tokens, *latents.shape[2:])

    def _encode(
        self,
        pixel_values: Tensor,
        sample_posterior: bool = False,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> ImageTokenizerEncoderOutput:
        tokens = self.encode_tokens(pixel_values)
        if self.bridge_encoder is None:
            if sample_posterior or noise is not None:
                raise ValueError("This RPiAE has no bridge (bridge_dim is None), so no posterior to sample from.")
            latents, posterior = self._map(tokens), None
        else:
            posterior = DiagonalGaussian.from_moments(self.moments(tokens), 1)
            drawn = sample_posterior or noise is not None
            latents = posterior.sample(generator, noise) if drawn else posterior.mode()
        latents = self.normalize_latents(latents).to(pixel_values.dtype)
        return ImageTokenizerEncoderOutput(latents=latents, latent_dist=posterior, features=tokens)

    def _decode(self, latents: Tensor, token_mask: Tensor | None) -> ImageTokenizerDecoderOutput:
        features = self.expand(self.denormalize_latents(latents).to(latents.dtype))
        return ImageTokenizerDecoderOutput(sample=self.draw(features), features=flatten_grid(features))

    # ------------------------------------------------------------------ training

    def pivot_encoder(self) -> nn.Module:
        """A frozen copy of the encoder as it is now, to be the pivot of stage 1."""
        return copy.deepcopy(self.encoder).requires_grad_(False).eval()

    @torch.no_grad()
    def pivot_features(self, pivot: nn.Module, pixel_values: Tensor) -> Tensor:
        """Tokens of a frozen encoder `(B, N, D)` for pictures in [0, 1]."""
        mean, std = self._mean_std(pixel_values)
        pixels = resize_pixels(pixel_values, self.config.encoder_input_size)
        return tower_tokens(self.config.encoder_type, pivot, (pixels - mean) / std)

    def forward(
        self,
        pixel_values: Tensor,
        pivot_features: Tensor | None = None,
        posterior_noise: Tensor | None = None,
        noise: Tensor | None = None,
        sigma: Tensor | None = None,
    ) -> ImageTokenizerOutput:
        """
        One training pass of the stage that `training_stage` names. Draws that are None are made in training only.

        Args:
            pixel_values: `(B, 3, H, W)` in [0, 1].
            pivot_features: of the original encoder, see `pivot_features()`; no pivot loss without.
            posterior_noise: standard normal draws `(B, C, h, w)` of stage 2.
            noise, sigma: of the noise on the pixel decoder's input in stage 1, `(B, D, h, w)` and `(B,)`.

        Returns:
            losses `l1_loss`, in stage 1 `pivot_loss`, in stage 2 `feature_loss` and `kl_loss`. The perceptual and the
            adversarial term, and the adaptive weight of `pivot_loss`, come from the trainer.
        """
        tokens, stage = self.encode_tokens(pixel_values), self.config.training_stage
        losses, weights, config = {}, {}, self.config
        if stage == "stage1" or self.bridge_encoder is None:
            features = self._noised(self._map(tokens), noise, sigma)
            if stage == "stage1" and pivot_features is not None:
                losses["pivot_loss"] = F.mse_loss(tokens.float(), pivot_features.float())
                weights["pivot_loss"] = config.pivot_weight
        else:
            posterior = DiagonalGaussian.from_moments(self.moments(tokens), 1)
            drawn = stage == "stage2" and (self.training or posterior_noise is not None)
            features = self.expand(posterior.sample(noise=posterior_noise) if drawn else posterior.mode())
            if stage == "stage2":
                losses["feature_loss"] = F.mse_loss(flatten_grid(features).float(), tokens.float())
                losses["kl_loss"] = 2 * posterior.kl((1, 2, 3)).mean() / posterior.mean[0].numel()
                names = ("feature_loss", "kl_loss", "l1_loss")
                values = (config.feature_weight, config.kl_weight, config.reconstruction_weight)
                weights = dict(zip(names, values, strict=True))
        pixels = self.draw(features)
        losses["l1_loss"] = F.l1_loss(pixels, pixel_values)
        loss = sum(weights.get(name, 1.0) * value for name, value in losses.items())
        return ImageTokenizerOutput(loss, losses, pixels, features=tokens)

    def _noised(self, features: Tensor, noise: Tensor | None, sigma: Tensor | None) -> Tensor:
        if sigma is None and not (self.training and self.config.noise_tau > 0):
            return features
        if sigma is None:
            sigma = self.config.noise_tau * torch.rand(len(features), device=features.device)
        noise = torch.randn_like(features) if noise is None else noise
        return features + sigma.to(features).view(-1, 1, 1, 1) * noise
