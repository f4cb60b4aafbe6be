"""
TokenFlow (arXiv 2412.03069): each id names a semantic code and a pixel code; maps of ids are residuals, coarse to fine.

Shape suffixes in comments: B images, S scales, N tokens of all scales, G positions of the finest map.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..layers.attention import TransformerBlock
from ..layers.clip_vit import ClipViT
from ..layers.conv_codec import flatten_grid, unflatten_grid
from ..layers.conv_codec_taming import TamingDecoder, TamingEncoder
from ..layers.losses import assignment_entropy_loss, teacher_similarity
from ..layers.positions import resize_table_bicubic
from ..layers.quantizers import nearest_code
from ..layers.vision_towers import build_tower, resize_pixels, tower_tokens
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import (
    ImageTokenizerDecoderOutput,
    ImageTokenizerEncoderOutput,
    ImageTokenizerOutput,
    TokenSegment,
)
from .configuration_tokenflow import TokenFlowConfig


@dataclass
class MultiScaleOutput:
    """
    What the quantizer returns.

    Args:
        maps: what each scale adds to the latents, S grids `(B, D, h, w)` of the finest size.
        indices: int64 `(B, N)`.
        losses: `codebook_loss`, `commitment_loss` and, in training, `entropy_loss`; weighted, averaged over scales.
    """

    maps: list[Tensor]
    indices: Tensor
    losses: dict[str, Tensor]


class SharedIndexQuantizer(nn.Module):
    """
    Two codebooks with one index, applied to residuals at growing resolution (section 3.1).

    Row k of both is chosen where the sum of the two squared distances is the smallest, which is the nearest row of the
    codes side by side. Both halves have unit length where `codebook_l2_norm`, at every scale.
    """

    def __init__(self, config: TokenFlowConfig) -> None:
        super().__init__()
        self.config = config
        self.semantic_embedding = nn.Embedding(config.codebook_size, config.semantic_dim)
        self.pixel_embedding = nn.Embedding(config.codebook_size, config.codebook_dim)

    def init_own_weights(self) -> None:
        """Uniform in the authors' range."""
        bound = 1.0 / self.config.codebook_size
        init.uniform_(self.semantic_embedding.weight, -bound, bound)
        init.uniform_(self.pixel_embedding.weight, -bound, bound)

    def _unit(self, codes: Tensor) -> Tensor:
        """`(..., D)` in float32, each half of unit length."""
        codes = codes.float()
        if not self.config.codebook_l2_norm:
            return codes
        halves = codes.split([self.config.semantic_dim, self.config.codebook_dim], -1)
        return torch.cat([F.normalize(half, dim=-1) for half in halves], -1)

    def indices_to_latents(self, indices: Tensor) -> Tensor:
        """Ids `(...)` to rows `(..., D)`, semantic channels first, float32."""
        return self._unit(torch.cat([self.semantic_embedding(indices), self.pixel_embedding(indices)], -1))

    def _enlarge(self, codes: Tensor, scale: int) -> Tensor:
        """Codes of one scale `(B, scale * scale, D)` as a map of the finest size."""
        side = self.config.scales[-1]
        grid = unflatten_grid(codes, scale, scale)
        return grid if scale == side else F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)

    def maps(self, indices: Tensor) -> list[Tensor]:
        """Ids of whole leading scales `(B, n)` to what each adds, `(B, D, h, w)`."""
        scales = self.config.scales[: self.config.scale_ends.index(indices.shape[1]) + 1]
        parts = self.indices_to_latents(indices).split([scale * scale for scale in scales], 1)
        return [self._enlarge(part, scale) for part, scale in zip(parts, scales, strict=True)]

    def _losses(self, latents: Tensor, rows: Tensor, every: Tensor) -> dict[str, Tensor]:
        losses = {
            "codebook_loss": F.mse_loss(rows, latents.detach()),
            "commitment_loss": self.config.commitment_cost * F.mse_loss(rows.detach(), latents),
        }
        if self.training and self.config.entropy_loss_ratio:
            losses["entropy_loss"] = self.config.entropy_loss_ratio * assignment_entropy_loss(latents, every)
        return losses

    def forward(self, grid: Tensor, keep: Tensor | None = None) -> MultiScaleOutput:
        """
        Args:
            grid: `(B, D, h, w)` of the finest size.
            keep: `(S,)` of 0 and 1: a scale with 0 adds nothing and leaves the residual as it is.
        """
        rest, maps, indices, losses = grid.float(), [], [], []
        # through the modules, not their weights: under offload those are on the meta device until a call
        every = self.indices_to_latents(torch.arange(self.config.codebook_size, device=grid.device))
        for i, scale in enumerate(self.config.scales):
            latents = self._unit(flatten_grid(F.interpolate(rest, (scale, scale), mode="area")))
            indices.append(nearest_code(latents, every))
            rows = self.indices_to_latents(indices[-1])
            losses.append(self._losses(latents, rows, every))
            added = self._enlarge(latents + (rows - latents).detach(), scale)
            added = added if keep is None else added * keep[i]
            maps.append(added)
            rest = rest - added.detach()
        means = {name: sum(terms[name] for terms in losses) / len(losses) for name in losses[0]}
        return MultiScaleOutput(maps, torch.cat(indices, 1), means)


