"""TiTok (arXiv 2406.07550): a ViT reads an image into a few latent tokens, another draws it from them.

Shape suffixes in comments: B images, N latent tokens, G grid positions, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..layers.attention import TransformerBlock
from ..layers.conv_codec import MaskGitDecoder, flatten_grid, unflatten_grid
from ..layers.patches import unpatchify
from ..layers.posterior import DiagonalGaussian
from ..layers.quantizers import FiniteScalarQuantizer, VectorQuantizer
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput
from .configuration_titok import TiTokConfig


class TiTokEncoder(nn.Module):
    """ViT over [class token, patches, latent tokens] (section 3.2); returns the latent tokens, `(B, N, 2 or 1 x D)`."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        width, patch = config.encoder_hidden_size, config.encoder_patch_size
        self.num_tokens, self.scrambled = config.num_latent_tokens, config.scrambled_latents
        self.initializer_range = config.initializer_range
        positions = (config.image_size // patch) ** 2 + 1
        self.patch_embed = nn.Conv2d(config.num_channels, width, patch, stride=patch)
        self.class_embedding = nn.Parameter(torch.empty(1, width))
        self.position_embedding = nn.Parameter(torch.empty(positions, width))
        self.latent_tokens = nn.Parameter(torch.empty(config.num_latent_tokens, width))
        self.latent_position_embedding = nn.Parameter(torch.empty(config.num_latent_tokens, width))
        self.norm_pre = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            TransformerBlock(width, config.encoder_num_heads, 4 * width, config=config)
            for _ in range(config.encoder_num_layers)
        )
        self.norm_post = nn.LayerNorm(width)
        self.proj = nn.Linear(width, config.token_size * (2 if config.quantizer == "kl" else 1))

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.initializer_range)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, N, D)`."""
        patches = flatten_grid(self.patch_embed(pixels))  # (B, G, D)
        batch = patches.shape[0]
        cls = self.class_embedding.expand(batch, 1, -1)
        image = torch.cat([cls, patches], 1) + self.position_embedding
        latents = (self.latent_tokens + self.latent_position_embedding).expand(batch, -1, -1)
        x = self.norm_pre(torch.cat([image, latents], 1))
        for layer in self.layers[:-1]:
            x = layer(x)
        x = self.layers[-1](x, num_queries=self.num_tokens)  # nobody reads the patches after this layer
        x = self.norm_post(x)
        if self.scrambled:
            x = x.reshape(batch, x.shape[2], x.shape[1]).transpose(1, 2)  # memory order (N, D) read as (D, N)
        return self.proj(x)


class TiTokDecoder(nn.Module):
    """ViT over [class token, mask tokens, latents] (section 3.2); returns the grid positions, `(B, C, h, w)`."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        width, patch = config.decoder_hidden_size, config.decoder_patch_size
        self.grid = config.image_size // patch
        self.initializer_range = config.initializer_range
        self.embed = nn.Linear(config.token_size, width)
        self.class_embedding = nn.Parameter(torch.empty(1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(self.grid**2 + 1, width))
        self.latent_position_embedding = nn.Parameter(torch.empty(config.num_latent_tokens, width))
        self.norm_pre = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            TransformerBlock(width, config.decoder_num_heads, 4 * width, config=config)
            for _ in range(config.decoder_num_layers)
        )
        self.norm_post = nn.LayerNorm(width)
        if config.pixel_head == "patch":
            self.head = nn.Linear(width, patch * patch * config.num_channels)
        else:
            self.head = nn.Sequential(
                nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, config.proxy_codebook_size)
            )

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.initializer_range)

    def _mask(self, token_mask: Tensor | None, extra: int) -> Tensor | None:
        if token_mask is None:
            return None
        seen = token_mask.new_ones(token_mask.shape[0], self.grid**2 + 1)
        parts = [seen, token_mask, token_mask.new_ones(token_mask.shape[0], extra)]
        return torch.cat(parts, 1)[:, None, None, :]  # (B, 1, 1, 1 + G + N + T)

    def forward(self, latents: Tensor, token_mask: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        """
        `(B, k, D)` with any k up to N to `(B, C, h, w)`; masked tokens leave attention.

        `extra` `(B, T, width)` are further tokens behind the latents, which all look at (TA-TiTok's text).
        """
        batch, count = latents.shape[:2]
        cls = self.class_embedding.expand(batch, 1, -1)
        masks = self.mask_token.expand(batch, self.grid**2, -1)
        image = torch.cat([cls, masks], 1) + self.position_embedding
        tokens = self.embed(latents) + self.latent_position_embedding[:count]
        extra = tokens[:, :0] if extra is None else extra
        x, mask = self.norm_pre(torch.cat([image, tokens, extra], 1)), self._mask(token_mask, extra.shape[1])
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm_post(x[:, 1 : 1 + self.grid**2])
        return unflatten_grid(self.head(x), self.grid, self.grid)


class TiTokModel(PreTrainedImageTokenizer):
    """
    Images in [0, 1] to `num_latent_tokens` ids (or continuous tokens of the "kl" quantizer), and back.

    `sample` is pixels, except for stage-1 checkpoints (`pixel_head="proxy"`), whose decoder ends in logits over the
    teacher's codes, `(B, proxy_codebook_size, h, w)`.
    """

    config: TiTokConfig
    mask_mode = "attention"
    encoder_class, decoder_class = TiTokEncoder, TiTokDecoder
    _no_split_modules = ["TransformerBlock", "ResidualBlock"]

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__(config)
        self.encoder = self.encoder_class(config)
        self.decoder = self.decoder_class(config)
        if config.quantizer == "vq":
            self.quantize = VectorQuantizer(
                config.codebook_size,
                config.token_size,
                l2_norm=config.use_l2_norm,
                commitment_cost=config.commitment_cost,
            )
        elif config.quantizer == "fsq":
            self.quantize = FiniteScalarQuantizer(config.fsq_levels)
        if config.pixel_head == "patch":
            self.conv_out = nn.Conv2d(config.num_channels, config.num_channels, 3, padding=1)
        elif config.pixel_head == "vqgan":
            self.pixel_codebook = nn.Embedding(config.proxy_codebook_size, config.proxy_channels)
            self.pixel_decoder = MaskGitDecoder(
                config.num_channels,
                config.pixel_hidden_channels,
                config.pixel_channel_mult,
                config.pixel_num_res_blocks,
                config.proxy_channels,
                config.pixel_dropout,
            )
        self.post_init()

    @property
    def is_discrete(self) -> bool:
        """False for the "kl" quantizer."""
        return self.config.quantizer != "kl"

    @property
    def num_tokens(self) -> int:
        """Tokens of one image."""
        return self.config.num_latent_tokens

    @property
    def latent_dim(self) -> int:
        """Width of a token."""
        return self.config.token_size

    @property
    def decodes_to(self) -> str:
        """ "pixels", or "logits" for stage-1 checkpoints."""
        return "logits" if self.config.pixel_head == "proxy" else "pixels"

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        pre_quant = self.encoder(pixel_values)
        if not self.is_discrete:
            return ImageTokenizerEncoderOutput(latent_dist=DiagonalGaussian.from_moments(pre_quant))
        output = self.quantize(pre_quant)
        return ImageTokenizerEncoderOutput(
            latents=output.quantized,
            token_ids=output.indices,
            pre_quant=pre_quant,
            loss=output.loss,
            losses=output.losses,
        )

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """Rows of the codebook, `(B, N, D)`, of unit length where `use_l2_norm`."""
        return self.quantize.indices_to_latents(token_ids)

    def decode_to_logits(self, latents: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Logits over the teacher's codes, `(B, proxy_codebook_size, h, w)`, of stage-1 and two-stage checkpoints."""
        return self.decoder(latents.to(self.decoder.embed.weight.dtype), token_mask)

    def _decode(self, latents: Tensor, token_mask: Tensor | None = None) -> ImageTokenizerDecoderOutput:
        grid = self.decode_to_logits(latents, token_mask)
        if self.config.pixel_head == "patch":
            return ImageTokenizerDecoderOutput(sample=self.to_pixels(grid))
        if self.config.pixel_head == "vqgan":
            codes = self.expected_codes(grid)
            return ImageTokenizerDecoderOutput(sample=self.pixel_decoder(codes))
        return ImageTokenizerDecoderOutput(sample=grid)

    def to_pixels(self, grid: Tensor) -> Tensor:
        """The decoder's patches `(B, p * p * C, h, w)` as pixels `(B, C, H, W)` of one-stage checkpoints."""
        return self.conv_out(unpatchify(flatten_grid(grid), *grid.shape[2:], self.config.decoder_patch_size))

    def expected_codes(self, logits: Tensor) -> Tensor:
        """The teacher's codes averaged over the softmax of `logits` (B, K, h, w): `(B, proxy_channels, h, w)`."""
        codes = self.pixel_codebook(torch.arange(self.config.proxy_codebook_size, device=logits.device))
        return torch.einsum("bkhw,kc->bchw", logits.softmax(1), codes)

    def _training_mask(self, latents: Tensor) -> Tensor | None:
        """Which tokens the decoder sees in training; subclasses drop some."""
        return None

    def forward(
        self, pixel_values: Tensor, proxy_token_ids: Tensor | None = None, **kwargs: Any
    ) -> ImageTokenizerOutput:
        """
        One training pass.

        Args:
            pixel_values: `(B, 3, H, W)` in [0, 1].
            proxy_token_ids: the teacher's ids `(B, h * w)`, the targets of stage-1 checkpoints.
            kwargs: what `decode_conditioning` names, and options of `encode`, for example `num_tokens` with a budget
                per image.

        Returns:
            losses `reconstruction_loss` (L2), or `proxy_loss` (cross-entropy) for stage 1; and `commitment_loss` and
            `codebook_loss`, or `kl_loss`. Perceptual and adversarial terms are the trainer's: they need other networks.
        """
        conditions = {name: kwargs.pop(name) for name in self.decode_conditioning if name in kwargs}
        encoded = self.encode(pixel_values, sample_posterior=not self.is_discrete, **kwargs)
        mask = encoded.token_mask if encoded.token_mask is not None else self._training_mask(encoded.latents)
        sample = self.decode(encoded.latents, mask, **conditions).sample
        if self.config.pixel_head == "proxy":
            if proxy_token_ids is None:
                raise ValueError("Stage-1 training needs proxy_token_ids, the teacher's ids of the images.")
            losses = {"proxy_loss": F.cross_entropy(sample.flatten(2), proxy_token_ids)}
        else:
            losses = {"reconstruction_loss": F.mse_loss(sample, pixel_values)}
        if encoded.latent_dist is not None:
            losses["kl_loss"] = encoded.latent_dist.kl().sum() / len(pixel_values)
        losses |= encoded.losses or {}
        weights = {"kl_loss": 1e-6, **(self.config.loss_weights or {})}
        total = sum(weights.get(name, 1.0) * value for name, value in losses.items())
        return ImageTokenizerOutput(total, losses, sample, encoded.token_ids)
