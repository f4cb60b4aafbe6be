"""FlowTok's generator (arXiv 2503.10772): a text VAE and a DiT whose flow starts at the text's latents, not at noise.

Shape suffixes in comments: B images, T tokens (of a text and of an image), E width of the text encoder, C of a token.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.adaln import zero_marked
from ..layers.attention import Attention
from ..layers.dit import DiTBlock, DiTHead
from ..layers.flow import check_flow_scheduler, check_steps
from ..layers.guidance import check_scale, combine
from ..layers.positions import sincos_table
from ..layers.posterior import DiagonalGaussian
from ..layers.time_embedding import TimeEmbedding

END = 1e-5  # the flow keeps this share of the text at t = 1, and the time grids stop this short of their ends


@dataclass
class FlowTokTransformerOutput(BaseOutput):
    """
    What [`FlowTokTransformer`] returns.

    Args:
        sample: the velocity `d x / d t`, `(B, T, C)`.
        loss: the training objective, where a text was given.
        losses: its terms: `flow_loss`, `contrastive_loss`, `kld_loss` (unweighted).
    """

    sample: Tensor
    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None


class UnbiasedLayerNorm(nn.Module):
    """`g * (x - mean) / (std + 1e-5) + b` with the unbiased standard deviation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` to `(..., D)`."""
        centred = x - x.mean(-1, keepdim=True)
        return self.weight * centred / (x.std(-1, keepdim=True) + 1e-5) + self.bias


class TextBlock(nn.Module):
    """Post-norm transformer layer with a ReLU MLP; padding is not masked."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads)
        self.norm1, self.norm2 = UnbiasedLayerNorm(dim), UnbiasedLayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, mlp_dim), nn.Linear(mlp_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, E)` to `(B, T, E)`."""
        x = self.norm1(x + self.dropout(self.attn(x)))
        return self.norm2(x + self.dropout(self.fc2(F.relu(self.fc1(x)))))


class TextVAE(nn.Module):
    """Transformer over a text encoder's states; each position becomes the moments of one token (section 3.3)."""

    def __init__(self, dim: int, out_dim: int, num_layers: int, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TextBlock(dim, num_heads, mlp_dim, dropout) for _ in range(num_layers))
        self.proj = nn.Linear(dim, 2 * out_dim)

    def forward(self, text: Tensor) -> DiagonalGaussian:
        """`(B, T, E)` to a posterior over `(B, T, C)`; its log-variance is not clamped."""
        for layer in self.layers:
            text = layer(text)
        return DiagonalGaussian(*self.proj(text).chunk(2, -1))


