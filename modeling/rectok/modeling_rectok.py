"""RecTok (arXiv 2512.13421): a KL tokenizer whose semantics are distilled along the rectified flow.

Shape suffixes in comments: B images, N tokens, C latent channels, D width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..layers.attention import TransformerBlock
from ..layers.conv_codec import flatten_grid, unflatten_grid
from ..layers.flow_sampling import resolution_shift, shift_times
from ..layers.latent_statistics import ChannelStatisticsMixin
from ..layers.losses import teacher_similarity
from ..layers.mlp import FusedSwiGLU
from ..layers.norm import RMSNorm
from ..layers.patches import unpatchify
from ..layers.posterior import DiagonalGaussian
from ..layers.rotary import rotate_adjacent
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import (
    ImageTokenizerDecoderOutput,
    ImageTokenizerEncoderOutput,
    ImageTokenizerOutput,
    TokenSegment,
)
from .configuration_rectok import RecTokConfig

HIGHEST, LOWEST = 7.0, 7e-4  # turns of the fastest and the slowest channel across the picture


def channel_angles(side: int, head_dim: int, extra: int, device: torch.device | None = None) -> Tensor:
    """
    Angles of each channel: rows turn the first half and columns the second, each by geometric frequencies twice.

    Args:
        side: of the grid.
        head_dim: a multiple of 4.
        extra: positions before the grid, with angle 0.

    Returns:
        float32 `(extra + side * side, head_dim)`.
    """
    exponents = torch.linspace(0, -1, head_dim // 4, device=device)
    frequencies = (HIGHEST * (HIGHEST / LOWEST) ** exponents).repeat(2)
    axis = 2 * math.pi * torch.linspace(0, 1, side, device=device)[:, None] * frequencies  # (side, d / 2)
    rows = axis[:, None].expand(-1, side, -1)
    angles = torch.cat([rows, axis.expand(side, -1, -1)], -1).flatten(0, 1)
    return torch.cat([angles.new_zeros(extra, head_dim), angles])


class RecTokBlock(TransformerBlock):
    """Pre-norm block with RMSNorm and SwiGLU."""

    def __init__(self, dim: int, num_heads: int, config: RecTokConfig) -> None:
        norms = {}
        if config.qk_norm:  # torch's own eps, that of the dtype
            norms = {name: nn.RMSNorm(dim // num_heads) for name in ("q_norm", "k_norm")}
        mlp = FusedSwiGLU(dim, int(2 / 3 * dim * 4))
        super().__init__(dim, num_heads, 4 * dim, mlp=mlp, config=config, **norms)
        self.norm1, self.norm2 = RMSNorm(dim, 1e-6), RMSNorm(dim, 1e-6)


class RecTokTransformer(nn.Module):
    """
    Tokens with learned positions between two norms.

    Args:
        part: "encoder", "decoder" or "semantic": whose sizes to take.
        config: of the model.
        extra: positions before the grid.
    """

    def __init__(self, part: str, config: RecTokConfig, extra: int = 0) -> None:
        super().__init__()
        width, self.num_heads = getattr(config, f"{part}_hidden_size"), getattr(config, f"{part}_num_heads")
        self.width, self.side, self.extra, self.std = width, config.grid_size, extra, config.initializer_range
        self.position_embedding = nn.Parameter(torch.empty(extra + self.side**2, width))
        self.norm_in, self.norm_out = RMSNorm(width, 1e-6), RMSNorm(width, 1e-6)
        self.layers = nn.ModuleList(
            RecTokBlock(width, self.num_heads, config) for _ in range(getattr(config, f"{part}_num_layers"))
        )

    def init_own_weights(self) -> None:
        """Normal."""
        init.normal_(self.position_embedding, std=self.std)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """`(B, N, D)` to the same, or to the positions `kept` `(B, n)` alone, in that order."""
        x = x + self.position_embedding
        angles = channel_angles(self.side, self.width // self.num_heads, self.extra, x.device)
        if kept is not None:
            x, angles = gather_tokens(x, kept), angles[kept][:, None]  # (B, 1, n, d)
        x = self.norm_in(x)
        for layer in self.layers:
            x = layer(x, None, lambda heads: rotate_adjacent(heads, angles))
        return self.norm_out(x)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens `index` `(B, n)` of `(B, N, D)`."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class MaskableTransformer(RecTokTransformer):
    """A transformer over latents in which a learned vector may stand for hidden ones."""

    def __init__(self, part: str, config: RecTokConfig, extra: int = 0) -> None:
        super().__init__(part, config, extra)
        self.embed = nn.Linear(config.latent_dim, self.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.width))

    def init_own_weights(self) -> None:
        """Normal."""
        super().init_own_weights()
        init.normal_(self.mask_token, std=self.std)

    def run(self, latents: Tensor, ids_restore: Tensor | None = None) -> Tensor:
        """Latents `(B, n, C)` to hidden tokens `(B, N, D)`; `ids_restore` `(B, N)` says where the n ones belong."""
        x = self.embed(latents)
        if ids_restore is not None:
            hidden = self.mask_token.expand(len(x), ids_restore.shape[1] - x.shape[1], -1)
            x = gather_tokens(torch.cat([x, hidden], 1), ids_restore)
        return self(x)


class RecTokEncoder(RecTokTransformer):
    """Pixels to moments `(B, N, 2C)`; to latents `(B, N, C)` where there is no posterior."""

    def __init__(self, config: RecTokConfig) -> None:
        super().__init__("encoder", config, int(config.class_token == "learnable"))
        self.patch_embed = nn.Conv2d(config.num_channels, self.width, config.patch_size, stride=config.patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, self.width)) if self.extra else None
        self.head = nn.Linear(self.width, config.latent_dim * (2 if config.kl else 1))

    def init_own_weights(self) -> None:
        """Normal."""
        super().init_own_weights()
        if self.class_token is not None:
            init.normal_(self.class_token, std=self.std)

    def encode(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """`(B, 3, H, W)` to moments, of the positions `kept` alone where given."""
        x = flatten_grid(self.patch_embed(pixels))
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        return self.head(self(x, kept))


class RecTokDecoder(MaskableTransformer):
    """Latents to pixels: a patch for each token, and one convolution over the picture."""

    def __init__(self, config: RecTokConfig) -> None:
        super().__init__("decoder", config)
        self.patch_size, channels = config.patch_size, config.num_channels
        self.head = nn.Linear(self.width, self.patch_size**2 * channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)

    def decode(self, latents: Tensor, ids_restore: Tensor | None = None) -> Tensor:
        """`(B, n, C)` to `(B, 3, H, W)`."""
        patches = self.head(self.run(latents, ids_restore))
        return self.conv_out(unpatchify(patches, self.side, self.side, self.patch_size))


class RecTokSemanticDecoder(MaskableTransformer):
    """Latents, clean or noisy, to a teacher's features."""

    def __init__(self, config: RecTokConfig) -> None:
        super().__init__("semantic", config, int(config.class_token == "learnable"))
        self.out = nn.Linear(self.width, config.semantic_dim)

    def features(self, latents: Tensor, ids_restore: Tensor | None = None) -> Tensor:
        """`(B, n, C)` to `(B, N, F)`."""
        return self.out(self.run(latents, ids_restore))


