"""MaskGen over continuous tokens (arXiv 2501.07730, section 3.3): a masked trunk, and a diffusion head for each token.

Shape suffixes in comments: B images, N tokens, k tokens that one step writes, C their width, D the trunk's width.
"""

import math
from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from transformers import initialization as init

from ..layers.diffusion_head import DiffusionHead
from ..layers.flow import check_steps
from ..layers.gaussian_diffusion import GaussianDiffusion, cosine_betas
from ..layers.guidance import check_scale, combine
from ..layers.masked_generation import cosine_masking_ratio
from ..layers.sampling import Generators, draw_normal, draw_uniform
from ..outputs import ImagePriorOutput
from .configuration_maskgen_kl import MaskGenKLConfig
from .modeling_maskgen_utils import MaskGenBase

SCHEDULES = ("linear", "constant")


class MaskGenKLPrior(MaskGenBase):
    """
    Writes TA-TiTok's continuous tokens from a text: each step frees some positions of a random order and draws their
    tokens by diffusion.

    `generate` returns latents as the tokenizer takes them; the model itself sees them times `latents_scale`.
    Conditions: [`MaskGenBase`].
    """

    config: MaskGenKLConfig
    main_input_name = "latents"
    score_waves = (10000.0, "interleaved")
    default_settings = {
        "num_inference_steps": 32,
        "num_head_steps": 100,
        "cfg_scale": 3.0,
        "cfg_schedule": "linear",
        "head_temperature": 1.0,
        "micro_conditions": 6.5,
    }

    def __init__(self, config: MaskGenKLConfig) -> None:
        super().__init__(config)
        width, count = config.hidden_size, config.num_image_tokens
        self.latent_proj = nn.Linear(config.token_size, width)
        self.latent_norm = nn.LayerNorm(width, eps=1e-6)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(count, width))
        self.diffusion_position_embedding = nn.Parameter(torch.empty(count, width))
        self._build_conditions(config)
        self.head = DiffusionHead(
            config.token_size, 2 * config.token_size, width, config.head_size, config.head_num_blocks
        )
        self.post_init()

    def init_own_weights(self) -> None:
        """Fresh positions and mask token."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.config.initializer_range)

    @property
    def latent_dim(self) -> int:
        """Width of a token."""
        return self.config.token_size

    def normalize_latents(self, latents: Tensor) -> Tensor:
        """The tokenizer's latents to those that the model sees."""
        return latents * self.config.latents_scale

    def denormalize_latents(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize_latents`."""
        return latents / self.config.latents_scale

    def predict(
        self,
        latents: Tensor,
        mask: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        micro_conditions: Tensor | None = None,
    ) -> Tensor:
        """
        Conditions of the diffusion head.

        Args:
            latents: normalised, `(B, N, C)`; masked ones are not looked at.
            mask: bool `(B, N)`, True where open.
            encoder_hidden_states, pooled_projections, micro_conditions: `(B, T, D)`, `(B, P)`, `(B,)`.

        Returns:
            `(B, N, D)`.
        """
        text = self.text_proj(encoder_hidden_states)
        condition = self.pooled_condition(pooled_projections, micro_conditions)
        x = self.latent_norm(self.latent_proj(latents.to(self.dtype)))
        x = torch.where(mask[..., None], self.mask_token, x) + self.position_embedding
        return self.trunk(x, text, condition) + self.diffusion_position_embedding

    def forward(
        self,
        latents: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        micro_conditions: Tensor | None = None,
        negative_encoder_hidden_states: Tensor | None = None,
        negative_pooled_projections: Tensor | None = None,
        mask: Tensor | None = None,
        **kwargs: Any,
    ) -> ImagePriorOutput:
        """
        The diffusion loss of masked tokens: `mse_loss` of the noise and `vlb_loss` of the variance.

        Args:
            latents: of the tokenizer, `(B, N, C)`.
            encoder_hidden_states, pooled_projections, micro_conditions: see [`MaskGenBase`].
            negative_encoder_hidden_states, negative_pooled_projections: of the empty text, for training with
                guidance.
            mask: bool `(B, N)`, what is hidden; drawn where `None`.
        """
        self.check_text(encoder_hidden_states, pooled_projections)
        data, device = self.normalize_latents(latents.float()), latents.device
        batch, count = data.shape[:2]
        if mask is None:
            share = cosine_masking_ratio(torch.rand(batch, 1, device=device))
            open_count = (share * count).ceil().clamp_min(1)
            mask = torch.rand(batch, count, device=device).argsort(-1) < open_count
        states, pooled = encoder_hidden_states.to(self.dtype), pooled_projections.to(self.dtype)
        texts = self.drop_text(states, pooled, negative_encoder_hidden_states, negative_pooled_projections)
        condition = self.predict(data, mask, *texts, micro_conditions)
        repeats = self.config.diffusion_batch_mul
        data, condition, weight = (x.repeat(repeats, *[1] * (x.ndim - 1)) for x in (data, condition, mask.float()))
        diffusion = GaussianDiffusion(cosine_betas(self.config.num_diffusion_steps))
        step = torch.randint(self.config.num_diffusion_steps, data.shape[:2], device=device)
        noise = torch.randn_like(data)
        noisy = diffusion.add_noise(data, noise, step)
        terms = diffusion.losses(data, noise, step, self.head(noisy.to(self.dtype), step, condition))
        losses = {name: (value * weight).sum() / weight.sum() for name, value in terms.items()}
        return ImagePriorOutput(loss=sum(losses.values()), losses=losses)

    # ------------------------------------------------------------------ sampling

    def sample_head(
        self,
        condition: Tensor,
        start: Tensor,
        noise: Any,
        *,
        num_head_steps: int,
        cfg_scale: float,
        guided: bool,
        temperature: float,
    ) -> Tensor:
        """
        Draws tokens from their conditions by respaced ancestral sampling.

        Args:
            condition: `(B, k, D)`, or `(2B, k, D)` where `guided`, the unconditional half last.
            start: `(B, k, C)`.
            noise: number of the step to draws `(B, k, C)`.
            num_head_steps: steps of the sampler.
            cfg_scale: noise is `uncond + cfg_scale (cond - uncond)`; the variance is the conditional half's.
            guided: whether there are two halves.
            temperature: factor of the noise.
        """
        diffusion = GaussianDiffusion(cosine_betas(self.config.num_diffusion_steps), num_head_steps)

        def predict(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
            both = torch.cat([x, x]) if guided else x
            times = torch.full((len(both),), t, device=x.device)
            epsilon, fraction = self.head(both.to(self.dtype), times, condition).float().chunk(2, -1)
            if guided:
                epsilon = combine(*epsilon.chunk(2), cfg_scale)
            return epsilon, fraction[: len(x)]

        return diffusion.sample(predict, start, noise, temperature)

    def open_counts(self, num_inference_steps: int) -> list[int]:
        """How many positions are still open after each step; the last step leaves none, whatever its count says."""
        counts, before, total = [], self.num_tokens, self.num_tokens
        for step in range(num_inference_steps):
            wanted = math.floor(total * math.cos(math.pi / 2 * (step + 1) / num_inference_steps))
            before = max(1, min(before - 1, wanted))
            counts.append(before)
        return counts

    @staticmethod
    def cfg_at(schedule: str, scale: float, open_count: int, total: int) -> float:
        """Weight of guidance: "linear" in the share of known positions, or "constant"."""
        if schedule not in SCHEDULES:
            raise ValueError(f"cfg_schedule must be one of {SCHEDULES}, got {schedule!r}.")
        return scale if schedule == "constant" else 1 + (scale - 1) * (total - open_count) / total

    @apply_forward_hook
    @torch.no_grad()
    def generate(
        self,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        *,
        micro_conditions: float | Tensor | None = None,
        negative_encoder_hidden_states: Tensor | None = None,
        negative_pooled_projections: Tensor | None = None,
        num_inference_steps: int | None = None,
        num_head_steps: int | None = None,
        cfg_scale: float | None = None,
        cfg_schedule: str | None = None,
        head_temperature: float | None = None,
        generator: Generators = None,
        draws: dict[str, Any] | None = None,
        callback: Any = None,
    ) -> ImagePriorOutput:
        """
        Writes continuous tokens for each text.

        Args:
            encoder_hidden_states, pooled_projections, negative_encoder_hidden_states, negative_pooled_projections:
                see [`MaskGenBase`]; the negative ones may have one row for all.
            micro_conditions: aesthetic score, or one per image.
            num_inference_steps: passes of the trunk.
            num_head_steps: diffusion steps of a token.
            cfg_scale: full weight of guidance; 1 means none.
            cfg_schedule: "linear" or "constant".
            head_temperature: factor of the diffusion's noise.
            generator: random generator, or one per image.
            draws: what to use instead: "orders", int64 `(B, N)`, whose first entries stay open longest; "start", a
                list of `(B, k, C)`; "steps", a list of `(S, B, k, C)`; one entry for each pass.
            callback: called with (step, latents) after each step; may return other latents.

        Returns:
            [`ImagePriorOutput`] with `latents` `(B, N, C)`.
        """
        steps, head_steps = (
            self.setting("num_inference_steps", num_inference_steps),
            self.setting("num_head_steps", num_head_steps),
        )
        scale, schedule = self.setting("cfg_scale", cfg_scale), self.setting("cfg_schedule", cfg_schedule)
        temperature = self.setting("head_temperature", head_temperature)
        check_steps(steps)
        check_scale("cfg_scale", scale)
        check_scale("head_temperature", temperature)
        guided, batch, total = scale != 1.0, len(encoder_hidden_states), self.num_tokens
        conditions = self.join_conditions(
            encoder_hidden_states,
            pooled_projections,
            micro_conditions,
            negative_encoder_hidden_states,
            negative_pooled_projections,
            guided,
        )
        device = self.device
        draws = draws or {}
        orders = draws["orders"] if "orders" in draws else draw_uniform((batch, total), generator, device).argsort(1)
        latents = torch.zeros(batch, total, self.latent_dim, device=device)
        mask, before = torch.ones(batch, total, dtype=torch.bool, device=device), total
        for step, count in enumerate(self.open_counts(steps)):
            after = 0 if step == steps - 1 else count
            if after < before:  # with more steps than positions some write nothing
                positions = orders[:, after:before].sort(1).values  # (B, k)
                hidden = self._conditions_at(latents, mask, conditions, positions, guided)
                tokens = self.sample_head(
                    hidden,
                    *self._draws_at(step, positions, draws, generator),
                    num_head_steps=head_steps,
                    cfg_scale=self.cfg_at(schedule, scale, count, total),
                    guided=guided,
                    temperature=temperature,
                )
                latents = latents.scatter(1, positions[..., None].expand_as(tokens), tokens)
                mask, before = mask.scatter(1, positions, False), after
            if callback is not None:
                changed = callback(step, self.denormalize_latents(latents))
                latents = latents if changed is None else self.normalize_latents(changed)
        return ImagePriorOutput(latents=self.denormalize_latents(latents))

    def _conditions_at(
        self, latents: Tensor, mask: Tensor, conditions: tuple, positions: Tensor, guided: bool
    ) -> Tensor:
        if guided:
            latents, mask, positions = (torch.cat([x, x]) for x in (latents, mask, positions))
        hidden = self.predict(latents, mask, *conditions)
        return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))  # (B or 2B, k, D)

    def _draws_at(
        self, step: int, positions: Tensor, draws: dict[str, Any], generator: Generators
    ) -> tuple[Tensor, Any]:
        shape = (*positions.shape, self.latent_dim)
        if "start" in draws:
            return draws["start"][step], lambda count: draws["steps"][step][count]
        return draw_normal(shape, generator, positions.device), lambda count: draw_normal(
            shape, generator, positions.device
        )
