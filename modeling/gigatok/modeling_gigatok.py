"""
GigaTok (arXiv 2504.08736): a convolutional codec, and between its two halves transformers that turn a grid into tokens.

Shape suffixes in comments: B images, G grid positions, N tokens, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..layers.conv_codec import flatten_grid, unflatten_grid
from ..layers.conv_codec_adaptive import AdaptiveTamingDecoder
from ..layers.conv_codec_taming import TamingEncoder
from ..layers.losses import teacher_similarity
from ..layers.quantizers import QuantizerOutput, VectorQuantizer
from ..layers.query_block import QueryBlock
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput
from .configuration_gigatok import GigaTokConfig


def multi_level_queries(memory: Tensor, grid_size: int, num_queries: int) -> Tensor:
    """
    Averages of a grid over ever smaller blocks: one block twice, then 2, 4, ... `num_queries` / 2 (section 3.1).

    Args:
        memory: `(B, G, D)`.
        grid_size: rows and columns of the grid.
        num_queries: a power of two.

    Returns:
        `(B, num_queries, D)`, coarse to fine, blocks in raster order.
    """
    grid = unflatten_grid(memory, grid_size, grid_size)
    levels = [flatten_grid(grid.mean((2, 3), keepdim=True))]
    for level in range(num_queries.bit_length() - 1):
        rows, columns = 2 ** (level // 2), 2 ** ((level + 1) // 2)
        levels.append(flatten_grid(F.avg_pool2d(grid, (grid_size // rows, grid_size // columns))))
    return torch.cat(levels, 1)


class TokenTransformer(nn.Module):
    """
    What both transformers share: the embedding of what they read, both tables of positions, the layers.

    Args:
        config: of the model.
        width, num_layers, num_heads: of the layers.
        num_redundant: positions of redundant tokens (ReToK).
    """

    def __init__(self, config: GigaTokConfig, width: int, num_layers: int, num_heads: int, num_redundant: int) -> None:
        super().__init__()
        self.initializer_range, self.grid_size = config.initializer_range, config.grid_size
        self.norm_pre = nn.LayerNorm(config.z_channels)
        self.embed = nn.Linear(config.z_channels, width)
        self.position_embedding = nn.Parameter(torch.empty(config.grid_size**2, width))
        self.latent_position_embedding = self.redundant_position_embedding = None
        if config.layout == "1d":
            self.latent_position_embedding = nn.Parameter(torch.empty(config.num_latent_tokens, width))
        if num_redundant:
            self.redundant_position_embedding = nn.Parameter(torch.empty(num_redundant, width))
        cross = config.layout == "1d" or config.grid_cross_attention
        self.layers = nn.ModuleList(
            QueryBlock(width, num_heads, 4 * width, cross_attention=cross, config=config) for _ in range(num_layers)
        )
        self.norm_post = nn.LayerNorm(width)

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.initializer_range)

    def latent_positions(self) -> Tensor:
        """`(N + redundant, D)`."""
        extra = self.redundant_position_embedding
        table = self.latent_position_embedding
        return table if extra is None else torch.cat([table, extra])


class GigaTokEncoder(TokenTransformer):
    """Features of the convolutional encoder to tokens."""

    def __init__(self, config: GigaTokConfig) -> None:
        width, redundant = config.encoder_hidden_size, config.num_redundant_tokens
        super().__init__(config, width, config.encoder_num_layers, config.encoder_num_heads, redundant)
        self.query_init, self.num_queries = config.query_init, config.num_latent_tokens
        self.num_redundant, self.latent_tokens = config.num_redundant_tokens, None
        if config.layout == "1d" and config.query_init == "learned":
            self.latent_tokens = nn.Parameter(torch.empty(config.num_latent_tokens, width))
        elif config.layout == "1d":
            self.query_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, config.z_channels)

    def queries(self, memory: Tensor) -> Tensor:
        """Embedded features `(B, G, D)` to the first state of the tokens, `(B, N + redundant, D)`."""
        if self.latent_tokens is not None:
            queries = self.latent_tokens.expand(len(memory), -1, -1)
        elif self.query_init == "mean":
            queries = self.query_proj(memory.mean(1, keepdim=True)).expand(-1, self.num_queries, -1)
        else:
            queries = self.query_proj(multi_level_queries(memory, self.grid_size, self.num_queries))
        return torch.cat([queries, queries[:, self.num_queries - self.num_redundant :]], 1)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, z, h, w)` to `(B, N, z)`."""
        memory = self.embed(self.norm_pre(flatten_grid(features)))
        grid = self.position_embedding
        if self.latent_position_embedding is None:
            x = memory
            for layer in self.layers:
                x = layer(x, x, grid, grid)
        else:
            x, positions = self.queries(memory), self.latent_positions()
            for layer in self.layers:
                x = layer(x, memory, positions, grid)
        return self.proj(self.norm_post(x))


