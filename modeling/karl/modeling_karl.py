"""KARL (arXiv 2507.07995): one pass gives tokens and, for each, whether it is needed for a wanted error.

Shape suffixes in comments: B images, T latent tokens, G grid positions, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..layers.attention import TransformerBlock
from ..layers.conv_codec import MaskGitDecoder, MaskGitEncoder, flatten_grid, unflatten_grid
from ..layers.conv_codec_taming import TamingDecoder, TamingEncoder
from ..layers.posterior import DiagonalGaussian
from ..layers.quantizers import VectorQuantizer, nearest_code
from ..layers.sampling import Generators
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput
from .configuration_karl import KarlConfig

# Mean absolute errors that the condition token can ask for (appendix of the paper).
ERROR_BINS = (
    *(0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09, 0.1),
    *(0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.38),
)


class BaseVQGAN(nn.Module):
    """MAGE's VQGAN: features before its quantizer go in, the expected code comes out."""

    def __init__(self, config: KarlConfig) -> None:
        super().__init__()
        shape = (config.base_channels, config.base_channel_mult, config.base_num_res_blocks)
        latent = config.base_latent_channels
        self.encoder = MaskGitEncoder(config.num_channels, *shape, latent, num_mid_blocks=2)
        self.decoder = MaskGitDecoder(config.num_channels, *shape, latent, num_mid_blocks=2)
        self.codebook = nn.Embedding(config.base_codebook_size, latent)
        self.out_channels = config.base_codebook_size

    def codes(self) -> Tensor:
        """All rows of the codebook, `(K, C)`."""
        return self.codebook(torch.arange(self.codebook.num_embeddings, device=self.codebook.weight.device))

    def features(self, pixels: Tensor, noise: Tensor | None, sample: bool, generator: Generators) -> Tensor:
        """`(B, 3, H, W)` to `(B, C, h, w)`; it has no posterior."""
        return self.encoder(pixels)

    def draw(self, prediction: Tensor) -> Tensor:
        """Logits over codes `(B, K, h, w)` to pixels."""
        return self.decoder(torch.einsum("bkhw,kc->bchw", prediction.softmax(1), self.codes()))

    def prediction_losses(self, prediction: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Negative log-likelihood of the base ids, and the error of the expected code."""
        codes = self.codes()
        ids = nearest_code(flatten_grid(features), codes)
        expected = torch.einsum("bkn,kc->bnc", prediction.flatten(2).softmax(1), codes)
        return {
            "nll_loss": F.cross_entropy(prediction.flatten(2), ids, label_smoothing=0.1),
            "code_loss": F.mse_loss(expected, codes[ids].detach()),
        }


class BaseVAE(nn.Module):
    """MAR's KL autoencoder: a (scaled) posterior goes in, latents come out, which are decoded as they are."""

    def __init__(self, config: KarlConfig) -> None:
        super().__init__()
        shape = (config.base_channels, config.base_channel_mult, config.base_num_res_blocks)
        latent = config.base_latent_channels
        self.encoder = TamingEncoder(
            config.num_channels, *shape, 2 * latent, attention=config.base_attention, mid_attention=True
        )
        self.decoder = TamingDecoder(config.num_channels, *shape, latent, attention=False, mid_attention=True)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        self.scale, self.out_channels = config.base_scale, latent

    def features(self, pixels: Tensor, noise: Tensor | None, sample: bool, generator: Generators) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] to scaled latents `(B, C, h, w)`: the posterior's mode, or a draw."""
        dist = DiagonalGaussian.from_moments(self.quant_conv(self.encoder(pixels)), dim=1)
        return self.scale * (dist.sample(generator, noise) if sample or noise is not None else dist.mode())

    def draw(self, prediction: Tensor) -> Tensor:
        """Latents `(B, C, h, w)` to pixels. The authors do not undo the scale here."""
        return self.decoder(self.post_quant_conv(prediction))

    def prediction_losses(self, prediction: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Squared error of the latents."""
        return {"latent_loss": F.mse_loss(prediction, features.detach())}


class KarlEncoder(nn.Module):
    """Transformer over [condition, grid, latents] (section 3)."""

    def __init__(self, config: KarlConfig) -> None:
        super().__init__()
        width, patch = config.encoder_hidden_size, config.patch_size
        self.initializer_range = config.initializer_range
        self.patch_embed = nn.Conv2d(config.num_channels, width - config.base_latent_channels, patch, stride=patch)
        self.position_embedding = nn.Parameter(torch.empty(width, config.max_grid, config.max_grid))
        self.latent_tokens = nn.Parameter(torch.empty(config.max_tokens, width))
        self.error_embedding = nn.Embedding(len(ERROR_BINS), width)
        self.norm_pre = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            TransformerBlock(width, config.encoder_num_heads, 4 * width, config=config)
            for _ in range(config.encoder_num_layers)
        )

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in (self.position_embedding, self.latent_tokens):
            init.normal_(parameter, std=self.initializer_range)

    def grid_tokens(self, pixels: Tensor, features: Tensor) -> Tensor:
        """Patches beside base features, `(B, D, h, w)`."""
        return torch.cat([self.patch_embed(pixels), features], 1)

    def forward(self, grid: Tensor, max_error: Tensor, budget: int, budget_mask: Tensor | None = None) -> Tensor:
        """
        All states.

        Args:
            grid: `(B, D, h, w)`.
            max_error: `(B,)`, rounded up to a bin.
            budget: number of latent tokens.
            budget_mask: bool `(B, budget)`, False beyond an image's own budget.

        Returns:
            `(B, 1 + G + budget, D)`.
        """
        batch = grid.shape[0]
        bins = torch.tensor(ERROR_BINS, device=grid.device)
        condition = self.error_embedding(torch.bucketize(max_error, bins).clamp_max(len(ERROR_BINS) - 1))
        x = flatten_grid(grid + resize(self.position_embedding, *grid.shape[2:]))
        latents = self.latent_tokens[:budget].expand(batch, -1, -1)
        x = self.norm_pre(torch.cat([condition[:, None], x, latents], 1))
        mask = None
        if budget_mask is not None:
            seen = budget_mask.new_ones(batch, x.shape[1] - budget)
            mask = torch.cat([seen, budget_mask], 1)[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        return x


class KarlDecoder(nn.Module):
    """Transformer over [grid, latents]; returns what the base tokenizer draws, `(B, C, h, w)`."""

    def __init__(self, config: KarlConfig, out_channels: int) -> None:
        super().__init__()
        width = config.decoder_hidden_size
        self.initializer_range = config.initializer_range
        self.grid = config.image_size // config.patch_size
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(width, config.max_grid, config.max_grid))
        self.latent_position_embedding = nn.Parameter(torch.empty(config.max_tokens, width))
        self.embed = nn.Linear(config.token_size, width)
        self.norm_pre = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            TransformerBlock(width, config.decoder_num_heads, 4 * width, config=config)
            for _ in range(config.decoder_num_layers)
        )
        self.norm_post = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, out_channels))

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in (self.mask_token, self.position_embedding, self.latent_position_embedding):
            init.normal_(parameter, std=self.initializer_range)

    def forward(self, latents: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """`(B, T, D)` to `(B, C, h, w)`. A masked token is seen by nobody, so what it sees does not matter."""
        batch, count = latents.shape[:2]
        positions = flatten_grid(resize(self.position_embedding, self.grid, self.grid)[None])
        queries = (self.mask_token + positions).expand(batch, -1, -1)
        tokens = self.embed(latents) + self.latent_position_embedding[:count]
        x, mask = self.norm_pre(torch.cat([queries, tokens], 1)), None
        if token_mask is not None:
            seen = token_mask.new_ones(batch, queries.shape[1])
            mask = torch.cat([seen, token_mask], 1)[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        return unflatten_grid(self.head(self.norm_post(x[:, : queries.shape[1]])), self.grid, self.grid)


def resize(table: Tensor, height: int, width: int) -> Tensor:
    """A position table `(D, h, w)` by the nearest neighbour."""
    return F.interpolate(table[None], size=(height, width), mode="nearest")[0]


class KarlModel(PreTrainedImageTokenizer):
    """
    Images in [0, 1] to as many tokens as a wanted error needs, and back.

    `encode(pixels, num_tokens=256, max_error=0.05)`: `num_tokens` is a budget (one, or one per image as a LongTensor);
    `token_mask` says which tokens of it count, in any pattern; `token_mask.sum(1)` approximates the image's Kolmogorov
    complexity.
    """

    config: KarlConfig
    mask_mode = "attention"
    encode_conditioning = ("max_error",)
    _no_split_modules = ["TransformerBlock", "ResidualBlock"]

    def __init__(self, config: KarlConfig) -> None:
        super().__init__(config)
        width = config.encoder_hidden_size
        self.base = BaseVQGAN(config) if config.base == "vqgan" else BaseVAE(config)
        self.encoder = KarlEncoder(config)
        self.norm_halt = nn.LayerNorm(width)
        self.halting_head = nn.Sequential(
            nn.Linear(width, config.halting_hidden_size), nn.Tanh(), nn.Linear(config.halting_hidden_size, 1)
        )
        self.norm_post = nn.LayerNorm(width)
        self.proj = nn.Linear(width, config.token_size)
        if config.quantize:
            self.quantize = VectorQuantizer(
                config.codebook_size,
                config.token_size,
                l2_norm=config.use_l2_norm,
                commitment_cost=config.commitment_cost,
            )
        self.image_decoder = KarlDecoder(config, self.base.out_channels)
        self.post_init()

    @property
    def is_discrete(self) -> bool:
        """False for continuous checkpoints."""
        return self.config.quantize

    @property
    def num_tokens(self) -> int:
        """The budget where none is asked for."""
        return self.config.default_budget

    @property
    def valid_num_tokens(self) -> range:
        """Budgets."""
        return range(1, self.config.max_tokens + 1)

    @property
    def latent_dim(self) -> int:
        """Width of a token."""
        return self.config.token_size

    def _budget(self, num_tokens: int | Tensor | None, batch: int) -> tuple[int, Tensor | None]:
        if not isinstance(num_tokens, Tensor):
            budget = self.config.default_budget if num_tokens is None else num_tokens
            self._check_num_tokens(budget)
            return budget, None
        if num_tokens.shape != (batch,) or num_tokens.is_floating_point():
            raise ValueError(f"num_tokens as a tensor must be integers of shape ({batch},), one budget per image.")
        for value in num_tokens.unique().tolist():
            self._check_num_tokens(value)
        budget = int(num_tokens.max())
        return budget, torch.arange(budget, device=self.device) < num_tokens.to(self.device)[:, None]

    def _errors(self, max_error: float | Tensor | None, batch: int) -> Tensor:
        if max_error is None:
            max_error = self.config.default_max_error
        errors = torch.as_tensor(max_error, dtype=torch.float32, device=self.device)
        if not bool((errors > 0).all()) or errors.numel() not in (1, batch):
            raise ValueError(f"max_error must be positive, one number or one per image ({batch}), got {max_error}.")
        return errors.flatten().expand(batch).contiguous()

    def halting_logits(self, states: Tensor) -> Tensor:
        """Logits of leaving a token out, `(B, T, 1)`, of the encoder's states of the latents."""
        return self.halting_head(self.norm_halt(states))

    def _encode(
        self,
        pixel_values: Tensor,
        num_tokens: int | Tensor | None = None,
        max_error: float | Tensor | None = None,
        sample_posterior: bool = False,
        generator: Generators = None,
        noise: Tensor | None = None,
    ) -> ImageTokenizerEncoderOutput:
        budget, budget_mask = self._budget(num_tokens, len(pixel_values))
        features = self.base.features(pixel_values, noise, sample_posterior, generator)
        grid = self.encoder.grid_tokens(pixel_values, features)
        states = self.encoder(grid, self._errors(max_error, len(pixel_values)), budget, budget_mask)[:, -budget:]
        output = self._tokens(states)
        output.token_mask = budget_mask
        if self.config.dynamic_halting:
            kept = self.halting_logits(states)[..., 0].sigmoid() <= self.config.halting_threshold
            output.token_mask = kept if budget_mask is None else kept & budget_mask
        return output

    def _tokens(self, states: Tensor) -> ImageTokenizerEncoderOutput:
        pre_quant = self.proj(self.norm_post(states))
        if not self.config.quantize:
            return ImageTokenizerEncoderOutput(latents=pre_quant, pre_quant=pre_quant)
        quantized = self.quantize(pre_quant)
        return ImageTokenizerEncoderOutput(
            latents=quantized.quantized,
            token_ids=quantized.indices,
            pre_quant=pre_quant,
            loss=quantized.loss,
            losses=quantized.losses,
        )

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """Rows of the codebook, `(B, T, D)`, of unit length where `use_l2_norm`."""
        return self.quantize.indices_to_latents(token_ids)

    def predict_base(self, latents: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """What the base tokenizer draws: logits over its codes `(B, K, h, w)` ("vqgan") or its latents ("vae")."""
        return self.image_decoder(latents.to(self.image_decoder.embed.weight.dtype), token_mask)

    def _decode(self, latents: Tensor, token_mask: Tensor | None = None) -> ImageTokenizerDecoderOutput:
        return ImageTokenizerDecoderOutput(sample=self.base.draw(self.predict_base(latents, token_mask)))

    def forward(
        self, pixel_values: Tensor, num_tokens: int | None = None, max_error: float | None = None
    ) -> ImageTokenizerOutput:
        """
        One training pass in its two phases (section 3.2).

        Args:
            pixel_values: `(B, 3, H, W)` in [0, 1].
            num_tokens: budget of the first phase; drawn in steps of 16 where None.
            max_error: what the first phase asks for; one of the five smallest bins where None.

        Returns:
            losses of both phases: the base tokenizer's (`nll_loss` and `code_loss`, or `latent_loss`),
            `reconstruction_loss` (L1), the quantizer's, and the second's `halting_loss`.
        """
        batch, full = len(pixel_values), self.config.default_budget
        count = num_tokens or min(full, 16 * int(torch.randint(1, max(full // 16, 1) + 1, ())))
        wanted = max_error or ERROR_BINS[int(torch.randint(5, ()))]
        features = self.base.features(pixel_values, None, False, None)
        grid = self.encoder.grid_tokens(pixel_values, features)
        first, states, sample, output = self._phase(grid, self._errors(wanted, batch), count, count, features)
        error = (sample - pixel_values).abs()
        measured = error.detach().mean((1, 2, 3))
        second, states, *_ = self._phase(grid, measured, full, count, features)
        halted = (torch.arange(full, device=sample.device) >= count).float().expand(batch, full)
        losses = {name: (value + second[name]) / 2 for name, value in first.items()}
        losses["reconstruction_loss"] = error.mean()
        losses["halting_loss"] = F.binary_cross_entropy_with_logits(self.halting_logits(states)[..., 0], halted)
        return ImageTokenizerOutput(sum(losses.values()), losses, sample, output.token_ids)

    def _phase(self, grid: Tensor, errors: Tensor, budget: int, keep: int, features: Tensor) -> tuple:
        """Losses, states, picture and tokens with a budget of which the first `keep` tokens are shown."""
        states = self.encoder(grid, errors, budget)[:, -budget:]
        output = self._tokens(states)
        mask = (torch.arange(budget, device=grid.device) < keep).expand(len(grid), budget)
        prediction = self.predict_base(output.latents, mask if keep < budget else None)
        losses = {**self.base.prediction_losses(prediction, features), **(output.losses or {})}
        return losses, states, self.base.draw(prediction), output
