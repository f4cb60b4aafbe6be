"""MingTok-Vision (arXiv 2510.06590, section 2): low-level latents, a causal semantic decoder, a pixel decoder.

Shape suffixes in comments: B images, N latents, C their width, D a part's width, r pixel tokens per side of a latent.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..layers.attention import Mlp, TransformerBlock
from ..layers.causal import CausalAttention
from ..layers.conv_codec import flatten_grid, grid_of
from ..layers.losses import teacher_similarity
from ..layers.mlp import FusedSwiGLU, swiglu_dim
from ..layers.patches import unpatchify
from ..layers.positions import resize_table_bicubic
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import (
    ImageTokenizerDecoderOutput,
    ImageTokenizerEncoderOutput,
    ImageTokenizerOutput,
    TokenSegment,
)
from .configuration_mingtok import MingTokConfig

HEAD_DIM = 64


def make_mlp(kind: str, width: int) -> nn.Module:
    """SwiGLU of about 8/3 the width, rounded up to a multiple of 8; or a GELU MLP of 4 times the width."""
    return FusedSwiGLU(width, swiglu_dim(width, 8)) if kind == "swiglu" else Mlp(width, 4 * width)


def bidirectional(config: MingTokConfig, width: int, num_layers: int, mlp: str) -> nn.ModuleList:
    """Pre-norm blocks."""
    return nn.ModuleList(
        TransformerBlock(width, width // HEAD_DIM, width, eps=1e-6, mlp=make_mlp(mlp, width), config=config)
        for _ in range(num_layers)
    )


class CausalBlock(GradientCheckpointingLayer):
    """Pre-norm block with causal attention over a cache."""

    def __init__(self, config: MingTokConfig, layer_idx: int) -> None:
        super().__init__()
        width = config.semantic_hidden_size
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = CausalAttention(width, width // HEAD_DIM, layer_idx, qkv_bias=True, proj_bias=True, config=config)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = make_mlp(config.semantic_mlp, width)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None = None) -> Tensor:
        """`(B, n, D)` to `(B, n, D)`."""
        x = x + self.attn(self.norm1(x), mask, cache=cache)
        return x + self.mlp(self.norm2(x))


class LowLevelEncoder(nn.Module):
    """ViT over [patches, class token]; its output is a group mean of the channels plus a small head."""

    def __init__(self, config: MingTokConfig) -> None:
        super().__init__()
        width, patch = config.encoder_hidden_size, config.encoder_patch_size
        side = config.image_size // patch
        self.grid, self.token_size, self.initializer_range = (side, side), config.token_size, config.initializer_range
        self.patch_embed = nn.Conv2d(config.num_channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(side**2 + 1, width))  # the class token's row is last
        self.layers = bidirectional(config, width, config.encoder_num_layers, config.encoder_mlp)
        self.norm_out = nn.LayerNorm(width, eps=1e-6)
        self.proj_out = nn.Linear(width, config.token_size)

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.initializer_range)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` to raw latents `(B, N + 1, C)`, the class token's last."""
        patches = self.patch_embed(pixels)
        table = resize_table_bicubic(self.position_embedding[:-1], self.grid, tuple(patches.shape[2:]))
        x = torch.cat([flatten_grid(patches), self.class_token.expand(len(pixels), -1, -1)], 1)
        x = x + torch.cat([table, self.position_embedding[-1:]])
        for layer in self.layers:
            x = layer(x)
        return x.unflatten(-1, (self.token_size, -1)).mean(-1) + self.proj_out(F.gelu(self.norm_out(x)))


