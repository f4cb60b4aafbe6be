"""
DetailFlow (arXiv 2505.21473): a causal ViT writes tokens from coarse to fine, another draws as many as there are.

Shape suffixes in comments: B images, P patches, N tokens, D width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..layers.attention import Mlp
from ..layers.block_causal import block_causal_mask
from ..layers.losses import teacher_similarity
from ..layers.patches import patchify, unpatchify
from ..layers.positions import PositionTable
from ..layers.quantizers import VectorQuantizer
from ..layers.separate_attention import SeparateAttention
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput
from .configuration_detailflow import DetailFlowConfig


class SiglipBlock(GradientCheckpointingLayer):
    """SigLIP2's layer: pre-norm, separate q, k and v, tanh GELU."""

    def __init__(self, dim: int, mlp_dim: int, num_heads: int, eps: float, config: DetailFlowConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attn = SeparateAttention(dim, num_heads, config=config)
        self.mlp = Mlp(dim, mlp_dim, approximate="tanh")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`(B, M, D)` to the same."""
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class DetailFlowEncoder(nn.Module):
    """Patches, then tokens that see the patches and the blocks before them."""

    def __init__(self, config: DetailFlowConfig) -> None:
        super().__init__()
        width, self.config = config.encoder_hidden_size, config
        self.embed = nn.Linear(config.encoder_patch_size**2 * config.num_channels, width)
        self.positions = PositionTable(config.encoder_positions, width, config.initializer_range)
        self.latent_tokens = nn.Parameter(torch.empty(config.num_latent_tokens, width))
        self.refined_tokens = nn.Parameter(torch.empty(config.num_latent_tokens, width))
        self.latent_position_embedding = nn.Parameter(torch.empty(config.num_latent_tokens, width))
        self.layers = nn.ModuleList(
            SiglipBlock(
                width, config.encoder_intermediate_size, config.encoder_num_heads, config.layer_norm_eps, config
            )
            for _ in range(config.encoder_num_layers)
        )
        self.norm_post = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.config.initializer_range)

    def forward(self, pixels: Tensor, count: int, given: Tensor | None = None) -> Tensor:
        """
        Args:
            pixels: `(B, 3, H, W)`.
            count: number of tokens n.
            given: first inputs of a correction pass, `(B, m, D)`; the rest starts from `refined_tokens`.

        Returns:
            `(B, n, D)`.
        """
        patch = self.config.encoder_patch_size
        patches = self.embed(patchify(pixels, patch))
        patches = patches + self.positions(pixels.shape[2] // patch, pixels.shape[3] // patch)
        if given is None:
            tokens = self.latent_tokens[:count].expand(len(pixels), -1, -1)
        else:
            tail = self.refined_tokens[given.shape[1] : count].expand(len(pixels), -1, -1)
            tokens = torch.cat([given, tail], 1)
        x = torch.cat([patches, tokens + self.latent_position_embedding[:count]], 1)
        mask = None
        if self.config.causal_encoder:
            mask = block_causal_mask([patches.shape[1], *self.config.blocks(count)], x.device)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm_post(x[:, patches.shape[1] :])


class DetailFlowDecoder(nn.Module):
    """One mask token per patch of the wanted picture, and the tokens behind them."""

    def __init__(self, config: DetailFlowConfig) -> None:
        super().__init__()
        width, self.config = config.decoder_hidden_size, config
        self.mask_token = nn.Parameter(torch.empty(width))
        self.positions = PositionTable(config.decoder_positions, width, config.initializer_range)
        self.latent_position_embedding = nn.Parameter(torch.empty(config.num_latent_tokens, width))
        self.layers = nn.ModuleList(
            SiglipBlock(
                width, config.decoder_intermediate_size, config.decoder_num_heads, config.layer_norm_eps, config
            )
            for _ in range(config.decoder_num_layers)
        )
        self.norm_post = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = nn.Linear(width, config.decoder_patch_size**2 * config.num_channels)

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.config.initializer_range)

    def forward(self, tokens: Tensor, token_mask: Tensor | None, rows: int, columns: int) -> Tensor:
        """`(B, n, D)` to pixels `(B, 3, rows * patch, columns * patch)`."""
        batch, count = tokens.shape[:2]
        image = (self.mask_token + self.positions(rows, columns)).expand(batch, -1, -1)
        x = torch.cat([image, tokens + self.latent_position_embedding[:count]], 1)
        mask = None
        if token_mask is not None:
            seen = token_mask.new_ones(batch, rows * columns)
            mask = torch.cat([seen, token_mask], 1)[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        patches = self.head(self.norm_post(x[:, : rows * columns]))
        return unpatchify(patches, rows, columns, self.config.decoder_patch_size)


@dataclass
class CorrectionStreams:
    """
    What self-correction training of the prior needs (section 3.4), all `(B, N)` but the last.

    Args:
        ids_clean: ids of the images.
        ids_input: what the prior reads: clean ids, wrong ones in one place, ids that correct them.
        ids_label: what it has to write: the same with clean ids in that place.
        codes: rows of the codebook for `ids_input`, `(B, N, D)`.
    """

    ids_clean: Tensor
    ids_input: Tensor
    ids_label: Tensor
    codes: Tensor


class DetailFlowModel(PreTrainedImageTokenizer):
    """
    Images in [-1, 1] to `num_latent_tokens` ids, coarse to fine, and back from any number of whole blocks.

    The first k tokens hold a picture of `config.picture_size(k)` pixels: `decode` gives that size unless `image_size`
    asks for another. A picture smaller than `config.image_size` is encoded with as many tokens as it can fill.
    """

    config: DetailFlowConfig
    mask_mode = "attention"
    teacher_inputs = {"teacher_pooled": "mean"}
    _no_split_modules = ["SiglipBlock"]

    def __init__(self, config: DetailFlowConfig) -> None:
        super().__init__(config)
        self.encoder = DetailFlowEncoder(config)
        self.quant_proj = nn.Linear(config.encoder_hidden_size, config.codebook_dim)
        self.quantize = VectorQuantizer(
            config.codebook_size,
            config.codebook_dim,
            l2_norm=config.codebook_l2_norm,
            commitment_cost=config.commitment_cost,
            entropy_cost=config.entropy_loss_ratio,
        )
        self.refine_proj = nn.Linear(config.codebook_dim, config.encoder_hidden_size)
        self.post_quant_proj = nn.Linear(config.codebook_dim, config.decoder_hidden_size)
        self.decoder = DetailFlowDecoder(config)
        hidden = config.global_hidden_size
        self.global_head = nn.Sequential(
            nn.Linear(config.codebook_dim, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, config.global_dim),
        )
        self.post_init()

    @property
    def num_tokens(self) -> int:
        """Tokens of a picture of `config.image_size`."""
        return self.config.num_latent_tokens

    @property
    def latent_dim(self) -> int:
        """Width of codes."""
        return self.config.codebook_dim

    @property
    def is_prefix_ordered(self) -> bool:
        """Any number of whole blocks is a picture."""
        return True

    @property
    def valid_num_tokens(self) -> list[int]:
        """1 to `num_causal_tokens`, then multiples of `group_size`."""
        return self.config.valid_num_tokens

    def _check_image_size(self, height: int, width: int) -> None:
        largest, patch = self.config.image_size, self.config.encoder_patch_size
        if height != width or height % patch or not 0 < height <= largest:
            raise ValueError(
                f"{type(self).__name__} takes square images up to {largest} x {largest} pixels in steps of {patch}, "
                f"got {height} x {width}."
            )

    # ------------------------------------------------------------------ encode

    def _rows(self) -> Tensor:
        every = torch.arange(self.config.codebook_size, device=self.device)
        return self.quantize.indices_to_latents(every).float()

    def _normal(self, latents: Tensor) -> Tensor:
        return F.normalize(latents.float(), dim=-1) if self.config.codebook_l2_norm else latents.float()

    def _encode(self, pixel_values: Tensor, num_tokens: int | Tensor | None = None) -> ImageTokenizerEncoderOutput:
        config, side = self.config, pixel_values.shape[2]
        if num_tokens is None and side < config.image_size:
            num_tokens = config.tokens_for_size(side)
        hidden = self.encoder(pixel_values, config.num_latent_tokens)
        pre_quant = self.quant_proj(hidden)
        output = self.quantize(pre_quant)
        encoded = ImageTokenizerEncoderOutput(
            latents=output.quantized.to(pre_quant.dtype),
            token_ids=output.indices,
            pre_quant=pre_quant,
            features=hidden,
            loss=output.loss,
            losses=output.losses,
        )
        return self._keep_first(encoded, num_tokens)

    # ------------------------------------------------------------------ decode

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """Rows of the codebook, `(B, N, D)`, of unit length where `codebook_l2_norm`."""
        return self.quantize.indices_to_latents(token_ids)

    def _grid(self, num_tokens: int, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
        if image_size is None:
            image_size = self.config.picture_size(num_tokens)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        patch = self.config.decoder_patch_size
        if height % patch or width % patch or min(height, width) < patch:
            raise ValueError(f"image_size must be a multiple of {patch}, got {image_size}.")
        return height // patch, width // patch

    def _decode(
        self, latents: Tensor, token_mask: Tensor | None = None, image_size: int | tuple[int, int] | None = None
    ) -> ImageTokenizerDecoderOutput:
        tokens = self.post_quant_proj(latents)
        return ImageTokenizerDecoderOutput(self.decoder(tokens, token_mask, *self._grid(latents.shape[1], image_size)))

    def global_features(self, latents: Tensor) -> Tensor:
        """What training aligns with a vision model's mean feature: the first token through an MLP, `(B, F)`."""
        return self.global_head(latents[:, 0].to(self.dtype))

    # ------------------------------------------------------------------ training

    def correction_streams(
        self, pixel_values: Tensor, start: int, choice: Tensor | None = None, generator: torch.Generator | None = None
    ) -> CorrectionStreams:
        """
        Puts wrong ids in one place and encodes how the tokens behind it make up for them (section 3.4).

        Args:
            pixel_values: `(B, 3, H, W)` of `config.image_size`.
            start: the place: a token before `num_causal_tokens`, or the first token of a group.
            choice: which of the `refine_candidates` nearest codes takes an id's place, int64 `(B, N)` from 0; drawn
                where None.
            generator: random generator of that draw.
        """
        config = self.config
        length = 1 if start < config.num_causal_tokens else config.group_size
        end = start + length
        if start < 0 or end > config.num_latent_tokens or start % length:
            raise ValueError(f"start={start} is no token before {config.num_causal_tokens} and no start of a group.")
        encoded = self.encode(pixel_values)
        clean = encoded.token_ids
        candidates = min(config.refine_candidates, config.codebook_size)
        if choice is None:
            choice = torch.randint(candidates, clean.shape, generator=generator).to(clean.device)
        near = self._normal(encoded.pre_quant[:, start:end]) @ self._rows().t()
        if not config.codebook_l2_norm:
            near = 2 * near - self._rows().square().sum(1)
        near = near.topk(candidates, dim=-1).indices  # (B, length, candidates)
        noisy = near.gather(2, choice[:, start:end, None])[..., 0]
        first = torch.cat([clean[:, :start], noisy], 1)
        given = self.refine_proj(self.get_codebook_entry(first))
        hidden = self.encoder(pixel_values.to(self.dtype), config.num_latent_tokens, given)
        corrected = self.quantize(self.quant_proj(hidden)).indices[:, end:]
        ids_input = torch.cat([first, corrected], 1)
        ids_label = torch.cat([clean[:, :end], corrected], 1)
        return CorrectionStreams(clean, ids_input, ids_label, self.get_codebook_entry(ids_input))

    def _coarse_target(self, pixel_values: Tensor, num_tokens: int) -> Tensor:
        """The picture that `num_tokens` tokens should give: the image without finer detail."""
        size = self.config.target_size(num_tokens)
        small = F.interpolate(pixel_values, size=(size, size), mode="area")
        side = self.config.picture_size(num_tokens)
        return F.interpolate(small, size=(side, side), mode="bicubic", align_corners=False)

    def forward(
        self,
        pixel_values: Tensor,
        teacher_pooled: Tensor | None = None,
        num_tokens: int | None = None,
        correct_from: int | None = None,
        **kwargs: Any,
    ) -> ImageTokenizerOutput:
        """
        One training pass (section 3).

        Args:
            pixel_values: `(B, 3, H, W)` in [-1, 1].
            teacher_pooled: a frozen vision model's mean feature `(B, global_dim)` (SigLIP2).
            num_tokens: decode so many tokens against the image without finer detail. In training, where None, a share
                of `config.coarse_share` batches draws a number.
            correct_from: a place as `start` of [`correction_streams`]: also decode a corrected sequence.

        Returns:
            losses `reconstruction_loss` (L2), `commitment_loss`, `codebook_loss`, `entropy_loss`, `global_loss`
            (negative cosine) and `correction_loss`. The perceptual and the adversarial term are the trainer's.
        """
        encoded = self.encode(pixel_values, **kwargs)
        if num_tokens is None and self.training and float(torch.rand(())) < self.config.coarse_share:
            valid = self.valid_num_tokens
            num_tokens = valid[int(torch.randint(len(valid), ()))]
        latents, target = encoded.latents, pixel_values
        if num_tokens is not None:
            self._check_num_tokens(num_tokens)
            latents, target = latents[:, :num_tokens], self._coarse_target(pixel_values, num_tokens)
        sample = self.decode(latents, None if num_tokens is not None else encoded.token_mask).sample
        losses = {"reconstruction_loss": F.mse_loss(sample, target), **encoded.losses}
        if teacher_pooled is not None:
            similarity = teacher_similarity(self.global_features(encoded.latents), teacher_pooled)
            losses["global_loss"] = -self.config.global_weight * similarity.mean()
        if correct_from is not None:
            losses["correction_loss"] = self._correction_loss(pixel_values, correct_from)
        return ImageTokenizerOutput(sum(losses.values()), losses, sample, encoded.token_ids)

    def _correction_loss(self, pixel_values: Tensor, start: int) -> Tensor:
        """Reconstruction from a sequence with wrong ids in one place and corrected ones behind it."""
        length = 1 if start < self.config.num_causal_tokens else self.config.group_size
        codes = self.correction_streams(pixel_values, start).codes[:, : start + length].detach()
        hidden = self.encoder(pixel_values, self.config.num_latent_tokens, self.refine_proj(codes))
        output = self.quantize(self.quant_proj(hidden))
        latents = torch.cat([codes, output.quantized[:, start + length :]], 1)
        return F.mse_loss(self.decode(latents).sample, pixel_values) + output.loss