class RecTokModel(ChannelStatisticsMixin, PreTrainedImageTokenizer):
    """Images in [-1, 1] to latents `(B, C, h, w)` and back; `normalize_latents` gives those that generators see."""

    config: RecTokConfig
    latent_layout = "grid"
    teacher_inputs = {"teacher_features": "patches"}
    _no_split_modules = ["RecTokBlock"]

    def __init__(self, config: RecTokConfig) -> None:
        super().__init__(config)
        self.encoder = RecTokEncoder(config)
        self.decoder = RecTokDecoder(config)
        self.semantic_decoder = None if config.semantic_dim is None else RecTokSemanticDecoder(config)
        self.encoder.requires_grad_(config.train_encoder)
        self.post_init()

    @property
    def is_discrete(self) -> bool:
        """Always False."""
        return False

    @property
    def num_tokens(self) -> int:
        """Positions of the grid."""
        return self.config.grid_size**2

    @property
    def latent_dim(self) -> int:
        """Channels of `latents`."""
        return self.config.latent_dim

    def token_segments(self, height: int | None = None, width: int | None = None) -> list[TokenSegment]:
        """One map in raster order."""
        return [TokenSegment("tokens", (self.config.grid_size, self.config.grid_size), 0)]

    # ------------------------------------------------------------------ statistics

    def normalize_latents(self, latents: Tensor) -> Tensor:
        """`(latents - mean) * scale / std` `(B, C, h, w)`, what generators are trained on."""
        mean, std = self._channel_statistics(latents)
        return (latents - mean) * self.config.latents_scale / std

    def denormalize_latents(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize_latents`."""
        mean, std = self._channel_statistics(latents)
        return latents * std / self.config.latents_scale + mean

    # ------------------------------------------------------------------ contract

    def _posterior(self, moments: Tensor, dim: int) -> tuple[DiagonalGaussian | None, Tensor]:
        if not self.config.kl:
            return None, moments
        posterior = DiagonalGaussian.from_moments(moments, dim)
        return posterior, posterior.mean

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        side = self.config.grid_size
        moments = self.encoder.encode(pixel_values)
        tokens = moments[:, self.encoder.extra :]
        posterior, mean = self._posterior(unflatten_grid(tokens, side, side), 1)
        # of a model with a class token: the posterior means of all tokens, the class token's first
        features = self._posterior(moments, -1)[1] if self.encoder.extra else None
        if posterior is None:
            return ImageTokenizerEncoderOutput(latents=mean, features=features)
        return ImageTokenizerEncoderOutput(latent_dist=posterior, features=features)

    def _decode(self, latents: Tensor, token_mask: Tensor | None) -> ImageTokenizerDecoderOutput:
        return ImageTokenizerDecoderOutput(sample=self.decoder.decode(flatten_grid(latents)))

    def semantic_features(self, latents: Tensor, ids_restore: Tensor | None = None) -> Tensor:
        """
        What the semantic decoder makes of latents.

        Args:
            latents: `(B, n, C)`, clean or noisy, in raster order (a class token's first); n < N with `ids_restore`.
            ids_restore: int64 `(B, N)`: the place of each position among the n given and the hidden ones.

        Returns:
            `(B, N, F)`.

        Raises:
            ValueError: where the checkpoint has no semantic decoder (those with a fine-tuned pixel decoder).
        """
        if self.semantic_decoder is None:
            raise ValueError("This RecTok has no semantic decoder: semantic_dim is None.")
        return self.semantic_decoder.features(latents, ids_restore)

    # ------------------------------------------------------------------ training

    def draw_times(self, uniform: Tensor) -> Tensor:
        """Times of the flow, 0 at the data, from uniform draws."""
        if self.config.noise_schedule == "uniform":
            return uniform
        return shift_times(uniform, resolution_shift(self.num_tokens * self.latent_dim))

    def add_noise(self, latents: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """`(1 - t) latents + t noise` for times `(B,)`, noise with the standard deviation `flow_noise`."""
        t = t.view(-1, *[1] * (latents.ndim - 1)).to(latents)
        return (1 - t) * latents + t * self.config.flow_noise * noise

    def draw_mask(self, batch: int, generator: torch.Generator | None = None) -> tuple[int, Tensor]:
        """Number of patches that stay visible in training, and `ids_restore` `(B, N)` of a random order."""
        low, high = self.config.mask_ratio_min, self.config.mask_ratio_max
        ratio = max(0.0, low + (high - low) * float(torch.rand((), generator=generator)))
        order = torch.rand(batch, self.num_tokens, generator=generator).argsort(1)
        return int(self.num_tokens * (1 - ratio)), order.argsort(1)

    def visible_moments(self, pixel_values: Tensor, count: int, ids_restore: Tensor) -> Tensor:
        """Moments of the first `count` patches of an order, those of a class token before them."""
        kept = ids_restore.argsort(1)[:, :count] + self.encoder.extra
        if self.encoder.extra:
            kept = torch.cat([kept.new_zeros(len(kept), 1), kept], 1)
        return self.encoder.encode(pixel_values, kept)

    def forward(
        self,
        pixel_values: Tensor,
        teacher_features: Tensor | None = None,
        ids_restore: Tensor | None = None,
        num_visible: int | None = None,
        posterior_noise: Tensor | None = None,
        timestep: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> ImageTokenizerOutput:
        """
        One training pass (section 3): visible patches to latents, noise along the flow, and from the same noisy
        latents both the picture and the teacher's features. Draws that are None are made in training; in eval mode
        nothing is hidden and nothing is noised then.

        Args:
            pixel_values: `(B, 3, H, W)` in [-1, 1].
            teacher_features: of a frozen model (DINOv3), `(B, N, F)`; no semantic loss without.
            ids_restore: order of the patches `(B, N)`, see `draw_mask`.
            num_visible: how many of them the encoder sees.
            posterior_noise, noise: standard normal `(B, n, C)`.
            timestep: `(B,)`, 0 at the data and 1 at the noise.

        Returns:
            losses `l1_loss`, `kl_loss` (sum over tokens and channels, batch mean) and `semantic_loss` (1 - cosine).
            The perceptual and the adversarial term come from the trainer.
        """
        if ids_restore is None and self.training and self.config.mask_ratio_max > 0:
            num_visible, ids_restore = self.draw_mask(len(pixel_values))
            ids_restore = ids_restore.to(pixel_values.device)
        latents, kl = self._training_latents(pixel_values, ids_restore, num_visible, posterior_noise)
        latents = self._noised(latents, timestep, noise)
        pixels = self.decoder.decode(latents[:, self.encoder.extra :], ids_restore)
        losses, weights = {"l1_loss": F.l1_loss(pixels, pixel_values)}, {"kl_loss": self.config.kl_weight}
        if kl is not None:
            losses["kl_loss"] = kl
        features = None
        if teacher_features is not None:
            features = self.semantic_features(latents, self._with_class(ids_restore))[:, self.encoder.extra :]
            losses["semantic_loss"] = self._semantic_loss(features, teacher_features, ids_restore, num_visible)
            weights["semantic_loss"] = self.config.semantic_weight
        loss = sum(weights.get(name, 1.0) * value for name, value in losses.items())
        return ImageTokenizerOutput(loss, losses, pixels, features=features)

    def _training_latents(
        self, pixels: Tensor, ids_restore: Tensor | None, count: int | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.train_encoder):
            if ids_restore is None:
                moments = self.encoder.encode(pixels)
            else:
                moments = self.visible_moments(pixels, self.num_tokens if count is None else count, ids_restore)
        posterior, mean = self._posterior(moments, -1)
        if posterior is None or not self.config.train_encoder:
            return mean, None
        sampled = posterior.sample(noise=noise) if self.training or noise is not None else mean
        return sampled, posterior.kl((1, 2)).mean()

    def _noised(self, latents: Tensor, t: Tensor | None, noise: Tensor | None) -> Tensor:
        if t is None and not (self.training and self.config.flow_noise > 0):
            return latents
        t = self.draw_times(torch.rand(len(latents), device=latents.device)) if t is None else t
        return self.add_noise(latents, t, torch.randn_like(latents) if noise is None else noise)

    def _with_class(self, ids_restore: Tensor | None) -> Tensor | None:
        if ids_restore is None or not self.encoder.extra:
            return ids_restore
        return torch.cat([ids_restore.new_zeros(len(ids_restore), 1), ids_restore + 1], 1)

    def _semantic_loss(
        self, features: Tensor, teacher: Tensor, ids_restore: Tensor | None, count: int | None
    ) -> Tensor:
        distance = 1 - teacher_similarity(features, teacher)
        if self.config.semantic_target == "rec+align" or ids_restore is None or count is None:
            return distance.mean()
        hidden = (ids_restore >= count).to(distance)
        return (distance * hidden).sum() / hidden.sum().clamp(min=1)