class FlowTokTransformer(ModelMixin, ConfigMixin):
    """
    Velocities of the flow from text latents (t = 0) to image latents (t = 1).

    Args:
        num_tokens: tokens T of a text and of an image.
        token_size: their width C.
        hidden_size, num_layers, num_heads: of the DiT.
        text_embed_dim: width of the text encoder's states.
        text_num_layers, text_num_heads, text_mlp_dim, text_dropout: of the text VAE.
        projector_dim: hidden width of the contrastive loss's projection.
        latents_scale: factor between the tokenizer's latents and those that the flow sees.
        num_inference_steps, guidance_scale: how the checkpoint is sampled unless told otherwise.
        null_probability: share of pictures that training pairs with another's text, marked as unconditional.
        contrastive_weight, kld_weight: of two terms of the training loss.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock", "TextBlock"]
    _repeated_blocks = ["DiTBlock"]

    @register_to_config
    def __init__(
        self,
        num_tokens: int = 77,
        token_size: int = 16,
        hidden_size: int = 1152,
        num_layers: int = 28,
        num_heads: int = 16,
        text_embed_dim: int = 768,
        text_num_layers: int = 6,
        text_num_heads: int = 8,
        text_mlp_dim: int = 1024,
        text_dropout: float = 0.1,
        projector_dim: int = 512,
        latents_scale: float = 1.0143,
        num_inference_steps: int = 20,
        guidance_scale: float = 2.0,
        null_probability: float = 0.1,
        contrastive_weight: float = 1.0,
        kld_weight: float = 0.01,
    ) -> None:
        super().__init__()
        self.text_vae = TextVAE(text_embed_dim, token_size, text_num_layers, text_num_heads, text_mlp_dim, text_dropout)
        self.text_projector = nn.Sequential(
            nn.Linear(text_embed_dim, projector_dim),
            nn.SiLU(),
            nn.Linear(projector_dim, projector_dim),
            nn.SiLU(),
            nn.Linear(projector_dim, token_size),
        )
        # the loss's temperature: no published value matters, training starts it afresh
        self.log_temperature = nn.Parameter(torch.full((), math.log(1 / 0.07)))
        self.token_embed = nn.Linear(token_size, hidden_size)
        self.time_embed = TimeEmbedding(hidden_size)
        self.null_embed = nn.Embedding(2, hidden_size)
        self.layers = nn.ModuleList(DiTBlock(hidden_size, num_heads, 4 * hidden_size) for _ in range(num_layers))
        self.head = DiTHead(hidden_size, token_size)
        zero_marked(self)

    # ------------------------------------------------------------------ latents

    def normalize_latents(self, latents: Tensor) -> Tensor:
        """The tokenizer's latents to those of the flow."""
        return latents * self.config.latents_scale

    def denormalize_latents(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize_latents`."""
        return latents / self.config.latents_scale

    def encode_text(self, text_hidden_states: Tensor) -> DiagonalGaussian:
        """
        The posterior over text latents, from which the flow starts; sampling it is the only randomness.

        Args:
            text_hidden_states: `(B, T, text_embed_dim)`, of CLIP's last layer after its norm; all positions count.

        Raises:
            ValueError: for another shape.
        """
        shape = (self.config.num_tokens, self.config.text_embed_dim)
        if text_hidden_states.ndim != 3 or tuple(text_hidden_states.shape[1:]) != shape:
            raise ValueError(
                f"text_hidden_states must be (B, {shape[0]}, {shape[1]}), got {tuple(text_hidden_states.shape)}."
            )
        return self.text_vae(text_hidden_states.to(self.dtype))

    def project_text(self, text_hidden_states: Tensor) -> Tensor:
        """`(B, T, C)`, what the contrastive loss compares text latents with."""
        return self.text_projector(text_hidden_states.to(self.dtype))

    # ------------------------------------------------------------------ velocity

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        null_indicator: Tensor | None = None,
        text_hidden_states: Tensor | None = None,
        text_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowTokTransformerOutput | tuple[Tensor]:
        """
        The velocity; with a text, a training pass.

        Args:
            hidden_states: `x_t` `(B, T, C)`; in a training pass the image's latents (times `latents_scale`).
            timestep: `(B,)` in [0, 1]: 0 is the text, 1 the image.
            null_indicator: int64 `(B,)`, 1 where the flow is unconditional; zeros where None, drawn in training.
            text_hidden_states: see `encode_text`.
            text_noise: draws of the text latents `(B, T, C)`.
            return_dict: whether to return a [`FlowTokTransformerOutput`].
        """
        if text_hidden_states is not None:
            output = self._training_pass(hidden_states, timestep, null_indicator, text_hidden_states, text_noise)
        else:
            output = FlowTokTransformerOutput(self._velocity(hidden_states, timestep, null_indicator))
        return output if return_dict else (output.sample,)

    def _velocity(self, x: Tensor, timestep: Tensor, null_indicator: Tensor | None) -> Tensor:
        if null_indicator is None:
            null_indicator = torch.zeros(len(x), dtype=torch.long, device=x.device)
        positions = sincos_table((self.config.num_tokens,), self.config.hidden_size, device=x.device)
        hidden = self.token_embed(x.to(self.dtype)) + positions.to(self.dtype)
        condition = self.time_embed(timestep) + self.null_embed(null_indicator)
        for layer in self.layers:
            hidden = layer(hidden, condition)
        return self.head(hidden, condition)

    @staticmethod
    def interpolate(text_latents: Tensor, image_latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`x_t` of the flow at times `(B,)`, and its velocity."""
        t = t.view(-1, 1, 1)
        return (1 - (1 - END) * t) * text_latents + t * image_latents, image_latents - (1 - END) * text_latents

    @staticmethod
    def kld(posterior: DiagonalGaussian) -> Tensor:
        """The divergence-like term of the authors, summed over all: the mean enters in its sixth power."""
        mean, logvar = posterior.mean, posterior.logvar
        return -0.5 * (1 + logvar - (0.3 * mean) ** 6 - logvar.exp()).sum()

    def contrastive_loss(self, text_latents: Tensor, projected: Tensor) -> Tensor:
        """Symmetric cross-entropy between flattened text latents and projected texts of the batch."""
        ours, theirs = (F.normalize(x.flatten(1).float(), dim=-1) for x in (text_latents, projected))
        logits = self.log_temperature.exp() * ours @ theirs.T
        targets = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2

    def _drop_pairs(self, images: Tensor, null_indicator: Tensor | None) -> tuple[Tensor, Tensor]:
        """Marks some pictures as unconditional and passes their latents on to the next of them."""
        if null_indicator is None:
            share = self.config.null_probability if self.training else 0.0
            null_indicator = (torch.rand(len(images), device=images.device) < share).long()
        rows = torch.arange(len(images), device=images.device)
        chosen = null_indicator.nonzero()[:, 0]
        return images[rows.index_copy(0, chosen, chosen.roll(1))], null_indicator

    def _training_pass(
        self,
        images: Tensor,
        timestep: Tensor,
        null_indicator: Tensor | None,
        text_hidden_states: Tensor,
        text_noise: Tensor | None,
    ) -> FlowTokTransformerOutput:
        posterior = self.encode_text(text_hidden_states)
        text = posterior.sample(noise=text_noise)
        images, null_indicator = self._drop_pairs(images.to(text), null_indicator)
        x, target = self.interpolate(text, images, timestep.to(text))
        velocity = self._velocity(x, timestep, null_indicator)
        losses = {
            "flow_loss": F.mse_loss(velocity.float(), target.float()),
            "contrastive_loss": self.contrastive_loss(text, self.project_text(text_hidden_states)),
            "kld_loss": self.kld(posterior),
        }
        weights = {"contrastive_loss": self.config.contrastive_weight, "kld_loss": self.config.kld_weight}
        loss = sum(weights.get(name, 1.0) * value for name, value in losses.items())
        return FlowTokTransformerOutput(velocity, loss, losses)

    # ------------------------------------------------------------------ sampling

    def make_scheduler(
        self, num_inference_steps: int, scheduler: FlowMatchEulerDiscreteScheduler | None = None
    ) -> FlowMatchEulerDiscreteScheduler:
        """
        diffusers' Euler scheduler on the authors' two grids: the network is asked at `linspace(0, 1 - 1e-5, S)`, the
        steps are those between `linspace(1e-5, 1, S + 1)`. Its sigmas are `1 - t`.
        """
        check_steps(num_inference_steps)
        scheduler = FlowMatchEulerDiscreteScheduler() if scheduler is None else copy.deepcopy(scheduler)
        check_flow_scheduler(scheduler)
        steps = num_inference_steps
        sigmas = [1 - (END + (1 - END) * i / steps) for i in range(steps)]
        times = [(1 - END) * i / max(steps - 1, 1) for i in range(steps)]
        scheduler.set_timesteps(sigmas=sigmas, timesteps=times, device="cpu")
        scheduler.set_begin_index(0)
        return scheduler

    def sample_latents(
        self,
        text_latents: Tensor,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: FlowMatchEulerDiscreteScheduler | None = None,
        on_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
    ) -> Tensor:
        """
        Follows the flow from text latents to image latents: Euler steps, one forward of 2B each with guidance.

        Args:
            text_latents: `(B, T, C)`, a draw of `encode_text`.
            num_inference_steps: number S of steps, the checkpoint's where None.
            guidance_scale: `v = null + s (cond - null)`; 1 means none, the checkpoint's where None.
            scheduler: see `make_scheduler`.
            on_step: called with (step, timestep, latents); may return other latents.

        Returns:
            float32 latents `(B, T, C)`; `denormalize_latents` makes those that the tokenizer takes.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        check_scale("guidance_scale", scale)
        scheduler = self.make_scheduler(steps, scheduler)
        x = text_latents.float()
        for step, t in enumerate(scheduler.timesteps):
            velocity = self._guided(x, float(t), scale)
            x = scheduler.step(-velocity, t, x, return_dict=False)[0]  # sigma falls while t rises
            if on_step is not None:
                changed = on_step(step, t, x)
                x = x if changed is None else changed
        return x

    def _guided(self, x: Tensor, t: float, scale: float) -> Tensor:
        if scale == 1.0:
            return self._velocity(x, x.new_full((len(x),), t), None).float()
        times = x.new_full((2 * len(x),), t)
        null = (torch.arange(2 * len(x), device=x.device) >= len(x)).long()
        cond, uncond = self._velocity(torch.cat([x, x]), times, null).float().chunk(2)
        return combine(cond, uncond, scale)

    def invert_to_text(self, image_latents: Tensor, num_inference_steps: int | None = None) -> Tensor:
        """
        Follows the flow backwards, from image latents to text latents, without guidance.

        Ours: the paper trains this direction and a text decoder for it, of which neither code nor weights exist. What
        comes out can be compared with `encode_text` of candidate captions.

        Args:
            image_latents: `(B, T, C)`, times `latents_scale`.
            num_inference_steps: equal Euler steps from t = 1 to 0.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        check_steps(steps)
        x = image_latents.float()
        for step in range(steps, 0, -1):
            x = x - self._velocity(x, x.new_full((len(x),), step / steps), None).float() / steps
        return x
