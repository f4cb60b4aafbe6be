"""FQGAN (arXiv 2411.16681): a VQGAN whose features go through two or three heads, each with a codebook of its own."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..layers.attention import TransformerBlock
from ..layers.conv_codec import flatten_grid, unflatten_grid
from ..layers.conv_codec_taming import TamingDecoder, TamingEncoder
from ..layers.quantizers import QuantizerOutput, VectorQuantizer
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput
from .configuration_fqgan import FQGANConfig


class PositionedBlocks(nn.Module):
    """Learned positions, LayerNorm, transformer blocks, LayerNorm; with a class token in front where wanted."""

    def __init__(self, config: FQGANConfig, count: int, width: int, layers: int, heads: int, class_token: bool) -> None:
        super().__init__()
        self.initializer_range = config.initializer_range
        self.class_embedding = nn.Parameter(torch.empty(1, width)) if class_token else None
        self.position_embedding = nn.Parameter(torch.empty(count + class_token, width))
        self.norm_pre = nn.LayerNorm(width)
        self.layers = nn.ModuleList(TransformerBlock(width, heads, 4 * width, config=config) for _ in range(layers))
        self.norm_post = nn.LayerNorm(width)

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.initializer_range)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, N, D)` to `(B, N, D)`, or `(B, 1 + N, D)` with a class token."""
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], 1)
        x = self.norm_pre(x + self.position_embedding)
        for layer in self.layers:
            x = layer(x)
        return self.norm_post(x)


