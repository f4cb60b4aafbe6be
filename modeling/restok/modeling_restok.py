"""
ResTok (arXiv 2601.03955): hierarchies of image tokens and latent tokens, each level the residual of the coarser ones.

Shape suffixes in comments: B images, G grid positions, N latent tokens, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..layers.attention import Mlp
from ..layers.block_causal import block_causal_mask
from ..layers.conv_codec import MaskGitDecoder, MaskGitEncoder, flatten_grid, unflatten_grid
from ..layers.losses import teacher_similarity
from ..layers.quantizers import VectorQuantizer
from ..layers.rotary import axial_rotation, grid_coordinates
from ..layers.separate_attention import SeparateAttention
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import (
    ImageTokenizerDecoderOutput,
    ImageTokenizerEncoderOutput,
    ImageTokenizerOutput,
    TokenSegment,
)
from .configuration_restok import ResTokConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ResTokBlock(GradientCheckpointingLayer):
    """`x += gamma_1 * attn(norm1(x)); x += gamma_2 * mlp(norm2(x))`, with room for a merge in between."""

    def __init__(self, dim: int, num_heads: int, config: ResTokConfig) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = SeparateAttention(
            dim, num_heads, k_bias=False, q_norm=nn.LayerNorm(head_dim), k_norm=nn.LayerNorm(head_dim), config=config
        )
        self.mlp = Mlp(dim, 4 * dim)
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def init_own_weights(self) -> None:
        """Layer scales start at 1e-1."""
        init.constant_(self.gamma_1, 0.1)
        init.constant_(self.gamma_2, 0.1)

    def forward(
        self, x: Tensor, mask: Tensor | None, rotary: Callable, merge: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """`(B, M, D)` to the same, or to more positions where `merge` adds some."""
        x = x + self.gamma_1 * self.attn(self.norm1(x), mask, rotary)
        if merge is not None:
            x = merge(x)
        return x + self.gamma_2 * self.mlp(self.norm2(x))


def diagonal(start: int, count: int, device: torch.device) -> Tensor:
    """Coordinates `(count, 2)` of positions on the diagonal."""
    return (start + torch.arange(count, device=device))[:, None].expand(-1, 2)


def residual_levels(grid: Tensor, level_grids: Sequence[tuple[int, int]], residual: bool) -> list[Tensor]:
    """
    Averages of a grid at growing resolution, each of what the coarser ones leave over (section 3.2).

    Args:
        grid: `(B, D, h, w)`.
        level_grids: rows and columns of each level.
        residual: whether the nearest upsampling of a level is subtracted before the next.

    Returns:
        for each level `(B, rows * columns, D)`.
    """
    levels, rest = [], grid
    for size in level_grids:
        level = F.interpolate(rest, size=size, mode="area")
        levels.append(flatten_grid(level))
        if residual:
            rest = rest - F.interpolate(level, size=grid.shape[2:], mode="nearest")
    return levels


def merge_first_block(x: Tensor, length: int, coarse: int, residual: bool) -> Tensor:
    """
    Puts a coarser copy of the first block in front of it (section 3.1).

    Args:
        x: `(B, M, D)`; its first `length` positions are the block.
        length, coarse: positions of the block, and of its copy (every second one where it is half as long).
        residual: whether the copy's nearest upsampling is subtracted from the block.
    """
    block = x[:, :length]
    copy = F.interpolate(block.transpose(1, 2), size=coarse, mode="nearest")
    if residual:
        block = block - F.interpolate(copy, size=length, mode="nearest").transpose(1, 2)
    return torch.cat([copy.transpose(1, 2), block, x[:, length:]], 1)


class LevelProjection(nn.Module):
    """A linear layer for each level, or one for all."""

    def __init__(self, in_dim: int, out_dim: int, lengths: Sequence[int], per_level: bool) -> None:
        super().__init__()
        self.lengths = list(lengths) if per_level else [sum(lengths)]
        self.levels = nn.ModuleList(nn.Linear(in_dim, out_dim) for _ in self.lengths)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, N, D)` to `(B, N, D')`."""
        parts = x.split(self.lengths, 1)
        return torch.cat([layer(part) for layer, part in zip(self.levels, parts, strict=True)], 1)