class SemanticDecoder(nn.Module):
    """Causal transformer over raw latents in raster order, without positions."""

    def __init__(self, config: MingTokConfig) -> None:
        super().__init__()
        width = config.semantic_hidden_size
        self.repeats = width // config.token_size
        self.proj_in = nn.Linear(config.token_size, width)
        self.layers = nn.ModuleList(CausalBlock(config, index) for index in range(config.semantic_num_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, latents: Tensor, cache: Cache | None = None) -> Tensor:
        """Raw latents `(B, n, C)` behind those in the cache to semantic tokens `(B, n, D)`."""
        x = self.proj_in(latents) + latents.repeat_interleave(self.repeats, -1)
        past, count = 0 if cache is None else cache.get_seq_length(), latents.shape[1]
        mask = None
        if count > 1:
            mask = torch.ones(count, past + count, dtype=torch.bool, device=x.device).tril(past)
        for layer in self.layers:
            x = layer(x, mask, cache)
        return self.norm(x)


class PixelDecoder(nn.Module):
    """Bidirectional transformer over patches, without positions: semantic tokens to pixels."""

    def __init__(self, config: MingTokConfig) -> None:
        super().__init__()
        width, self.patch = config.pixel_hidden_size, config.pixel_patch_size
        self.ratio = config.encoder_patch_size // config.pixel_patch_size
        self.proj_in = nn.Linear(config.semantic_hidden_size, width * self.ratio**2)
        self.layers = bidirectional(config, width, config.pixel_num_layers, config.pixel_mlp)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, self.patch**2 * config.num_channels)

    def forward(self, semantic: Tensor, rows: int, columns: int) -> Tensor:
        """`(B, rows * columns, D)` to pixels `(B, 3, H, W)`, not clamped."""
        r = self.ratio
        x = self.proj_in(semantic).unflatten(1, (rows, columns)).unflatten(-1, (r, r, -1))  # (B, h, w, r, r, D)
        x = x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 3)  # (B, h r w r, D)
        for layer in self.layers:
            x = layer(x)
        return unpatchify(self.head(self.norm(x)), rows * r, columns * r, self.patch)


