"""UniFlow (arXiv 2510.10575): tokens of a vision encoder as latents, and a flow that draws each patch by itself.

Shape suffixes in comments: B images, N tokens, D width, p patch size.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..layers.attention import Mlp, TransformerBlock
from ..layers.diffusion_head import DiffusionHead
from ..layers.flow import check_steps, training_times
from ..layers.flow_sampling import integrate
from ..layers.guidance import GuidanceRule
from ..layers.intern_vit import InternVit
from ..layers.latent_statistics import ChannelStatisticsMixin
from ..layers.losses import teacher_similarity
from ..layers.patches import patchify, unpatchify
from ..layers.positions import sincos_table
from ..layers.sampling import Generators, draw_normal
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput, TokenSegment
from .configuration_uniflow import UniFlowConfig, schedule_power


def channels_first(patches: Tensor, channels: int) -> Tensor:
    """Patches in the order row, column, channel to the order channel, row, column, `(..., p * p * C)`."""
    return patches.unflatten(-1, (-1, channels)).transpose(-1, -2).flatten(-2)


def channels_last(patches: Tensor, channels: int) -> Tensor:
    """The inverse of [`channels_first`]."""
    return patches.unflatten(-1, (channels, -1)).transpose(-1, -2).flatten(-2)


def sigma_interval(interval: Sequence[float] | None) -> tuple[tuple[float, float], ...]:
    """Times of guidance for noise levels `(low, high)` of `sigma = (1 - t) / t`."""
    return () if interval is None else ((1 / (1 + interval[1]), 1 / (1 + interval[0])),)


def flow_schedule(num_steps: int, schedule: str = "linear") -> list[float]:
    """
    Times from noise (0) to pixels (1), `num_steps + 1` of them.

    Raises:
        ValueError: for an unknown schedule or number of steps.
    """
    check_steps(num_steps)
    power = schedule_power(schedule)
    if power is None:
        raise ValueError(f'schedule must be "linear" or "pow_p", got {schedule!r}.')
    return [1 - ((num_steps - k) / num_steps) ** (1 / power) for k in range(num_steps + 1)]


def self_distillation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], beta: float) -> Tensor:
    """
    Layer-wise adaptive self-distillation (section 3.2): deep layers count more, and those that went astray.

    Args:
        student, teacher: tokens behind each of L layers, `(B, N, D)` each.
        beta: of the weights `w_l ~ l / L exp(beta a_l)`, a_l being 1 minus the mean cosine similarity. Weights are
            constants to the gradient (our choice).
    """
    astray = torch.stack([1 - teacher_similarity(s, t).mean() for s, t in zip(student, teacher, strict=True)])
    depth = torch.arange(1, len(astray) + 1, device=astray.device) / len(astray)
    weights = depth * (beta * astray.detach()).exp()
    return (weights / weights.sum() * astray).sum()


class UniFlowModel(ChannelStatisticsMixin, PreTrainedImageTokenizer):
    """
    Images (normalised as on ImageNet) to latents `(B, N, C)` in raster order, and back through a flow of patches.

    `encode` also returns `features`: the encoder's patch tokens `(B, N, D)`, and `pooled_features`: its class token.
    """

    config: UniFlowConfig
    _no_split_modules = ["InternBlock", "TransformerBlock", "HeadBlock"]

    def __init__(self, config: UniFlowConfig) -> None:
        super().__init__(config)
        dim, latent = config.hidden_size, config.latent_channels
        self.encoder = InternVit(
            config.image_size,
            config.patch_size,
            dim,
            config.num_layers,
            config.num_heads,
            config.intermediate_size,
            num_channels=config.num_channels,
            norm_type=config.norm_type,
            eps=config.layer_norm_eps,
            qkv_bias=config.qkv_bias,
            qk_norm=config.qk_norm,
            scale=config.layer_scale,
            config=config,
        )
        self.bottleneck = self.unproject = None
        if latent is not None:
            self.bottleneck, self.unproject = projection(dim, dim, latent), projection(latent, dim, dim)
        if config.num_global_layers:
            self.global_position_embedding = nn.Parameter(torch.zeros(1, config.grid_size**2, dim))
        self.global_layers = nn.ModuleList(
            TransformerBlock(dim, config.global_num_heads, 4 * dim, config=config)
            for _ in range(config.num_global_layers)
        )
        self.position_embedding = nn.Parameter(torch.zeros(1, config.grid_size**2, dim))
        self.flow = DiffusionHead(
            config.patch_dim, config.patch_dim, dim, dim, config.num_flow_layers, time_scale=1000.0
        )
        self.post_init()

    def init_own_weights(self) -> None:
        """Both tables start as sines and cosines, columns first."""
        side, dim = self.config.grid_size, self.config.hidden_size
        table = sincos_table((side, side), dim)[None]
        init.copy_(self.position_embedding, table)
        if self.config.num_global_layers:
            init.copy_(self.global_position_embedding, table)

    @property
    def is_discrete(self) -> bool:
        """Always False."""
        return False

    @property
    def num_tokens(self) -> int:
        """Patches of a picture."""
        return self.config.grid_size**2

    @property
    def latent_dim(self) -> int:
        """Width of a latent."""
        return self.config.latent_channels or self.config.hidden_size

    def token_segments(self, height: int | None = None, width: int | None = None) -> list[TokenSegment]:
        """One map in raster order."""
        return [TokenSegment("tokens", (self.config.grid_size, self.config.grid_size), 0)]

    # ------------------------------------------------------------------ halves

    def hidden_states(self, pixel_values: Tensor) -> list[Tensor]:
        """Tokens in front of the encoder's first block and behind each, class token first: `(B, 1 + N, D)` each."""
        return self.encoder(pixel_values.to(self.dtype))

    def project(self, features: Tensor) -> Tensor:
        """Patch tokens `(B, N, D)` to latents `(B, N, C)`."""
        return features if self.bottleneck is None else self.bottleneck(features)

    def condition(self, latents: Tensor) -> Tensor:
        """Latents `(B, N, C)` to the condition of each patch `(B, N, D)`."""
        hidden = latents if self.unproject is None else self.unproject(latents)
        if self.config.num_global_layers:
            hidden = hidden + self.global_position_embedding
        for layer in self.global_layers:
            hidden = layer(hidden)
        return hidden + self.position_embedding

    def to_patches(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` to patches `(B, N, 3 * p * p)`, channel by channel."""
        return channels_first(patchify(pixels, self.config.patch_size), self.config.num_channels)

    def to_pixels(self, patches: Tensor) -> Tensor:
        """The inverse of `to_patches`."""
        side = self.config.grid_size
        return unpatchify(channels_last(patches, self.config.num_channels), side, side, self.config.patch_size)

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        tokens = self.hidden_states(pixel_values)[-1]
        features = tokens[:, 1:]
        return ImageTokenizerEncoderOutput(
            latents=self.project(features), features=features, pooled_features=tokens[:, 0]
        )

    def _decode(
        self,
        latents: Tensor,
        token_mask: Tensor | None = None,
        generator: Generators = None,
        noise: Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        schedule: str | None = None,
    ) -> ImageTokenizerDecoderOutput:
        config, condition = self.config, self.condition(latents)
        shape = (*latents.shape[:2], config.patch_dim)
        if noise is None:
            noise = draw_normal(shape, generator, latents.device)
        elif noise.numel() != torch.Size(shape).numel():
            raise ValueError(f"noise must be {shape}, got {tuple(noise.shape)}.")
        rule = GuidanceRule(
            config.guidance_scale if guidance_scale is None else guidance_scale,
            intervals=sigma_interval(config.guidance_interval),
        )
        both = torch.cat([condition, torch.zeros_like(condition)])

        def velocity(x: Tensor, t: float) -> Tensor:
            scale = rule.scale_at(t)
            if scale == 1.0:
                return self.patch_velocity(x, x.new_full((len(x),), t), condition)
            said = self.patch_velocity(torch.cat([x, x]), x.new_full((2 * len(x),), t), both)
            return rule.join(*said.chunk(2), scale)

        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        times = flow_schedule(steps, config.schedule if schedule is None else schedule)
        patches = integrate(velocity, noise.to(latents.device, torch.float32).reshape(shape), times)
        return ImageTokenizerDecoderOutput(sample=self.to_pixels(patches).to(latents.dtype))

    def patch_velocity(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """
        The flow's velocity from noise to pixels.

        Args:
            x: noisy patches `(B, N, 3 * p * p)`.
            t: times `(B,)`, 0 for noise.
            condition: `(B, N, D)`.
        """
        return self.flow(x.to(self.dtype), t, condition).to(x.dtype)

    # ------------------------------------------------------------------ training

    def make_teacher(self) -> InternVit:
        """A frozen copy of the encoder, to be taken before training: the teacher of the self-distillation."""
        return copy.deepcopy(self.encoder).eval().requires_grad_(False)

    def draw_times(self, uniform: Tensor) -> Tensor:
        """Times of a batch from uniform draws `(B,)`: logit-normal with fat tails (some of them stay uniform)."""
        share = self.config.uniform_times
        inner = ((uniform - share) / max(1 - share, 1e-6)).clamp(0, 1)
        fat = uniform / share if share > 0 else uniform
        return torch.where(uniform < share, fat, training_times(inner, "logit_normal"))

    def forward(
        self,
        pixel_values: Tensor,
        teacher_hidden_states: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        t: Tensor | None = None,
    ) -> ImageTokenizerOutput:
        """
        One training pass (section 3).

        Args:
            pixel_values: `(B, 3, H, W)`, normalised.
            teacher_hidden_states: tokens behind each layer of the frozen copy of the encoder, `(B, L, 1 + N, D)`.
            noise: standard normal patches `(B, N, 3 * p * p)`.
            t: times `(B,)`, 0 for noise.

        Returns:
            losses `flow_loss`, and, where they apply, `distillation_loss` and `dispersive_loss`; `sample` is the
            picture that the velocity points at. The perceptual and the adversarial term come from the trainer.
        """
        self._check_pixel_values(pixel_values)
        states = self.hidden_states(pixel_values)
        latents = self.project(states[-1][:, 1:])
        condition, data = self._drop(self.condition(latents)), self.to_patches(pixel_values)
        noise = torch.randn_like(data) if noise is None else noise.to(data)
        t = self.draw_times(torch.rand(len(data), device=data.device)) if t is None else t
        time = t.view(-1, 1, 1).to(data)
        x, target = time * data + (1 - time) * noise, data - noise
        velocity = self.patch_velocity(x, t, condition)
        losses = {"flow_loss": F.mse_loss(velocity.float(), target.float())}
        weights = {
            "distillation_loss": self.config.distillation_weight,
            "dispersive_loss": self.config.dispersive_weight,
        }
        if teacher_hidden_states is not None:
            teacher = teacher_hidden_states.unbind(1)
            losses["distillation_loss"] = self_distillation_loss(states[1:], teacher, self.config.distillation_beta)
        if self.config.dispersive_weight:
            losses["dispersive_loss"] = dispersive_loss(latents)
        loss = sum(weights.get(name, 1.0) * value for name, value in losses.items())
        sample = self.to_pixels(x + (1 - time) * velocity)
        return ImageTokenizerOutput(loss, losses, sample, features=states[-1][:, 1:])

    def _drop(self, condition: Tensor) -> Tensor:
        if not self.training or not self.config.condition_dropout:
            return condition
        kept = torch.rand(len(condition), 1, 1, device=condition.device) >= self.config.condition_dropout
        return condition * kept


def projection(in_dim: int, dim: int, out_dim: int) -> nn.Module:
    """Linear, GELU, Linear."""
    mlp = Mlp(dim, dim)
    mlp.fc1, mlp.fc2 = nn.Linear(in_dim, dim), nn.Linear(dim, out_dim)
    return mlp


def dispersive_loss(latents: Tensor) -> Tensor:
    """`log mean exp(-|z_i - z_j|^2 / d)` over the pictures of a batch `(B, N, C)` (arXiv 2506.09027)."""
    flat = latents.float().flatten(1)
    distances = (flat[:, None] - flat[None]).square().mean(-1)
    return (-distances).exp().mean().log()