class ResTokEncoder(nn.Module):
    """Features of the convolutional encoder to latent tokens, over a growing list of image blocks."""

    def __init__(self, config: ResTokConfig) -> None:
        super().__init__()
        width = config.encoder_hidden_size
        self.config = config
        self.embed = nn.Linear(config.pixel_z_channels, width)
        self.image_level_embedding = nn.Parameter(torch.empty(config.num_stages, width))
        self.latent_level_embedding = nn.Parameter(torch.empty(len(config.level_lengths), width))
        self.norm_pre = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            ResTokBlock(width, config.encoder_num_heads, config) for _ in range(config.encoder_num_layers)
        )
        self.norm_post = nn.LayerNorm(width)
        self.proj = LevelProjection(width, config.token_size, config.level_lengths, config.per_level_projection)

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.config.initializer_range)

    def _rotary(self, grids: list[tuple[int, int]], device: torch.device) -> Callable[[Tensor], Tensor]:
        config, parts, offset = self.config, [], 0
        for grid in grids:
            parts.append(grid_coordinates(grid, device) + offset)
            offset += grid[0] * grid[1]
        parts.append(diagonal(offset, config.num_latent_tokens, device))
        head_dim = config.encoder_hidden_size // config.encoder_num_heads
        return axial_rotation(torch.cat(parts), head_dim, config.rope_theta)

    def _view(self, grids: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Callable]:
        """Mask and rotation of the image blocks `grids`, coarse to fine, and the latent levels behind them."""
        lengths = [rows * columns for rows, columns in grids] + self.config.level_lengths
        return block_causal_mask(lengths, device), self._rotary(grids, device)

    def blocks(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """`(B, z, h, w)` to the image blocks, coarse to fine, and the latents `(B, N, D)`, before the last norm."""
        config, grids = self.config, [tuple(features.shape[2:])]
        embedded = self.embed(flatten_grid(features))
        levels = residual_levels(unflatten_grid(embedded, *grids[0]), config.level_grids, config.residual_latent_tokens)
        tables = self.latent_level_embedding
        latents = [level + tables[i] for i, level in enumerate(levels)]
        x = self.norm_pre(torch.cat([embedded + self.image_level_embedding[0], *latents], 1))
        mask, rotary = self._view(grids, x.device)
        for index, layer in enumerate(self.layers):
            if index not in config.merge_layers:
                x = layer(x, mask, rotary)
                continue
            rows, columns = grids[0]
            grids = [(rows, int(columns * config.reduction_ratio)), *grids]
            coarse = grids[0][0] * grids[0][1]

            def merge(x: Tensor, length: int = rows * columns, coarse: int = coarse) -> Tensor:
                return merge_first_block(x, length, coarse, config.residual_image_tokens)

            x = layer(x, mask, rotary, merge)
            x = torch.cat([x[:, :coarse] + self.image_level_embedding[len(grids) - 1], x[:, coarse:]], 1)
            mask, rotary = self._view(grids, x.device)
        parts = x.split([rows * columns for rows, columns in grids] + [config.num_latent_tokens], 1)
        return list(parts[:-1]), parts[-1]

    def project(self, latents: Tensor) -> Tensor:
        """Latents `(B, N, D)` to the code space, `(B, N, token_size)`."""
        x = self.norm_post(latents)
        if self.config.scrambled_latents:
            x = x.reshape(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2)  # memory order (N, D) read as (D, N)
        return self.proj(x)


class ResTokDecoder(nn.Module):
    """Latent tokens and one query per grid position to features of the convolutional decoder."""

    def __init__(self, config: ResTokConfig) -> None:
        super().__init__()
        width = config.decoder_hidden_size
        self.config = config
        self.latent_mask_token = nn.Parameter(torch.empty(config.token_size))
        self.embed = LevelProjection(config.token_size, width, config.level_lengths, config.per_level_projection)
        self.latent_level_embedding = nn.Parameter(torch.empty(len(config.level_lengths), width))
        self.mask_token = nn.Parameter(torch.empty(width))
        self.feature_mask_token = None
        if config.alignment_dim is not None:
            self.feature_mask_token = nn.Parameter(torch.empty(width))
        self.norm_pre = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            ResTokBlock(width, config.decoder_num_heads, config) for _ in range(config.decoder_num_layers)
        )
        self.norm_post = nn.LayerNorm(width)
        self.proj = nn.Linear(width, config.pixel_z_channels)

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.config.initializer_range)

    def fill(self, latents: Tensor, token_mask: Tensor | None) -> Tensor:
        """`(B, n, C)` to `(B, N, C)`: the learned vector stands in masked slots and behind the last token."""
        filler = self.latent_mask_token.to(latents.dtype)
        if token_mask is not None:
            latents = torch.where(token_mask[..., None], latents, filler)
        missing = self.config.num_latent_tokens - latents.shape[1]
        return torch.cat([latents, filler.expand(latents.shape[0], missing, -1)], 1)

    def states(self, latents: Tensor, query: Tensor) -> Tensor:
        """Filled latents `(B, N, C)` to the state of the grid `(B, G, D)` after the last norm."""
        config, device = self.config, latents.device
        levels = torch.cat(
            [
                table.expand(length, -1)
                for table, length in zip(self.latent_level_embedding, config.level_lengths, strict=True)
            ]
        )
        grid = (config.grid_size, config.grid_size)
        queries = query.expand(latents.shape[0], grid[0] * grid[1], -1)
        x = self.norm_pre(torch.cat([self.embed(latents) + levels, queries], 1))
        count = config.num_latent_tokens
        coordinates = torch.cat([diagonal(0, count, device), grid_coordinates(grid, device) + count])
        rotary = axial_rotation(coordinates, config.decoder_hidden_size // config.decoder_num_heads, config.rope_theta)
        for layer in self.layers:
            x = layer(x, None, rotary)
        return self.norm_post(x[:, count:])

    def forward(self, latents: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """`(B, n, C)` to `(B, z, h, w)`."""
        x = self.proj(self.states(self.fill(latents, token_mask), self.mask_token))
        # contiguous: torch's GroupNorm loses precision on channels-last maps
        return unflatten_grid(x, self.config.grid_size, self.config.grid_size).contiguous()


class ResTokModel(PreTrainedImageTokenizer):
    """
    Images in [0, 1] to `num_latent_tokens` ids in levels of 1, 1, 2, 4, ..., and back from any prefix.

    ImageNet's mean and standard deviation are applied inside `encode`; pictures come out in [0, 1].
    """

    config: ResTokConfig
    mask_mode = "token"
    teacher_inputs = {"teacher_pooled": "pooled", "teacher_features": "patches"}
    _no_split_modules = ["ResTokBlock", "ResidualBlock"]

    def __init__(self, config: ResTokConfig) -> None:
        super().__init__(config)
        codec = (
            config.num_channels,
            config.pixel_hidden_channels,
            config.pixel_channel_mult,
            config.pixel_num_res_blocks,
            config.pixel_z_channels,
            config.pixel_dropout,
        )
        self.pixel_encoder = MaskGitEncoder(*codec)
        self.encoder = ResTokEncoder(config)
        self.quantize = VectorQuantizer(
            config.codebook_size,
            config.token_size,
            l2_norm=config.use_l2_norm,
            commitment_cost=config.commitment_cost,
            entropy_cost=config.entropy_loss_ratio,
        )
        self.decoder = ResTokDecoder(config)
        self.pixel_decoder = MaskGitDecoder(*codec)
        if config.alignment_dim is not None:
            self.encoder_alignment = nn.Linear(config.encoder_hidden_size, config.alignment_dim)
            self.decoder_alignment = nn.Linear(config.decoder_hidden_size, config.alignment_dim)
        self.post_init()

    @property
    def num_tokens(self) -> int:
        """Tokens of one image."""
        return self.config.num_latent_tokens

    @property
    def latent_dim(self) -> int:
        """Width of a token."""
        return self.config.token_size

    @property
    def is_prefix_ordered(self) -> bool:
        """Any number of first tokens is a picture; whole levels are what training has seen."""
        return True

    def token_segments(self, height: int | None = None, width: int | None = None) -> list[TokenSegment]:
        """The levels."""
        grids = self.config.level_grids
        return [TokenSegment(f"level_{i}", grid, self.config.codebook_size) for i, grid in enumerate(grids)]

    # ------------------------------------------------------------------ encode

    def encode_features(self, pixel_values: Tensor) -> Tensor:
        """Pixels in [0, 1] to the convolutional encoder's features, `(B, z, h, w)`."""
        mean = pixel_values.new_tensor(IMAGENET_MEAN).view(1, -1, 1, 1)
        std = pixel_values.new_tensor(IMAGENET_STD).view(1, -1, 1, 1)
        return self.pixel_encoder((pixel_values - mean) / std)

    def image_blocks(self, pixel_values: Tensor) -> list[Tensor]:
        """The encoder's image tokens, coarsest block first, each `(B, G, D)`."""
        self._check_pixel_values(pixel_values)
        return self.encoder.blocks(self.encode_features(pixel_values.to(self.dtype)))[0]

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        blocks, latents = self.encoder.blocks(self.encode_features(pixel_values))
        pre_quant = self.encoder.project(latents)
        output = self.quantize(pre_quant)
        return ImageTokenizerEncoderOutput(
            latents=output.quantized.to(pre_quant.dtype),
            token_ids=output.indices,
            pre_quant=pre_quant,
            features=blocks[0],
            pooled_features=blocks[0].mean(1),
            loss=output.loss,
            losses=output.losses,
        )

    # ------------------------------------------------------------------ decode

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """Rows of the codebook, `(B, N, D)`, of unit length where `use_l2_norm`."""
        return self.quantize.indices_to_latents(token_ids)

    def decode_features(self, latents: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Latents `(B, n, C)` to what the convolutional decoder takes, `(B, z, h, w)`."""
        return self.decoder(latents.to(self.dtype), token_mask)

    def _decode(self, latents: Tensor, token_mask: Tensor | None = None) -> ImageTokenizerDecoderOutput:
        return ImageTokenizerDecoderOutput(sample=self.pixel_decoder(self.decode_features(latents, token_mask)))

    # ------------------------------------------------------------------ training

    def nested_lengths(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random lengths `(B,)`: all tokens with `full_length_share`, else a power of two, longer ones more often."""
        config = self.config
        sizes = [2**i for i in range(config.num_latent_tokens.bit_length()) if 2**i >= config.min_tokens]
        weights = torch.tensor([float(2**i) for i in range(len(sizes))])
        lengths = torch.tensor(sizes)[torch.multinomial(weights, batch, True, generator=generator)]
        full = torch.rand(batch, generator=generator) < config.full_length_share
        return lengths.masked_fill(full, config.num_latent_tokens)

    def _alignment_losses(
        self, pooled: Tensor, latents: Tensor, mask: Tensor | None, teacher: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        states = self.decoder.states(self.decoder.fill(latents, mask), self.decoder.feature_mask_token)
        pairs = {
            "encoder_alignment_loss": (self.encoder_alignment(pooled), teacher["pooled"]),
            "decoder_alignment_loss": (self.decoder_alignment(states), teacher["features"]),
        }
        margin = self.config.alignment_margin
        return {
            name: (margin - teacher_similarity(ours, theirs)).relu().mean() for name, (ours, theirs) in pairs.items()
        }

    def forward(
        self,
        pixel_values: Tensor,
        teacher_pooled: Tensor | None = None,
        teacher_features: Tensor | None = None,
        keep: Tensor | None = None,
        **kwargs: Any,
    ) -> ImageTokenizerOutput:
        """
        One training pass (section 3.3).

        Args:
            pixel_values: `(B, 3, H, W)` in [0, 1].
            teacher_pooled, teacher_features: a frozen vision model's class token `(B, F)` and patch features
                `(B, h * w, F)` (DINOv3-L), F = `config.alignment_dim`.
            keep: tokens that stay of each image, int64 `(B,)`; drawn in training where None and `nested_dropout`.

        Returns:
            losses `reconstruction_loss` (L2), `commitment_loss`, `codebook_loss`, `entropy_loss`, and, with a teacher,
            `encoder_alignment_loss` (mean coarsest image token) and `decoder_alignment_loss` (a second decoding with
            queries of its own). The perceptual and the adversarial term are the trainer's.
        """
        encoded = self.encode(pixel_values, **kwargs)
        mask = encoded.token_mask
        if keep is None and mask is None and self.training and self.config.nested_dropout:
            keep = self.nested_lengths(len(pixel_values))
        if keep is not None:
            mask = torch.arange(self.num_tokens, device=self.device) < keep.to(self.device)[:, None]
        sample = self.decode(encoded.latents, mask).sample
        losses = {"reconstruction_loss": F.mse_loss(sample, pixel_values), **encoded.losses}
        if teacher_pooled is not None and teacher_features is not None:
            if self.config.alignment_dim is None:
                raise ValueError("This model has no alignment heads (config.alignment_dim is None).")
            teacher = {"pooled": teacher_pooled, "features": teacher_features}
            losses |= self._alignment_losses(encoded.pooled_features, encoded.latents, mask, teacher)
        return ImageTokenizerOutput(sum(losses.values()), losses, sample, encoded.token_ids, encoded.features)