class FactorizedHead(nn.Module):
    """Trunk features to one codebook's latents: adapter, norm, two convolutions (section 3.1)."""

    def __init__(self, config: FQGANConfig) -> None:
        super().__init__()
        width, grid = config.hidden_channels * config.encoder_channel_mult[-1], config.grid_size
        self.adapter = PositionedBlocks(
            config, grid * grid, width, config.adapter_num_layers, config.adapter_num_heads, class_token=False
        )
        self.norm_out = nn.GroupNorm(config.norm_num_groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.z_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, C, h, w)` to `(B, D, h, w)`."""
        x = unflatten_grid(self.adapter(flatten_grid(features)), *features.shape[2:])
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(x))))


class FeaturePredictor(nn.Module):
    """Predicts a teacher's features from the codes of a semantic codebook (section 3.2); token 0 is the class token."""

    def __init__(self, config: FQGANConfig, width: int) -> None:
        super().__init__()
        self.upscale = nn.Sequential(nn.Linear(config.codebook_dim, width), nn.ReLU(), nn.Linear(width, width))
        self.blocks = PositionedBlocks(
            config, config.grid_size**2, width, config.feature_num_layers, config.feature_num_heads, class_token=True
        )

    def forward(self, codes: Tensor) -> Tensor:
        """`(B, N, D)` to `(B, 1 + N, F)`."""
        return self.blocks(self.upscale(codes))


class FQGANModel(PreTrainedImageTokenizer):
    """
    Images `(B, 3, H, W)` in [-1, 1] to ids `(B, N, C)` in raster order, and back.

    The codebooks are (visual, semantic), or (visual, mid-level, high-level semantic); `latents` are their codes side
    by side on channels, in this order. `predict_features` gives the teachers' features from them.
    """

    config: FQGANConfig
    latent_layout = "grid"
    teacher_inputs = {"teacher_features": "pooled"}
    _no_split_modules = ["TransformerBlock", "ResidualBlock", "GridAttention"]

    def __init__(self, config: FQGANConfig) -> None:
        super().__init__(config)
        options = {"groups": config.norm_num_groups, "dropout": config.dropout}
        channels, width = config.num_channels, config.hidden_channels
        self.encoder = TamingEncoder(
            channels, width, config.encoder_channel_mult, config.num_res_blocks, None, **options
        )
        self.heads = nn.ModuleList(FactorizedHead(config) for _ in range(config.num_codebooks))
        self.quantizers = nn.ModuleList(
            VectorQuantizer(
                config.codebook_size,
                config.codebook_dim,
                l2_norm=True,
                commitment_cost=config.commitment_cost,
                entropy_cost=config.entropy_loss_ratio,
            )
            for _ in range(config.num_codebooks)
        )
        self.feature_predictors = nn.ModuleList(FeaturePredictor(config, size) for size in config.feature_sizes)
        self.post_quant_conv = nn.Conv2d(self.latent_dim, config.z_channels, 1)
        self.decoder = TamingDecoder(
            channels, width, config.decoder_channel_mult, config.num_res_blocks, config.z_channels, **options
        )
        self.post_init()

    @property
    def num_tokens(self) -> int:
        """Positions of a picture."""
        return self.config.grid_size**2

    @property
    def latent_dim(self) -> int:
        """Width of all codes of a position together."""
        return self.config.codebook_dim * self.config.num_codebooks

    @property
    def num_teachers(self) -> int:
        """One for each semantic codebook."""
        return len(self.feature_predictors)

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        features = self.encoder(pixel_values)
        pre_quant = [head(features) for head in self.heads]
        outputs = self.quantize_all(pre_quant)
        latents = torch.cat([output.quantized for output in outputs], -1)
        losses = {f"{name}_{i}": value for i, output in enumerate(outputs) for name, value in output.losses.items()}
        return ImageTokenizerEncoderOutput(
            latents=unflatten_grid(latents, *features.shape[2:]),
            token_ids=torch.stack([output.indices for output in outputs], -1),
            pre_quant=torch.cat(pre_quant, 1),
            loss=sum(losses.values()),
            losses=losses,
        )

    def quantize_all(self, pre_quant: list[Tensor]) -> list[QuantizerOutput]:
        """
        Each codebook's quantizer.

        Args:
            pre_quant: one grid `(B, D, h, w)` per codebook.

        Returns:
            sequences `(B, N, D)`; losses `codebook_loss`, `commitment_loss` and, in training mode, `entropy_loss`,
            weighted.
        """
        return [quantizer(flatten_grid(grid)) for grid, quantizer in zip(pre_quant, self.quantizers, strict=True)]

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """Rows of the codebooks, `(B, N, C, D)`, of unit length."""
        rows = [quantizer.indices_to_latents(token_ids[..., i]) for i, quantizer in enumerate(self.quantizers)]
        return torch.stack(rows, 2)

    def _ids_to_latents(self, token_ids: Tensor) -> Tensor:
        return unflatten_grid(
            self.get_codebook_entry(token_ids).flatten(2), self.config.grid_size, self.config.grid_size
        )

    def predict_features(self, latents: Tensor) -> list[Tensor]:
        """The teachers' features of latents `(B, D, h, w)`, one `(B, 1 + N, F)` per semantic codebook."""
        codes = flatten_grid(latents).split(self.config.codebook_dim, -1)[1:]
        return [predict(code) for predict, code in zip(self.feature_predictors, codes, strict=False)]

    def _decode(self, latents: Tensor, token_mask: Tensor | None = None) -> ImageTokenizerDecoderOutput:
        sample = self.decoder(self.post_quant_conv(latents.to(self.post_quant_conv.weight.dtype)))
        return ImageTokenizerDecoderOutput(sample=sample)

    def disentangle_loss(self, latents: Tensor) -> Tensor:
        """Mean squared cosine between the codes of a position, averaged over the pairs of codebooks, weighted."""
        codes = flatten_grid(latents).split(self.config.codebook_dim, -1)
        pairs = [(a * b).sum(-1).square().mean() for a, b in itertools.combinations(codes, 2)]
        return self.config.disentangle_weight * sum(pairs) / len(pairs)

    def feature_loss(self, latents: Tensor, teacher_features: list[Tensor]) -> Tensor:
        """
        Contrastive loss over the batch between predicted and real class-token features, weighted.

        Args:
            latents: `(B, D, h, w)`.
            teacher_features: one `(B, F)` per semantic codebook.

        Raises:
            ValueError: where there is another number of them, or one has another width.
        """
        total, sizes = latents.new_zeros(()), [(len(latents), size) for size in self.config.feature_sizes]
        if [tuple(real.shape) for real in teacher_features] != sizes:
            shapes = [tuple(real.shape) for real in teacher_features]
            raise ValueError(f"teacher_features must be a list of tensors of the shapes {sizes}, got {shapes}.")
        for predicted, real in zip(self.predict_features(latents), teacher_features, strict=True):
            scores = F.normalize(predicted[:, 0], dim=-1) @ F.normalize(real, dim=-1).t()
            total = total + F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))
        return self.config.feature_weight * total

    def forward(self, pixel_values: Tensor, teacher_features: list[Tensor] | None = None) -> ImageTokenizerOutput:
        """
        One training pass.

        Args:
            pixel_values: `(B, 3, H, W)` in [-1, 1].
            teacher_features: class-token features of the teachers, one `(B, F)` per semantic codebook.

        Returns:
            losses `reconstruction_loss` (L2), each codebook's quantizer terms, `disentangle_loss`, and `feature_loss`
            where features are given.
        """
        encoded = self.encode(pixel_values)
        sample = self.decode(encoded.latents).sample
        losses = {
            "reconstruction_loss": F.mse_loss(sample, pixel_values),
            **encoded.losses,
            "disentangle_loss": self.disentangle_loss(encoded.latents),
        }
        if teacher_features is not None:
            losses["feature_loss"] = self.feature_loss(encoded.latents, teacher_features)
        return ImageTokenizerOutput(sum(losses.values()), losses, sample, encoded.token_ids)