class MingTokModel(PreTrainedImageTokenizer):
    """
    Images in [-1, 1] to continuous latents, and those by way of semantic tokens back.

    `latents` `(B, N, C)` are normalised and have no row for the class token; `encode` hands that row on as
    `decode_kwargs["class_latent"]`, and `decode` then also gives `pooled`. `features` are the semantic tokens. Any size
    whose sides are multiples of the patch is taken: positions of the encoder are resized, the decoders have none.
    """

    config: MingTokConfig
    teacher_inputs = {"teacher_features": "patches"}
    _no_split_modules = ["TransformerBlock", "CausalBlock"]

    def __init__(self, config: MingTokConfig) -> None:
        super().__init__(config)
        self.encoder = LowLevelEncoder(config)
        self.semantic_decoder = SemanticDecoder(config)
        self.pixel_decoder = PixelDecoder(config)
        self.post_init()

    @property
    def is_discrete(self) -> bool:
        """Always False."""
        return False

    @property
    def teacher_grid(self) -> tuple[int, int]:
        """The grid of latents."""
        side = self.config.image_size // self.config.encoder_patch_size
        return side, side

    @property
    def num_tokens(self) -> int:
        """Latents of an image of the configured size."""
        return (self.config.image_size // self.config.encoder_patch_size) ** 2

    @property
    def latent_dim(self) -> int:
        """Width of a latent."""
        return self.config.token_size

    def token_segments(self, height: int | None = None, width: int | None = None) -> list[TokenSegment]:
        """One map in raster order."""
        patch, size = self.config.encoder_patch_size, self.config.image_size
        return [TokenSegment("tokens", ((height or size) // patch, (width or size) // patch), 0)]

    def normalize_latents(self, raw: Tensor) -> Tensor:
        """What the encoder gives to `latents`."""
        return (raw - self.config.latents_mean) / self.config.latents_scale

    def denormalize_latents(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize_latents`: what the semantic decoder reads."""
        return latents * self.config.latents_scale + self.config.latents_mean

    def _check_image_size(self, height: int, width: int) -> None:
        patch = self.config.encoder_patch_size
        if height % patch or width % patch or not height or not width:
            raise ValueError(
                f"{type(self).__name__} takes sides that are multiples of {patch}, got {height} x {width}. "
                "Its processor resizes pictures: AutoImageTokenizerProcessor.from_pretrained(...)."
            )

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 3 or latents.shape[2] != self.latent_dim or not latents.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}.decode takes float latents (B, N, {self.latent_dim}), got {latents.dtype} "
                f"{tuple(latents.shape)}."
            )

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        latents = self.normalize_latents(self.encoder(pixel_values))
        decode_kwargs: dict[str, Any] = {"class_latent": latents[:, -1]}
        size = tuple(pixel_values.shape[2:])
        if size[0] != size[1]:
            decode_kwargs["image_size"] = size
        return ImageTokenizerEncoderOutput(latents=latents[:, :-1], decode_kwargs=decode_kwargs)

    def decode_semantic(self, latents: Tensor, cache: Cache | None = None) -> Tensor:
        """
        Semantic tokens of latents in raster order.

        Args:
            latents: normalised, `(B, n, C)`; with a cache those behind the ones that it holds, for example one.
            cache: a `transformers.DynamicCache`, filled in place.

        Returns:
            `(B, n, semantic_hidden_size)`; one by one they equal those of all at once.
        """
        return self.semantic_decoder(self.denormalize_latents(latents.to(self.dtype)), cache)

    def decode_pixels(self, semantic: Tensor, image_size: int | tuple[int, int] | None = None) -> Tensor:
        """Semantic tokens `(B, N, D)` to pixels `(B, 3, H, W)` in [-1, 1], not clamped; a square by default."""
        rows, columns = grid_of(semantic.shape[1], image_size, self.config.encoder_patch_size)
        return self.pixel_decoder(semantic, rows, columns)

    def decode_features(self, latents: Tensor, class_latent: Tensor | None = None) -> ImageTokenizerDecoderOutput:
        """`features` `(B, N, D)`, and `pooled` `(B, D)` where `class_latent` `(B, C)` is given; no pixels."""
        rows = latents if class_latent is None else torch.cat([latents, class_latent[:, None].to(latents)], 1)
        semantic = self.decode_semantic(rows)
        if class_latent is None:
            return ImageTokenizerDecoderOutput(features=semantic)
        return ImageTokenizerDecoderOutput(features=semantic[:, :-1], pooled=semantic[:, -1])

    def _decode(
        self,
        latents: Tensor,
        token_mask: Tensor | None,
        image_size: int | tuple[int, int] | None = None,
        class_latent: Tensor | None = None,
    ) -> ImageTokenizerDecoderOutput:
        grid_of(latents.shape[1], image_size, self.config.encoder_patch_size)  # says early what does not fit
        output = self.decode_features(latents, class_latent)
        output.sample = self.decode_pixels(output.features, image_size)
        return output

    def forward(
        self, pixel_values: Tensor, teacher_features: Tensor | None = None, **kwargs: Any
    ) -> ImageTokenizerOutput:
        """
        One training pass. The authors' training code is not public: the terms are the paper's, their form is ours.

        Args:
            pixel_values: `(B, 3, H, W)` in [-1, 1].
            teacher_features: of a frozen image encoder, `(B, N, semantic_hidden_size)`.
            kwargs: of `encode`.

        Returns:
            losses `reconstruction_loss` (L1), and `semantic_loss` (1 - cosine) where the teacher's features are given.
        """
        encoded = self.encode(pixel_values, **kwargs)
        decoded = self.decode(encoded.latents, **encoded.decode_kwargs)
        losses = {"reconstruction_loss": F.l1_loss(decoded.sample, pixel_values)}
        if teacher_features is not None:
            losses["semantic_loss"] = (1 - teacher_similarity(decoded.features, teacher_features)).mean()
        weights = self.config.loss_weights or {}
        total = sum(weights.get(name, 1.0) * value for name, value in losses.items())
        return ImageTokenizerOutput(total, losses, decoded.sample, features=decoded.features)
