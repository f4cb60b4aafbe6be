"""
The transformer behind DiT (arXiv 2212.09748), SiT (2401.08740), LightningDiT (2501.01423), DiT-DH (2510.11690) and
the generators built on them.

Shape suffixes in comments: B images, N tokens, D width, C latent channels, p patch size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.adaln import zero_marked
from ..layers.conv_codec import flatten_grid
from ..layers.dit import DiTBlock, DiTHead
from ..layers.flow import training_times
from ..layers.flow_sampling import shift_times
from ..layers.gaussian_diffusion import GaussianDiffusion, linear_betas
from ..layers.mlp import FusedSwiGLU
from ..layers.norm import RMSNorm
from ..layers.patches import unpatchify
from ..layers.positions import sincos_table
from ..layers.rotary import apply_rotary, grid_rotary_table
from ..layers.time_embedding import FourierTimeEmbedding, TimeEmbedding
from .sampling_dit_family import FlowSamplingMixin

Text = tuple[Tensor | None, Tensor | None]  # states (B, L, F) and their mask (B, L)


@dataclass
class LatentFlowOutput(BaseOutput):
    """
    What [`LatentFlowTransformer`] returns.

    Args:
        sample: the velocity `(B, C, h, w)`; of a DiT the noise and the variance's place `(B, 2C, h, w)`.
        projections: of the hidden states for REPA, one `(B, N, width)` per teacher.
        loss: the training objective, where noise was given.
        losses: its terms.
    """

    sample: Tensor
    projections: list[Tensor] | None = None
    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None


def make_blocks(count: int, dim: int, num_heads: int, config: Any) -> nn.ModuleList:
    """Blocks in the dialect that `config` names."""

    def block() -> DiTBlock:
        mlp, norms = None, {}
        if config.mlp == "swiglu":
            mlp = FusedSwiGLU(dim, int(2 / 3 * int(dim * config.mlp_ratio)))
        if config.qk_norm is not None:
            for name in ("q_norm", "k_norm"):
                width = dim // num_heads
                norms[name] = RMSNorm(width, 1e-6) if config.qk_norm == "rms" else nn.LayerNorm(width, eps=1e-5)
        hidden = int(dim * config.mlp_ratio)
        return DiTBlock(dim, num_heads, hidden, mlp=mlp, norm=config.norm, shift=config.modulation_shift, **norms)

    return nn.ModuleList(block() for _ in range(count))


class WideHead(nn.Module):
    """
    DiT-DH's second stage: few wide blocks that see the first stage's tokens as their conditions (section 5).

    Args:
        config: of the transformer.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim, trunk = config.head_hidden_size, config.hidden_size
        self.num_heads, self.dim = config.head_num_heads, dim
        self.patch_embed = nn.Conv2d(config.in_channels, dim, config.patch_size, stride=config.patch_size)
        self.condition_proj = nn.Linear(trunk, dim) if trunk != dim else nn.Identity()
        self.layers = make_blocks(config.head_num_layers, dim, config.head_num_heads, config)

    def forward(self, x: Tensor, condition: Tensor, rotary: Callable[[int], Any]) -> tuple[Tensor, Tensor]:
        """Noisy latents `(B, C, H, W)` and states `(B, N, D)` to hidden tokens and their conditions `(B, N, D')`."""
        condition = self.condition_proj(F.silu(condition))
        hidden, turn = flatten_grid(self.patch_embed(x)), rotary(self.dim // self.num_heads)
        for layer in self.layers:
            hidden = layer(hidden, condition, None, turn)
        return hidden, condition


class LatentFlowTransformer(FlowSamplingMixin, ModelMixin, ConfigMixin):
    """
    Class-conditional velocities (DiT: noise) of latents `(B, C, h, w)`.

    Args:
        sample_size, patch_size, in_channels: of the latents.
        hidden_size, num_layers, num_heads, mlp_ratio: of the transformer.
        num_classes: classes; one more row of the table stands for "no class" where `has_null_class`.
        null_class: id of "no class", `num_classes` by default.
        text_dim, text_length: of a generator of texts: width of the text encoder's states, and the number of places
            for them in front of the latents' tokens (DiT's in-context conditioning, section 3.2); None for classes.
            Ours: no published checkpoint has it.
        norm: "layer" (DiT) or "rms".
        mlp: "gelu" (tanh) or "swiglu".
        qk_norm: None, "layer" or "rms", of each head.
        rotary: whether q and k are rotated by rows and columns.
        position_embedding: whether the fixed table is added to the tokens.
        modulation_shift: whether blocks' modulation also shifts.
        time_embedding: "sinusoid" or "fourier".
        prediction: "velocity" or "epsilon" (DiT).
        learn_sigma: whether the last layer has 2C channels.
        head_hidden_size, head_num_layers, head_num_heads: of DiT-DH's wide head, None without one.
        projector_dims, projector_hidden_size, projector_layer: REPA: widths of the teachers, of the projectors, and
            the number of blocks before them.
        latent_norm: "none", "scale" (factor `latents_scale`), "channel" (`latents_mean`, `latents_std` and
            `latents_scale`), or "batch" (running statistics of a batch norm, REPA).
        latents_scale, latents_mean, latents_std: see `latent_norm`; None in the lists' place means that they are not
            known, and sampling refuses.
        noise_time: the time at which a flow is noise, 1 or 0.
        sampler: "euler", "heun", "dopri5", "sde", "sde_heun", "ddpm" or "ddim".
        grid: see [`flow_times`].
        time_shift: of the sampler's grid and of training times.
        num_inference_steps: as the authors count.
        guidance, guidance_scale, guidance_channels, guidance_intervals, guidance_active, interval_scale: see
            [`GuidanceRule`].
        float64_state: whether samplers keep their state in float64 (REPA).
        class_dropout: share of labels that training replaces by "no class".
        training_sampling: "uniform" or "logit_normal" times.
        loss_weights: of `cosine_loss` and `projection_loss`; terms that are not named are left out.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock"]
    _repeated_blocks = ["DiTBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        patch_size: int = 1,
        in_channels: int = 4,
        hidden_size: int = 1152,
        num_layers: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        has_null_class: bool = True,
        null_class: int | None = None,
        norm: str = "layer",
        mlp: str = "gelu",
        qk_norm: str | None = None,
        rotary: bool = False,
        position_embedding: bool = True,
        modulation_shift: bool = True,
        time_embedding: str = "sinusoid",
        prediction: str = "velocity",
        learn_sigma: bool = False,
        head_hidden_size: int | None = None,
        head_num_layers: int = 2,
        head_num_heads: int = 16,
        projector_dims: Sequence[int] = (),
        projector_hidden_size: int = 2048,
        projector_layer: int = 8,
        latent_norm: str = "none",
        latents_scale: float = 1.0,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        noise_time: int = 1,
        sampler: str = "euler",
        grid: str = "steps",
        time_shift: float = 1.0,
        num_inference_steps: int = 50,
        guidance: str = "cfg",
        guidance_scale: float = 1.0,
        guidance_channels: int | None = None,
        guidance_intervals: Sequence[Sequence[float]] = (),
        guidance_active: str = "inside",
        interval_scale: float = 1.0,
        float64_state: bool = False,
        class_dropout: float = 0.1,
        training_sampling: str = "uniform",
        loss_weights: dict[str, float] | None = None,
        text_dim: int | None = None,
        text_length: int = 64,
    ) -> None:
        super().__init__()
        config, side = self.config, sample_size // patch_size
        self.patch_embed = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)
        if position_embedding:
            self.register_buffer("position_table", sincos_table((side, side), hidden_size))
        embedding = {"sinusoid": TimeEmbedding, "fourier": FourierTimeEmbedding}[time_embedding]
        self.time_embed = embedding(hidden_size)
        self.class_embed = nn.Embedding(num_classes + has_null_class, hidden_size)
        if text_dim is not None:
            self.text_proj = nn.Linear(text_dim, hidden_size)
            self.no_text = nn.Parameter(0.02 * torch.randn(hidden_size))
        self.layers = make_blocks(num_layers, hidden_size, num_heads, config)
        self.projectors = nn.ModuleList(
            nn.Sequential(
                nn.Linear(hidden_size, projector_hidden_size),
                nn.SiLU(),
                nn.Linear(projector_hidden_size, projector_hidden_size),
                nn.SiLU(),
                nn.Linear(projector_hidden_size, dim),
            )
            for dim in projector_dims
        )
        self.wide_head = None if head_hidden_size is None else WideHead(config)
        out = patch_size**2 * in_channels * (2 if learn_sigma else 1)
        self.head = DiTHead(hidden_size if head_hidden_size is None else head_hidden_size, out, norm=norm)
        if latent_norm == "batch":
            self.latent_bn = nn.BatchNorm2d(in_channels, eps=1e-4, momentum=0.1, affine=False)
        zero_marked(self)

    # ------------------------------------------------------------------ latents

    def _channel_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.config.latents_mean, self.config.latents_std
        if mean is None or std is None:
            raise ValueError(
                "This generator was trained on normalised latents, and its checkpoint does not hold their statistics: "
                "set them with set_latent_statistics(mean, std); `hf-vistok stats` computes them."
            )
        return like.new_tensor(list(mean)).view(-1, 1, 1), like.new_tensor(list(std)).view(-1, 1, 1)

    def check_latent_statistics(self) -> None:
        """Raises a ValueError where the flow's latents are normalised by statistics that the checkpoint lacks."""
        if self.config.latent_norm == "channel":
            self._channel_statistics(torch.empty(0))

    def set_latent_statistics(self, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> None:
        """
        Takes the mean and standard deviation of each latent channel, saved with the model from now on.

        Raises:
            ValueError: where the model does not normalise by channel, or there is not one number per channel.
        """
        mean, std = ([float(v) for v in torch.as_tensor(values).flatten()] for values in (mean, std))
        if self.config.latent_norm != "channel":
            raise ValueError(f"This generator's latents are normalised by {self.config.latent_norm!r}, not by channel.")
        if not len(mean) == len(std) == self.config.in_channels:
            raise ValueError(f"There are {self.config.in_channels} channels, got {len(mean)} means, {len(std)} stds.")
        self.register_to_config(latents_mean=mean, latents_std=std)

    def normalize_latents(self, latents: Tensor) -> Tensor:
        """The tokenizer's latents `(B, C, h, w)` to those of the flow."""
        kind, scale = self.config.latent_norm, self.config.latents_scale
        if kind == "batch":
            return self.latent_bn(latents)
        if kind == "channel":
            mean, std = self._channel_statistics(latents)
            return (latents - mean) / std * scale
        return latents * scale if kind == "scale" else latents

    def denormalize_latents(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize_latents` (of a batch norm without its eps, as in REPA)."""
        kind, scale = self.config.latent_norm, self.config.latents_scale
        if kind == "batch":
            mean, var = (values.to(latents).view(-1, 1, 1) for values in self._running())
            return latents * var.sqrt() + mean
        if kind == "channel":
            mean, std = self._channel_statistics(latents)
            return latents * std / scale + mean
        return latents / scale if kind == "scale" else latents

    def _running(self) -> tuple[Tensor, Tensor]:
        return self.latent_bn.running_mean, self.latent_bn.running_var

    # ------------------------------------------------------------------ network

    def set_prediction(self, prediction: str) -> None:
        """
        Says what the network predicts, with the published sampler of that kind: DiT ("epsilon") and SiT ("velocity")
        cannot be told apart by their tensors.
        """
        samplers = {"velocity": ("dopri5", 50), "epsilon": ("ddpm", 250)}
        if prediction not in samplers:
            raise ValueError(f"prediction must be one of {tuple(samplers)}, got {prediction!r}.")
        sampler, steps = samplers[prediction]
        self.register_to_config(prediction=prediction, sampler=sampler, num_inference_steps=steps)

    @property
    def null_class(self) -> int:
        """Id of "no class"."""
        return self.config.num_classes if self.config.null_class is None else self.config.null_class

    def _rotary(self, grid: tuple[int, int], device: torch.device) -> Callable[..., Any]:
        def of(head_dim: int, first: int = 0) -> Callable[[Tensor], Tensor] | None:
            if not self.config.rotary:
                return None
            cos, sin = grid_rotary_table(grid, head_dim, device=device)
            if first:  # texts have no place on the grid
                return lambda x: torch.cat([x[..., :first, :], apply_rotary(x[..., first:, :], cos, sin)], -2)
            return lambda x: apply_rotary(x, cos, sin)

        return of

    def pad_text(self, states: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Texts `(B, L, F)` and their mask at `text_length` places: a result does not depend on a batch's longest text.

        Raises:
            ValueError: for states of another width, a mask of another shape, or texts that do not fit.
        """
        dim, places = self.config.text_dim, self.config.text_length
        if states.ndim != 3 or states.shape[-1] != dim:
            raise ValueError(f"encoder_hidden_states must be (B, L, {dim}), got {tuple(states.shape)}.")
        mask = torch.ones(states.shape[:2], device=states.device) if mask is None else mask
        if mask.shape != states.shape[:2]:
            raise ValueError(f"encoder_attention_mask must be {tuple(states.shape[:2])}, got {tuple(mask.shape)}.")
        mask = mask.bool()
        if states.shape[1] > places:
            if bool(mask[:, places:].any()):
                raise ValueError(f"A text has more than text_length={places} states.")
            states, mask = states[:, :places], mask[:, :places]
        short = places - states.shape[1]
        return F.pad(states, (0, 0, 0, short)), F.pad(mask, (0, short))

    def _text_tokens(self, states: Tensor | None, mask: Tensor | None, batch: int) -> Tensor:
        """`(B, text_length, D)`; `no_text` stands in empty places, and everywhere where there is no text."""
        if states is None:
            return self.no_text.expand(batch, self.config.text_length, -1)
        states, mask = self.pad_text(states, mask)
        return torch.where(mask[..., None], self.text_proj(states.to(self.dtype)), self.no_text)

    def _network(
        self,
        x: Tensor,
        timestep: Tensor,
        class_labels: Tensor,
        text: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> tuple[Tensor, list[Tensor]]:
        x, config = x.to(self.dtype), self.config
        grid = (x.shape[2] // config.patch_size, x.shape[3] // config.patch_size)
        rotary, projections = self._rotary(grid, x.device), []
        hidden = flatten_grid(self.patch_embed(x))  # (B, N, D)
        if config.position_embedding:
            hidden = hidden + self.position_table.to(hidden.dtype)
        time = self.time_embed(timestep)
        condition, first = time + self.class_embed(class_labels), 0
        if config.text_dim is not None:
            tokens, first = self._text_tokens(*text, len(x)), config.text_length
            hidden, condition = torch.cat([tokens, hidden], 1), condition + tokens.mean(1)
        if self.wide_head is not None:
            condition = F.silu(condition)
        turn = rotary(config.hidden_size // config.num_heads, first)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, condition, None, turn)
            if index + 1 == config.projector_layer and len(self.projectors):
                projections = [projector(hidden[:, first:]) for projector in self.projectors]
        hidden = hidden[:, first:]
        if self.wide_head is not None:
            hidden, condition = self.wide_head(x, time[:, None] + hidden, rotary)
        out = unpatchify(self.head(hidden, condition), *grid, config.patch_size)
        if config.learn_sigma and config.prediction == "velocity":
            out = out[:, : config.in_channels]
        return out, projections

    def _check_inputs(self, x: Tensor, class_labels: Tensor, text: Tensor | None = None) -> None:
        size, channels = self.config.sample_size, self.config.in_channels
        if tuple(x.shape[1:]) != (channels, size, size):
            raise ValueError(f"Latents must be (B, {channels}, {size}, {size}), got {tuple(x.shape)}.")
        if class_labels.shape != x.shape[:1]:
            raise ValueError(f"class_labels must be ({len(x)},), one per latent, got {tuple(class_labels.shape)}.")
        if text is not None and (self.config.text_dim is None or len(text) != len(x)):
            raise ValueError(
                "This generator takes no texts." if self.config.text_dim is None else "One text per latent."
            )

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        noise: Tensor | None = None,
        teacher_features: Sequence[Tensor] | None = None,
        return_dict: bool = True,
        *,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> LatentFlowOutput | tuple[Tensor]:
        """
        The velocity (DiT: noise and variance); with `noise`, a training pass.

        Args:
            hidden_states: `x_t` `(B, C, h, w)`; in a training pass the tokenizer's latents.
            timestep: `(B,)` in [0, 1]; of a DiT whole numbers below 1000.
            class_labels: int64 `(B,)`; `null_class` where there is none. Training drops some of them.
            noise: standard normal, like `hidden_states`.
            teacher_features: for REPA, one `(B, N, width)` per projector.
            return_dict: whether to return a [`LatentFlowOutput`].
            encoder_hidden_states, encoder_attention_mask: of a generator of texts: states `(B, L, text_dim)` and a mask
                `(B, L)`; an empty row stands for "no text". Training drops some of them.

        Raises:
            ValueError: for latents, labels or texts of another shape.
        """
        text = (encoder_hidden_states, encoder_attention_mask)
        if class_labels is None:
            class_labels = torch.full((len(hidden_states),), self.null_class, device=hidden_states.device)
        self._check_inputs(hidden_states, class_labels, encoder_hidden_states)
        if noise is not None:
            output = self._training_pass(hidden_states, timestep, class_labels, noise, teacher_features, text)
        else:
            output = LatentFlowOutput(*self._network(hidden_states, timestep, class_labels, text))
        return output if return_dict else (output.sample,)

    # ------------------------------------------------------------------ training

    def draw_times(self, uniform: Tensor) -> Tensor:
        """Times of a training batch from uniform draws `(B,)`, shifted as the sampler's; steps of a DiT."""
        if self.config.prediction == "epsilon":
            return (uniform * 1000).long().clamp(max=999)
        t = training_times(uniform, self.config.training_sampling)
        if self.config.grid == "rectok":
            return 1 - shift_times(t, self.config.time_shift)
        if self.config.grid == "rae":
            t = t.clamp(max=0.999)  # truncated, as in the authors' transport
        return shift_times(t, self.config.time_shift)

    def interpolate(self, data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`x_t` at times `(B,)`, and its velocity."""
        t = t.view(-1, *[1] * (data.ndim - 1)).to(data)
        if self.config.noise_time == 1:
            return (1 - t) * data + t * noise, noise - data
        return t * data + (1 - t) * noise, data - noise

    @staticmethod
    def projection_loss(projections: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Negative cosine similarity, averaged over tokens, images and teachers (REPA, arXiv 2410.06940)."""
        terms = [
            -F.cosine_similarity(p.float(), t.float(), dim=-1).mean() for p, t in zip(projections, targets, strict=True)
        ]
        return torch.stack(terms).mean()

    def _drop_labels(self, class_labels: Tensor) -> Tensor:
        if not self.training or not self.config.has_null_class:
            return class_labels
        drop = torch.rand(class_labels.shape, device=class_labels.device) < self.config.class_dropout
        return torch.where(drop, self.null_class, class_labels)

    def _drop_text(self, states: Tensor | None, mask: Tensor | None) -> Text:
        if states is None or not self.training:
            return states, mask
        mask = torch.ones(states.shape[:2], device=states.device) if mask is None else mask
        kept = torch.rand(len(states), 1, device=states.device) >= self.config.class_dropout
        return states, mask.bool() & kept

    def _training_pass(
        self,
        data: Tensor,
        t: Tensor,
        class_labels: Tensor,
        noise: Tensor,
        teachers: Sequence[Tensor] | None,
        text: Text,
    ) -> LatentFlowOutput:
        data, labels = self.normalize_latents(data), self._drop_labels(class_labels)
        text = self._drop_text(*text)
        if self.config.prediction == "epsilon":
            sample, losses = self._diffusion_losses(data, t, labels, noise, text)
            return LatentFlowOutput(sample, [], sum(losses.values()), losses)
        x, target = self.interpolate(data, noise, t)
        velocity, projections = self._network(x, t, labels, text)
        weights = self.config.loss_weights or {}
        losses = {"velocity_loss": F.mse_loss(velocity.float(), target.float())}
        if "cosine_loss" in weights:
            losses["cosine_loss"] = (1 - F.cosine_similarity(velocity.float(), target.float(), dim=1)).mean()
        if teachers is not None:
            losses["projection_loss"] = self.projection_loss(projections, teachers)
        loss = sum(weights.get(name, 1.0) * value for name, value in losses.items())
        return LatentFlowOutput(velocity, projections, loss, losses)

    def _diffusion_losses(
        self, data: Tensor, t: Tensor, class_labels: Tensor, noise: Tensor, text: Text
    ) -> tuple[Tensor, dict[str, Tensor]]:
        diffusion = GaussianDiffusion(linear_betas())
        sample, _ = self._network(diffusion.add_noise(data, noise, t), t, class_labels, text)
        if not self.config.learn_sigma:
            return sample, {"mse_loss": F.mse_loss(sample.float(), noise.float())}
        last = (0, 2, 3, 1)  # channels last: (B, h, w, C)
        terms = diffusion.losses(data.permute(last), noise.permute(last), t, sample.permute(last))
        return sample, {name: value.mean() for name, value in terms.items()}
