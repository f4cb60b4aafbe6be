"""Send-VAE (arXiv 2601.05823): a convolutional KL autoencoder, and the mapper that aligns its latents in training.

Shape suffixes in comments: B images, C latent channels, h and w sides of the latents, D width of the mapper.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.attention import Mlp, TransformerBlock
from ..layers.conv_codec import check_multiple, flatten_grid
from ..layers.conv_codec_taming import TamingDecoder, TamingEncoder
from ..layers.latent_statistics import ChannelStatisticsMixin
from ..layers.losses import teacher_similarity
from ..layers.positions import sincos_table
from ..layers.posterior import DiagonalGaussian
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput, TokenSegment
from .configuration_sendvae import SendVaeConfig


class AlignmentMapper(nn.Module):
    """
    Latents to the features of a vision model: patch embedding, a small ViT, a linear layer (section 3).

    A deep mapper, in place of REPA's MLP on each token, leaves the latents free to keep what the vision model says of
    attributes without becoming like its features.

    Args:
        config: of the model.
    """

    def __init__(self, config: SendVaeConfig) -> None:
        super().__init__()
        dim, patch = config.mapper_hidden_size, config.mapper_patch_size
        self.patch_embed = nn.Conv2d(config.latent_channels, dim, patch, stride=patch)
        self.layers = nn.ModuleList(
            TransformerBlock(dim, config.mapper_num_heads, 4 * dim, config=config)
            for _ in range(config.mapper_num_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = Mlp(dim, dim)
        self.proj = nn.Linear(dim, config.mapper_target_size)

    def forward(self, latents: Tensor) -> Tensor:
        """`(B, C, h, w)` to `(B, N, mapper_target_size)`."""
        tokens = self.patch_embed(latents)
        table = sincos_table(tuple(tokens.shape[2:]), tokens.shape[1])
        hidden = flatten_grid(tokens) + table.to(tokens)  # (B, N, D)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.proj(self.head(self.norm(hidden)))


class SendVaeModel(ChannelStatisticsMixin, PreTrainedImageTokenizer):
    """
    Images `(B, 3, H, W)` in [-1, 1] to latents `(B, C, h, w)`, unscaled, and back; also of REPA-E and VA-VAE's shapes.

    Any size whose sides are multiples of the factor is taken.
    """

    config: SendVaeConfig
    latent_layout = "grid"
    teacher_inputs = {"teacher_features": "patches"}
    _no_split_modules = ["ResidualBlock", "GridAttention", "TransformerBlock"]

    def __init__(self, config: SendVaeConfig) -> None:
        super().__init__(config)
        channels, width, latent = config.num_channels, config.hidden_channels, config.latent_channels
        options = {
            "attention": config.attention_flags,
            "mid_attention": True,
            "groups": config.norm_num_groups,
        }
        mults, blocks = config.channel_mult, config.num_res_blocks
        self.encoder = TamingEncoder(channels, width, mults, blocks, 2 * latent, **options)
        self.decoder = TamingDecoder(channels, width, mults, blocks, latent, **options)
        self.quant_conv = nn.Conv2d(2 * latent, latent * (2 if config.variational else 1), 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        self.mapper = None if config.mapper_target_size is None else AlignmentMapper(config)
        self.post_init()

    @property
    def is_discrete(self) -> bool:
        """Always False."""
        return False

    @property
    def num_tokens(self) -> int:
        """Positions of a picture of `config.image_size`."""
        return (self.config.image_size // self.config.downsample_factor) ** 2

    @property
    def latent_dim(self) -> int:
        """Channels of the latents."""
        return self.config.latent_channels

    def token_segments(self, height: int | None = None, width: int | None = None) -> list[TokenSegment]:
        """One map in raster order."""
        sides = (height or self.config.image_size, width or self.config.image_size)
        return [TokenSegment("tokens", tuple(side // self.config.downsample_factor for side in sides), 0)]

    def _check_image_size(self, height: int, width: int) -> None:
        check_multiple(type(self).__name__, height, width, self.config.downsample_factor)

    def moments(self, pixel_values: Tensor) -> Tensor:
        """Mean and logarithm of the variance, `(B, 2C, h, w)`."""
        moments = self.quant_conv(self.encoder(pixel_values))
        return moments if self.config.variational else torch.cat([moments, torch.ones_like(moments)], 1)

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        return ImageTokenizerEncoderOutput(latent_dist=DiagonalGaussian.from_moments(self.moments(pixel_values), 1))

    def _decode(self, latents: Tensor, token_mask: Tensor | None) -> ImageTokenizerDecoderOutput:
        return ImageTokenizerDecoderOutput(sample=self.decoder(self.post_quant_conv(latents)))

    # ------------------------------------------------------------------ training

    def align(self, latents: Tensor, noise: Tensor | None = None, sigma: Tensor | None = None) -> Tensor:
        """
        What the mapper makes of latents, to be compared with the vision model's features.

        Args:
            latents: `(B, C, h, w)`.
            noise: standard normal draws like them, added times `sigma` `(B,)`.
            sigma: in units of the latents' own standard deviation.

        Returns:
            `(B, N, mapper_target_size)`.

        Raises:
            ValueError: where there is no mapper.
        """
        if self.mapper is None:
            raise ValueError("This Send-VAE has no mapper: set mapper_target_size to the vision model's width.")
        if noise is not None:
            scale = sigma.view(-1, 1, 1, 1) * latents.detach().std()
            latents = latents + scale.to(latents) * noise
        return self.mapper(latents)

    def forward(
        self,
        pixel_values: Tensor,
        teacher_features: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> ImageTokenizerOutput:
        """
        One training pass of the VAE (section 3).

        Args:
            pixel_values: `(B, 3, H, W)` in [-1, 1].
            teacher_features: patch features of a frozen vision model `(B, N, mapper_target_size)`.
            generator: of the posterior's draw.
            noise: that draw.

        Returns:
            losses `reconstruction_loss` (L1), `kl_loss`, and `alignment_loss`: 1 minus the mean cosine similarity. The
            perceptual and the adversarial term come from the trainer.
        """
        dist = self.encode(pixel_values).latent_dist
        latents = dist.sample(generator=generator, noise=noise) if self.training or noise is not None else dist.mode()
        sample = self.decode(latents).sample
        losses = {"reconstruction_loss": F.l1_loss(sample, pixel_values)}
        losses["kl_loss"] = self.config.kl_weight * dist.kl((1, 2, 3)).mean()
        if teacher_features is not None:
            disturb = self.training and self.config.mapper_noise > 0
            sigma = self.config.mapper_noise * torch.rand(len(latents), device=latents.device) if disturb else None
            aligned = self.align(latents, torch.randn_like(latents) if disturb else None, sigma)
            similarity = teacher_similarity(aligned, teacher_features).mean()
            losses["alignment_loss"] = self.config.alignment_weight * (1 - similarity)
        return ImageTokenizerOutput(sum(losses.values()), losses, sample)