class SemanticDecoder(nn.Module):
    """Semantic codes to the teacher's features: a ViT with a class token, and a head of two layers."""

    def __init__(self, config: TokenFlowConfig) -> None:
        super().__init__()
        width = config.vision_hidden_size
        self.initializer_range, self.side = config.initializer_range, config.semantic_grid
        self.embed = nn.Conv2d(config.semantic_dim, width, 1)
        self.class_token = nn.Parameter(torch.empty(width))
        self.position_embedding = nn.Parameter(torch.empty(config.semantic_grid**2 + 1, width))
        self.layers = nn.ModuleList(
            TransformerBlock(
                width, config.semantic_num_heads, config.semantic_intermediate_size, eps=1e-6, config=config
            )
            for _ in range(config.semantic_num_layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = two_layers(width, config.feature_size)

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.initializer_range)

    def forward(self, grid: Tensor) -> Tensor:
        """`(B, semantic_dim, h, w)` to `(B, h * w, F)`."""
        positions = resize_table_bicubic(self.position_embedding[1:], (self.side, self.side), tuple(grid.shape[2:]))
        first = (self.class_token + self.position_embedding[0]).expand(len(grid), 1, -1)
        x = torch.cat([first, flatten_grid(self.embed(grid)) + positions], 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 1:]))


class SiglipScaling(nn.Module):
    """Pixels in [-1, 1] as SigLIP's processor would give them; mean and deviation are tensors of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("scale", torch.full((1, 3, 1, 1), 0.5))

    def init_own_weights(self) -> None:
        """One half everywhere."""
        init.constant_(self.shift, 0.5)
        init.constant_(self.scale, 0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` to the same."""
        return (((pixels + 1) / 2).clamp(0, 1) - self.shift) / self.scale


def two_layers(in_dim: int, out_dim: int) -> nn.Sequential:
    """Linear, tanh, Linear."""
    return nn.Sequential(nn.Linear(in_dim, in_dim), nn.Tanh(), nn.Linear(in_dim, out_dim))


def build_semantic_encoder(config: TokenFlowConfig) -> nn.Module:
    """The teacher's architecture with fresh weights: CLIP's tower, or SigLIP's before its last layer and norm."""
    sizes = {
        "hidden_size": config.vision_hidden_size,
        "num_hidden_layers": config.vision_num_layers,
        "num_attention_heads": config.vision_num_heads,
        "intermediate_size": config.vision_intermediate_size,
        "patch_size": config.vision_patch_size,
        "image_size": config.vision_image_size,
    }
    if config.teacher == "siglip":
        tower = build_tower("siglip2", sizes, affine=True)
        tower.post_layernorm = nn.Identity()
        return tower
    return ClipViT(
        config.vision_image_size,
        config.vision_patch_size,
        config.vision_hidden_size,
        config.vision_num_layers,
        config.vision_num_heads,
        config.vision_intermediate_size,
        initializer_range=config.initializer_range,
        config=config,
    )