class GigaTokDecoder(TokenTransformer):
    """Tokens to features of the convolutional decoder, and to the features that training aligns."""

    def __init__(self, config: GigaTokConfig) -> None:
        width, redundant = config.decoder_hidden_size, config.num_redundant_tokens * config.redundant_decoder
        super().__init__(config, width, config.decoder_num_layers, config.decoder_num_heads, redundant)
        self.conv_out = nn.Conv2d(width, config.z_channels, 3, padding=1)
        self.alignment_depth = config.alignment_depth
        if config.alignment_depth is not None:
            self.alignment_head = nn.Sequential(
                nn.Linear(width, 4 * width),
                nn.SiLU(),
                nn.Linear(4 * width, 4 * width),
                nn.SiLU(),
                nn.Linear(4 * width, config.alignment_dim),
            )

    def states(self, tokens: Tensor, token_mask: Tensor | None = None, depth: int | None = None) -> Tensor:
        """Tokens `(B, n, z)` to the state of the grid `(B, G, D)` after `depth` layers (all where None)."""
        memory, grid = self.embed(self.norm_pre(tokens)), self.position_embedding
        layers = self.layers[:depth]
        if self.latent_position_embedding is None:
            x = memory
            for layer in layers:
                x = layer(x, x, grid, grid)
            return x
        positions = self.latent_positions()[: memory.shape[1]]
        if token_mask is not None:  # the first token starts the queries: it is always there
            first = torch.arange(token_mask.shape[1], device=token_mask.device) == 0
            token_mask = (token_mask | first)[:, None, None]
        x = memory[:, :1].expand(-1, self.grid_size**2, -1)
        for layer in layers:
            x = layer(x, memory, grid, positions, token_mask)
        return x

    def alignment(self, tokens: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """`(B, n, z)` to `(B, G, alignment_dim)`."""
        return self.alignment_head(self.states(tokens, token_mask, self.alignment_depth))

    def forward(self, tokens: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """`(B, n, z)` to `(B, z, h, w)`."""
        x = self.norm_post(self.states(tokens, token_mask))
        # contiguous: torch's GroupNorm loses precision (1e-3 at the end of this decoder) on channels-last maps
        return self.conv_out(unflatten_grid(x, self.grid_size, self.grid_size).contiguous())


class GigaTokModel(PreTrainedImageTokenizer):
    """
    Images `(B, 3, H, W)` in [-1, 1] to ids and back.

    The 1-D layout has latents `(B, N, D)`; a masked token leaves the decoder's attention, but for the first, from which
    the picture's queries start. The 2-D layout has latents `(B, D, h, w)` and needs all of them.
    """

    config: GigaTokConfig
    teacher_inputs = {"teacher_features": "patches"}
    _no_split_modules = ["ResidualBlock", "GridAttention", "QueryBlock"]

    def __init__(self, config: GigaTokConfig) -> None:
        super().__init__(config)
        options = {"attention": config.conv_attention, "groups": config.norm_num_groups, "dropout": config.dropout}
        sizes = (config.num_res_blocks, config.z_channels)
        channels, width = config.num_channels, config.hidden_channels
        self.encoder = TamingEncoder(channels, width, config.encoder_channel_mult, *sizes, **options)
        self.token_encoder = GigaTokEncoder(config)
        self.quant_proj = nn.Linear(config.z_channels, config.codebook_dim)
        self.quantize = VectorQuantizer(
            config.codebook_size,
            config.codebook_dim,
            l2_norm=config.codebook_l2_norm,
            commitment_cost=config.commitment_cost,
            entropy_cost=config.entropy_loss_ratio,
            rotation_trick=config.rotation_trick,
        )
        self.post_quant_proj = nn.Linear(config.codebook_dim, config.z_channels)
        self.token_decoder = GigaTokDecoder(config)
        self.decoder = AdaptiveTamingDecoder(
            channels,
            width,
            config.decoder_channel_mult,
            *sizes,
            adaptive_norm=config.adaptive_norm,
            depth_to_space=config.depth_to_space,
            **options,
        )
        self.post_init()

    @property
    def latent_layout(self) -> str:
        """ "sequence" for 1-D tokens, "grid" for 2-D ones."""
        return "sequence" if self.config.layout == "1d" else "grid"

    @property
    def mask_mode(self) -> str:
        """ "attention" for 1-D tokens, "none" for 2-D ones."""
        return "attention" if self.config.layout == "1d" else "none"

    @property
    def num_tokens(self) -> int:
        """Tokens of one image."""
        return self.config.num_latent_tokens if self.config.layout == "1d" else self.config.grid_size**2

    @property
    def latent_dim(self) -> int:
        """Width of codes."""
        return self.config.codebook_dim

    # ------------------------------------------------------------------ encode

    def encode_features(self, features: Tensor) -> tuple[Tensor, QuantizerOutput]:
        """Features of the convolutional encoder `(B, z, h, w)` to tokens before `(B, N, D)` and after the quantizer."""
        pre_quant = self.quant_proj(self.token_encoder(features))
        return pre_quant, self.quantize(pre_quant)

    def _layout(self, sequence: Tensor) -> Tensor:
        if self.config.layout == "1d":
            return sequence
        return unflatten_grid(sequence, self.config.grid_size, self.config.grid_size)

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        pre_quant, output = self.encode_features(self.encoder(pixel_values))
        return ImageTokenizerEncoderOutput(
            latents=self._layout(output.quantized.to(pre_quant.dtype)),
            token_ids=output.indices,
            pre_quant=self._layout(pre_quant),
            loss=output.loss,
            losses=output.losses,
        )

    # ------------------------------------------------------------------ decode

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """Rows of the codebook, `(B, N, D)`, of unit length where `codebook_l2_norm`."""
        return self.quantize.indices_to_latents(token_ids)

    def _ids_to_latents(self, token_ids: Tensor) -> Tensor:
        return self._layout(self.get_codebook_entry(token_ids))

    def _tokens(self, latents: Tensor) -> Tensor:
        sequence = latents if self.config.layout == "1d" else flatten_grid(latents)
        return self.post_quant_proj(sequence.to(self.post_quant_proj.weight.dtype))

    def decode_features(self, latents: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Latents, as for `decode`, to what the convolutional decoder takes, `(B, z, h, w)`."""
        return self.token_decoder(self._tokens(latents), token_mask)

    def alignment_features(self, latents: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """
        What training aligns with a vision model's patch features, `(B, h * w, alignment_dim)` (section 3.2).

        Raises:
            ValueError: where the checkpoint has no such head.
        """
        if self.config.alignment_depth is None:
            raise ValueError("This checkpoint has no alignment head (config.alignment_depth is None).")
        return self.token_decoder.alignment(self._tokens(latents), token_mask)

    def _decode(self, latents: Tensor, token_mask: Tensor | None = None) -> ImageTokenizerDecoderOutput:
        return ImageTokenizerDecoderOutput(sample=self.decoder(self.decode_features(latents, token_mask)))

    # ------------------------------------------------------------------ training

    def _alignment_loss(
        self, latents: Tensor, mask: Tensor | None, teacher_features: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        similarity = teacher_similarity(self.alignment_features(latents, mask), teacher_features).mean(1)
        return -(similarity if weights is None else similarity * weights).mean()

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        weights = {
            "alignment_loss": self.config.alignment_weight,
            "feature_reconstruction_loss": self.config.feature_reconstruction_weight,
        }
        return sum(weights.get(name, 1.0) * value for name, value in losses.items())

    def forward(
        self, pixel_values: Tensor, teacher_features: Tensor | None = None, auxiliary: bool = False
    ) -> ImageTokenizerOutput:
        """
        One training pass (section 3.2 and appendix).

        Args:
            pixel_values: `(B, 3, H, W)` in [-1, 1].
            teacher_features: a frozen vision model's patch features `(B, h * w, alignment_dim)` (DINOv2-B).
            auxiliary: add the two terms of the first steps, which tie both halves of the convolutional codec.

        Returns:
            losses `reconstruction_loss` (L2), the quantizer's, `alignment_loss` (negative cosine) where features are
            given, `feature_reconstruction_loss` and `direct_reconstruction_loss` where `auxiliary`. The perceptual and
            the adversarial term are the trainer's: they need other networks.
        """
        self._check_pixel_values(pixel_values)
        features = self.encoder(pixel_values)
        _, output = self.encode_features(features)
        latents = self._layout(output.quantized)
        decoded = self.decode_features(latents)
        sample = self.decoder(decoded)
        losses = {"reconstruction_loss": F.mse_loss(sample, pixel_values), **output.losses}
        if teacher_features is not None:
            losses["alignment_loss"] = self._alignment_loss(latents, None, teacher_features)
        if auxiliary:
            losses["feature_reconstruction_loss"] = F.mse_loss(decoded, features)
            losses["direct_reconstruction_loss"] = F.mse_loss(self.decoder(features), pixel_values)
        return ImageTokenizerOutput(self._total(losses), losses, sample, output.indices)
