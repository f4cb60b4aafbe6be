"""FlexTok (arXiv 2502.13967): an image as an ordered sequence of tokens, drawn by a rectified flow in VAE latents.

Shape suffixes in comments: B images, N tokens, D width.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..layers.attention import Attention
from ..layers.conv_codec import flatten_grid, unflatten_grid
from ..layers.flow import GuidanceScale, flow_pair, training_times
from ..layers.losses import keep_lengths, teacher_similarity
from ..layers.posterior import DiagonalGaussian
from ..layers.sampling import Generators, draw_normal
from ..layers.vae import build_vae, scale_latents, vae_decode, vae_factor, vae_posterior
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput
from .configuration_flextok import FlexTokConfig
from .modeling_flextok_encoder import FlexTokEncoder
from .modeling_flextok_layers import TextAttention
from .modeling_flextok_linear import FlexTokLinearEncoder
from .modeling_flextok_transformer import FlexTokTransformer


class FlexTokModel(PreTrainedImageTokenizer):
    """
    Images in [-1, 1] to 1 to N ordered ids, and back through a flow.

    `latents` are FSQ codes in [-1, 1]: `(B, N, d)`, or `(B, d, h, w)` for the grid variant, which has no order. Ids of
    a picture do not depend on chance unless `sample_posterior=True`; pictures of ids depend on the noise of the flow.
    """

    config: FlexTokConfig
    teacher_inputs = {"teacher_features": "patches"}
    _no_split_modules = ["FlexTokBlock", "ResnetBlock2D", "AttnDownBlock2D"]
    _keep_in_fp32_modules_strict = ["vae"]

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__(config)
        encoder_class = FlexTokLinearEncoder if config.encoder_type == "linear" else FlexTokEncoder
        self.encoder = None if config.encoder_config is None else encoder_class(**_arguments(config.encoder_config))
        self.transformer = FlexTokTransformer(**_arguments(config.transformer_config))
        self.vae = build_vae(config.vae_config)
        self.alignment_head = None
        if config.alignment_dim:
            width, hidden = self.transformer.config.hidden_size, config.alignment_hidden_dim
            self.alignment_head = nn.Sequential(
                nn.Linear(width, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Linear(hidden, config.alignment_dim),
            )
        for part in (self.encoder, self.transformer):
            for module in part.modules() if part is not None else ():
                if isinstance(module, (Attention, TextAttention)):
                    module.config = config  # which attention implementation to run
        self.post_init()

    @classmethod
    def from_parts(
        cls,
        transformer: FlexTokTransformer,
        vae: AutoencoderKL,
        image_encoder: FlexTokEncoder | FlexTokLinearEncoder | None = None,
        **fields: Any,
    ) -> "FlexTokModel":
        """
        A tokenizer of the parts that a pipeline holds; their weights are shared, not copied.

        Args:
            transformer, vae: the decoding half.
            image_encoder: the encoding half; without it `encode` is refused.
            fields: further fields of [`FlexTokConfig`].
        """
        side = transformer.config.sample_size * vae_factor(vae)
        configs = {
            "encoder_type": "linear" if isinstance(image_encoder, FlexTokLinearEncoder) else "transformer",
            "encoder_config": None if image_encoder is None else _arguments(image_encoder.config),
            "transformer_config": _arguments(transformer.config),
            "vae_config": _arguments(vae.config),
        }
        with torch.device("meta"):
            model = cls(FlexTokConfig(**{"image_size": side, **configs, **fields}))
        for module in (transformer, image_encoder):
            for layer in module.modules() if module is not None else ():
                if isinstance(layer, (Attention, TextAttention)):
                    layer.config = model.config
        model.transformer, model.vae, model.encoder = transformer, vae.requires_grad_(False), image_encoder
        return model.eval()

    def train(self, mode: bool = True) -> "FlexTokModel":
        """As usual, but for the VAE: it stays in eval mode, and frozen (loading forgets that)."""
        super().train(mode)
        self.vae.eval().requires_grad_(False)
        return self

    # ------------------------------------------------------------------ properties

    @property
    def is_grid(self) -> bool:
        """Whether this is the grid variant."""
        return self.transformer.config.token_layout == "grid"

    @property
    def latent_layout(self) -> str:
        """ "sequence", or "grid" for the grid variant."""
        return "grid" if self.is_grid else "sequence"

    @property
    def mask_mode(self) -> str:
        """ "token": a vector replaces token and position; "none" where the checkpoint has no such vector."""
        return "token" if self.is_prefix_ordered else "none"

    @property
    def codebook_size(self) -> int:
        """Product of the FSQ levels."""
        return self.transformer.codebook_size

    @property
    def num_tokens(self) -> int:
        """Tokens of one image."""
        return self.transformer.num_tokens

    @property
    def latent_dim(self) -> int:
        """Number of FSQ channels."""
        return len(self.transformer.config.fsq_levels)

    @property
    def teacher_grid(self) -> tuple[int, int]:
        """The grid of the flow decoder's patches."""
        side = self.transformer.config.sample_size // self.transformer.config.patch_size
        return side, side

    @property
    def is_prefix_ordered(self) -> bool:
        """Whether any number of first tokens is a picture (nested dropout)."""
        return self.transformer.config.nested_dropout

    def _check_image_size(self, height: int, width: int) -> None:
        if self.transformer.token_map is not None and (height, width) != (self.config.image_size,) * 2:
            side = self.config.image_size
            raise ValueError(f"This FlexTok takes images of {side} x {side} pixels only, got {height} x {width}.")
        factor = vae_factor(self.vae) * self.transformer.config.patch_size
        for side in (height, width):
            if side % factor or not 0 < side <= self.config.image_size:
                raise ValueError(
                    f"FlexTok takes images whose sides are multiples of {factor} up to {self.config.image_size} pixels "
                    f"(smaller ones use the top left positions), got {height} x {width}."
                )

    def _check_token_count(self, token_ids: Tensor) -> None:
        if not self.is_grid:
            super()._check_token_count(token_ids)
        elif token_ids.shape[1] > self.num_tokens:
            raise ValueError(f"FlexTok's grid has at most {self.num_tokens} tokens, got {token_ids.shape[1]}.")

    # ------------------------------------------------------------------ encode

    def encode_vae(self, pixel_values: Tensor) -> DiagonalGaussian:
        """The VAE's posterior over unscaled latents `(B, C, h, w)`."""
        with torch.no_grad():
            return vae_posterior(self.vae, pixel_values)

    def vae_latents(
        self,
        pixel_values: Tensor,
        sample_posterior: bool = False,
        generator: Generators = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Scaled VAE latents `(B, C, h, w)`: of the posterior's mode, or of a draw."""
        dist = self.encode_vae(pixel_values)
        latents = dist.mode()
        if sample_posterior or noise is not None:
            if noise is None:
                noise = draw_normal(tuple(latents.shape), generator, latents.device)
            latents = dist.sample(noise=noise)
        return scale_latents(self.vae, latents)

    def _encode(
        self,
        pixel_values: Tensor,
        sample_posterior: bool = False,
        generator: Generators = None,
        noise: Tensor | None = None,
    ) -> ImageTokenizerEncoderOutput:
        return self.encode_latents(self.vae_latents(pixel_values, sample_posterior, generator, noise))

    def encode_latents(self, vae_latents: Tensor) -> ImageTokenizerEncoderOutput:
        """
        `encode` behind the VAE, for cached latents.

        Args:
            vae_latents: scaled, `(B, C, h, w)`.
        """
        if self.encoder is None:
            raise ValueError("This FlexTok has no encoder (a pipeline saved without image_encoder): it only decodes.")
        pre_quant = self.encoder(vae_latents)
        output = self.transformer.quantizer(pre_quant)
        latents = output.quantized.to(pre_quant.dtype)
        if self.is_grid:
            patch = self.transformer.config.patch_size
            rows, columns = vae_latents.shape[2] // patch, vae_latents.shape[3] // patch
            latents, pre_quant = (unflatten_grid(x, rows, columns) for x in (latents, pre_quant))
        return ImageTokenizerEncoderOutput(latents=latents, token_ids=output.indices, pre_quant=pre_quant)

    # ------------------------------------------------------------------ decode

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """FSQ codes in [-1, 1], `(B, N, d)`."""
        return self.transformer.ids_to_latents(token_ids)

    def _ids_to_latents(self, token_ids: Tensor, image_size: int | tuple[int, int] | None = None) -> Tensor:
        codes = self.get_codebook_entry(token_ids)
        if not self.is_grid:
            return codes
        patch = self.transformer.config.patch_size
        rows, columns = (side // patch for side in self._latent_size(image_size))
        if rows * columns != codes.shape[1]:
            raise ValueError(f"A grid of {rows} x {columns} has {rows * columns} tokens, got {codes.shape[1]}.")
        return unflatten_grid(codes, rows, columns)

    def _latent_size(self, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
        image_size = self.config.image_size if image_size is None else image_size
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self._check_image_size(height, width)
        factor = vae_factor(self.vae)
        return height // factor, width // factor

    def sample_latents(
        self,
        latents: Tensor,
        token_mask: Tensor | None = None,
        *,
        image_size: int | tuple[int, int] | None = None,
        generator: Generators = None,
        noise: Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: GuidanceScale | None = None,
        guidance: str | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
    ) -> Tensor:
        """Scaled VAE latents `(B, C, h, w)` of tokens: `decode` before the VAE, which explains the arguments."""
        if self.is_grid:
            height, width = (side * self.transformer.config.patch_size for side in latents.shape[2:])
            latents = flatten_grid(latents)
        else:
            height, width = self._latent_size(image_size)
        shape = (len(latents), self.transformer.config.in_channels, height, width)
        if noise is None:
            noise = draw_normal(shape, generator, latents.device)
        if tuple(noise.shape) != shape:
            raise ValueError(f"noise must have shape {shape}, got {tuple(noise.shape)}.")
        text = {
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "pooled_projections": pooled_projections,
        }
        text = {name: value for name, value in text.items() if value is not None}
        if text and not self.transformer.has_text:
            raise ValueError("This FlexTok decoder sees no text (text_dim=0).")
        if not text:
            config = self.transformer.config
            steps, scale = config.reconstruction_steps, config.reconstruction_guidance_scale
            num_inference_steps = steps if num_inference_steps is None else num_inference_steps
            guidance_scale = scale if guidance_scale is None else guidance_scale
        return self.transformer.sample_latents(
            noise.to(latents.device),
            latents,
            token_mask,
            num_inference_steps=num_inference_steps,
            guidance=self.transformer.make_guidance(guidance_scale, guidance),
            text=text,
        )

    def _decode(
        self,
        latents: Tensor,
        token_mask: Tensor | None,
        image_size: int | tuple[int, int] | None = None,
        generator: Generators = None,
        noise: Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: GuidanceScale | None = None,
        guidance: str | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
    ) -> ImageTokenizerDecoderOutput:
        sampled = self.sample_latents(
            latents,
            token_mask,
            image_size=image_size,
            generator=generator,
            noise=noise,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance=guidance,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            pooled_projections=pooled_projections,
        )
        return ImageTokenizerDecoderOutput(sample=vae_decode(self.vae, sampled))

    # ------------------------------------------------------------------ training

    def forward(
        self,
        pixel_values: Tensor | None = None,
        num_tokens: Tensor | None = None,
        *,
        vae_latents: Tensor | None = None,
        teacher_features: Tensor | None = None,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        generator: torch.Generator | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
    ) -> ImageTokenizerOutput:
        """
        One training pass (section 3.2); dropout of tokens, condition, rounding only in training mode.

        Args:
            pixel_values: `(B, 3, H, W)` in [-1, 1].
            num_tokens: lengths of the kept prefixes, int64 `(B,)`, 0 for no token; drawn in training where None.
            vae_latents: scaled latents `(B, C, h, w)` in place of pixels, for example cached ones.
            teacher_features: features `(B, P, alignment_dim)` of another network at the P patches.
            noise, timesteps: the draws to use, `(B, C, h, w)` and `(B,)` in [0, 1].
            generator: random generator of all draws.
            encoder_hidden_states, encoder_attention_mask, pooled_projections: a text, for decoders that see one.

        Returns:
            losses `flow_loss` (mean squared error of the velocity) and `alignment_loss` (1 - cosine similarity); in
            eval mode also `sample`, the one-step estimate of the pictures.
        """
        if vae_latents is None:
            self._check_pixel_values(pixel_values)
            vae_latents = self.vae_latents(pixel_values)
        data = vae_latents.float()
        encoded = self.encode_latents(vae_latents)
        tokens = flatten_grid(encoded.latents) if self.is_grid else encoded.latents
        batch, device = len(data), data.device
        draw = _Draws(generator, device)
        if noise is None:
            noise = draw.normal(data.shape)
        if timesteps is None:
            timesteps = self._draw_times(draw, batch)
        x_t, velocity = flow_pair(data, noise, timesteps)
        conditions = self._training_conditions(tokens, encoded, num_tokens, draw)
        text = {
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "pooled_projections": pooled_projections,
        }
        wanted = teacher_features is not None
        output = self.transformer(x_t, timesteps, **conditions, **text, return_features=wanted)
        losses = {"flow_loss": self._flow_loss(output.sample.float(), velocity, timesteps)}
        if wanted:
            losses["alignment_loss"] = self._alignment_loss(output.features, teacher_features)
        weights = self.config.loss_weights or {}
        total = sum(weights.get(name, 1.0) * value for name, value in losses.items())
        sample = None
        if not self.training:
            with torch.no_grad():
                sample = vae_decode(self.vae, x_t - timesteps.view(-1, 1, 1, 1).to(x_t) * output.sample.float())
        return ImageTokenizerOutput(total, losses, sample, encoded.token_ids)

    def _draw_times(self, draw: "_Draws", batch: int) -> Tensor:
        config = self.config
        times = training_times(
            draw.uniform(batch),
            config.timestep_sampling,
            config.mode_scale,
            mean=config.timestep_mean,
            std=config.timestep_std,
        )
        if not config.pure_noise:
            return times
        return torch.where(draw.uniform(batch) < config.pure_noise, 1.0, times)

    def _training_conditions(
        self,
        tokens: Tensor,
        encoded: ImageTokenizerEncoderOutput,
        num_tokens: Tensor | None,
        draw: "_Draws",
    ) -> dict[str, Tensor | None]:
        """Tokens as the decoder sees them in training, with masks."""
        config, (batch, count) = self.config, tokens.shape[:2]
        conditions: dict[str, Tensor | None] = {"token_latents": tokens}
        if self.training and config.quantizer_dropout:
            pre_quant = flatten_grid(encoded.pre_quant) if self.is_grid else encoded.pre_quant
            quantizer = self.transformer.quantizer
            bounded = quantizer.bound(pre_quant) / (torch.tensor(quantizer.levels, device=tokens.device) // 2)
            smooth = (draw.uniform(batch) < config.quantizer_dropout).view(-1, 1, 1)
            conditions["token_latents"] = torch.where(smooth, bounded.to(tokens.dtype), tokens)
        if self.is_prefix_ordered and num_tokens is None and self.training:
            num_tokens = keep_lengths(batch, count, draw.host, config.nested_sampling == "uniform_pow2")
        if self.training:
            conditions["token_latents"] = self._corrupted(conditions["token_latents"], num_tokens, draw)
        if self.is_prefix_ordered and num_tokens is not None:
            conditions["token_mask"] = torch.arange(count, device=tokens.device) < num_tokens.to(tokens.device)[:, None]
        if self.training and config.condition_dropout and self.transformer.has_null:
            conditions["null_mask"] = draw.uniform(batch) < config.condition_dropout
        if self.training and self.transformer.has_text:
            dropped = draw.uniform(batch) < config.text_dropout
            conditions["text_null_mask"] = dropped | conditions.get("null_mask", dropped)
        return conditions

    def _corrupted(self, tokens: Tensor, num_tokens: Tensor | None, draw: "_Draws") -> Tensor:
        """Tokens `(B, N, d)`, some replaced by random ones, some sequences by that of another picture."""
        config, (batch, count) = self.config, tokens.shape[:2]
        few = torch.ones(batch, dtype=torch.bool, device=tokens.device)
        if config.corruption_max_tokens and num_tokens is not None:
            few = num_tokens.to(tokens.device) <= config.corruption_max_tokens
        if config.token_corruption:
            codes = self.get_codebook_entry((draw.uniform(batch, count) * self.codebook_size).long())
            wrong = (draw.uniform(batch, count) < config.token_corruption) & few[:, None]
            tokens = torch.where(wrong[..., None], codes, tokens)
        if config.token_swap:
            wrong = (draw.uniform(batch) < config.token_swap) & few
            tokens = torch.where(wrong[:, None, None], tokens.roll(1, 0), tokens)
        return tokens

    def _flow_loss(self, predicted: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
        error = (predicted - velocity).square().flatten(1).mean(1)
        if self.transformer.config.prediction_type == "sample":
            # an error e of the data is an error e / t of the velocity: bounded near t = 0
            t = timesteps.to(error)
            error = error * (t / t.clamp_min(self.config.min_loss_timestep)).square()
        return error.mean()

    def _alignment_loss(self, features: Tensor | None, teacher_features: Tensor) -> Tensor:
        if self.alignment_head is None or features is None:
            raise ValueError("teacher_features need alignment_dim > 0 and a decoder with a feature_layer.")
        return 1 - teacher_similarity(self.alignment_head(features), teacher_features).mean()


class _Draws:
    """Random draws on a device from an optional generator, which may live on the host."""

    def __init__(self, generator: torch.Generator | None, device: torch.device) -> None:
        self.generator, self.device = generator, device

    @property
    def host(self) -> torch.Generator | None:
        """The generator where it lives on the host, which draws of lengths need."""
        on_host = self.generator is not None and self.generator.device.type == "cpu"
        return self.generator if on_host else None

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1)."""
        source = self.device if self.generator is None else self.generator.device
        return torch.rand(shape, generator=self.generator, device=source).to(self.device)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal draws."""
        return draw_normal(tuple(shape), self.generator, self.device)


def _arguments(config: Any) -> dict[str, Any]:
    """Constructor arguments of a diffusers configuration, without diffusers' own notes."""
    return {name: value for name, value in dict(config).items() if not name.startswith("_")}