class TokenFlowModel(PreTrainedImageTokenizer):
    """
    Images `(B, 3, H, W)` in [-1, 1] to maps of ids `(B, N)`, coarse to fine and each in raster order, and back.

    Latents are the sum of all scales at the finest size, `(B, D, h, w)`, semantic channels first: whatever was left
    out is left out of the sum. `get_codebook_entry` gives the codes themselves. `decode` returns the picture, and as
    `features` the prediction of the teacher's features.
    """

    config: TokenFlowConfig
    latent_layout = "grid"
    mask_mode = "segment"
    teacher_inputs = {"teacher_features": "patches"}
    _no_split_modules = ["TransformerBlock", "ResidualBlock", "GridAttention", "SiglipEncoderLayer"]

    def __init__(self, config: TokenFlowConfig) -> None:
        super().__init__(config)
        options = {"groups": config.norm_num_groups, "dropout": config.dropout}
        channels, z = config.num_channels, config.z_channels
        self.scaling = SiglipScaling() if config.teacher == "siglip" else None
        self.semantic_encoder = build_semantic_encoder(config)
        self.semantic_head = two_layers(config.vision_hidden_size, config.semantic_dim)
        self.encoder = TamingEncoder(
            channels, config.hidden_channels, config.encoder_channel_mult, config.num_res_blocks, z, **options
        )
        self.quant_conv = nn.Conv2d(z, config.codebook_dim, 1)
        self.quantize = SharedIndexQuantizer(config)
        self.semantic_decoder = SemanticDecoder(config)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, z, 1)
        self.decoder = TamingDecoder(
            channels, config.decoder_hidden_channels, config.decoder_channel_mult, config.decoder_num_res_blocks, z,
            **options,
        )  # fmt: skip
        self.post_init()
        self._freeze()

    def _freeze(self) -> None:
        if self.config.train_pixel_decoder_only:
            self.requires_grad_(False)
            self.decoder.requires_grad_(True)

    def train(self, mode: bool = True) -> "TokenFlowModel":
        """As usual; what is frozen stays frozen (loading forgets that)."""
        super().train(mode)
        self._freeze()
        return self

    @property
    def num_tokens(self) -> int:
        """Tokens of all scales."""
        return self.config.scale_ends[-1]

    @property
    def latent_dim(self) -> int:
        """Channels of `latents`: a semantic and a pixel code."""
        return self.config.semantic_dim + self.config.codebook_dim

    @property
    def is_prefix_ordered(self) -> bool:
        """Any number of first scales is a coarser picture."""
        return True

    @property
    def valid_num_tokens(self) -> list[int]:
        """Whole scales."""
        return self.config.scale_ends

    def token_segments(self, height: int | None = None, width: int | None = None) -> list[TokenSegment]:
        """The scales."""
        size = self.config.codebook_size
        return [TokenSegment(f"scale_{i}", (side, side), size) for i, side in enumerate(self.config.scales)]

    # ------------------------------------------------------------------ encode

    def encode_features(self, pixel_values: Tensor) -> Tensor:
        """Pixels in [-1, 1] to the semantic encoder's patch features, `(B, G, vision_hidden_size)`."""
        if self.config.teacher == "siglip":
            return tower_tokens("siglip2", self.semantic_encoder, self.scaling(pixel_values))
        return self.semantic_encoder(pixel_values)  # as it is: in [-1, 1], not with CLIP's mean and deviation

    def _encode(
        self, pixel_values: Tensor, num_tokens: int | Tensor | None = None, keep_scales: Tensor | None = None
    ) -> ImageTokenizerEncoderOutput:
        side = self.config.grid_size
        features = self.encode_features(pixel_values)
        semantic = unflatten_grid(self.semantic_head(features), side, side)
        pixel = self.quant_conv(self.encoder(resize_pixels(pixel_values, self.config.pixel_size)))
        pre_quant = torch.cat([semantic, pixel], 1)
        output = self.quantize(pre_quant, keep_scales)
        maps, ids, mask = output.maps, output.indices, None
        if isinstance(num_tokens, Tensor):
            mask = self._budget_mask(num_tokens, pre_quant)
        elif num_tokens is not None:
            self._check_num_tokens(num_tokens)
            ids = ids[:, :num_tokens]
            maps = maps[: self.config.scale_ends.index(num_tokens) + 1]
        return ImageTokenizerEncoderOutput(
            latents=self._sum(maps, mask).to(pixel_values.dtype),
            token_ids=ids,
            token_mask=mask,
            pre_quant=pre_quant,
            features=features,
            loss=sum(output.losses.values()),
            losses=output.losses,
        )

    # ------------------------------------------------------------------ ids

    def _sum(self, maps: list[Tensor], token_mask: Tensor | None) -> Tensor:
        """Maps of scales, those without masked ones, to latents."""
        if token_mask is None:
            return sum(maps)
        first = [0, *self.config.scale_ends][: len(maps)]  # where each scale starts
        keep = token_mask[:, first].to(maps[0])  # (B, S)
        return sum(grid * keep[:, i, None, None, None] for i, grid in enumerate(maps))

    def _check_token_mask(self, token_mask: Tensor | None, like: Tensor) -> None:
        """Latents hold no masked scale any more: a mask beside them only has to be one."""
        if token_mask is None:
            return
        ends, batch = self.config.scale_ends, len(like)
        shapes = [(batch, end) for end in ends]
        if token_mask.dtype != torch.bool or tuple(token_mask.shape) not in shapes:
            raise ValueError(
                f"token_mask must be bool of shape ({batch}, {ends[-1]}), or as long as the first scales "
                f"({', '.join(map(str, ends))}); got {token_mask.dtype} {tuple(token_mask.shape)}."
            )
        counts = token_mask.sum(1)
        leading = torch.arange(token_mask.shape[1], device=token_mask.device) < counts[:, None]
        whole = torch.isin(counts, torch.tensor(ends, device=counts.device)).all()
        if not bool(whole & (leading == token_mask).all()):
            raise ValueError(f"token_mask must be True on whole first scales, {', '.join(map(str, ends))} tokens.")

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """Rows of both codebooks side by side, `(B, N, D)`, semantic channels first; each of unit length."""
        return self.quantize.indices_to_latents(token_ids).to(self.dtype)

    def _ids_to_latents(self, token_ids: Tensor, token_mask: Tensor | None = None) -> Tensor:
        self._check_token_mask(token_mask, token_ids)
        if token_mask is not None and token_mask.shape != token_ids.shape:
            raise ValueError(f"token_mask must have shape {tuple(token_ids.shape)}, got {tuple(token_mask.shape)}.")
        return self._sum(self.quantize.maps(token_ids), token_mask).to(self.dtype)

    # ------------------------------------------------------------------ decode

    def _check_latents(self, latents: Tensor) -> None:
        super()._check_latents(latents)
        side = self.config.grid_size
        if latents.shape[2:] != (side, side):
            raise ValueError(
                f"{type(self).__name__}.decode takes a grid of {side} x {side}, got {tuple(latents.shape)}."
            )

    def decode_features(self, latents: Tensor) -> Tensor:
        """Latents `(B, D, h, w)` to a prediction of the teacher's patch features, `(B, h * w, F)`."""
        return self.semantic_decoder(latents[:, : self.config.semantic_dim].to(self.dtype))

    def _decode(self, latents: Tensor, token_mask: Tensor | None = None) -> ImageTokenizerDecoderOutput:
        pictures = self.decoder(self.post_quant_conv(latents[:, self.config.semantic_dim :]))
        return ImageTokenizerDecoderOutput(
            sample=resize_pixels(pictures, self.config.image_size), features=self.decode_features(latents)
        )

    # ------------------------------------------------------------------ training

    def draw_scales(self) -> Tensor:
        """`(S,)` of ones; with the chance `scale_drop`, one of them, not the first, is 0."""
        scales = torch.arange(len(self.config.scales))
        dropped = torch.randint(1, max(len(scales), 2), ())
        return 1.0 - ((scales == dropped) & (torch.rand(()) < self.config.scale_drop)).float()

    def forward(
        self, pixel_values: Tensor, teacher_features: Tensor | None = None, keep_scales: Tensor | None = None
    ) -> ImageTokenizerOutput:
        """
        One training pass (section 3.2).

        Args:
            pixel_values: `(B, 3, H, W)` in [-1, 1].
            teacher_features: the frozen teacher's patch features `(B, G, F)`: CLIP's behind the last norm and the
                projection, SigLIP's before the last layer.
            keep_scales: `(S,)` of 0 and 1, which scales count; drawn in training where None.

        Returns:
            losses `reconstruction_loss` (L2), `codebook_loss`, `commitment_loss`, `entropy_loss` where it has a weight,
            and `semantic_loss` (1 - cosine) where features are given. The perceptual and the adversarial term are the
            trainer's.
        """
        if keep_scales is None and self.training:
            keep_scales = self.draw_scales().to(self.device)
        encoded = self.encode(pixel_values, keep_scales=keep_scales)
        decoded = self.decode(encoded.latents)
        losses = {"reconstruction_loss": F.mse_loss(decoded.sample, pixel_values), **encoded.losses}
        if teacher_features is not None:
            similarity = teacher_similarity(decoded.features, teacher_features)
            losses["semantic_loss"] = self.config.feature_weight * (1 - similarity).mean()
        return ImageTokenizerOutput(sum(losses.values()), losses, decoded.sample, encoded.token_ids, decoded.features)
