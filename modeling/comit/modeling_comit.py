"""COMiT (arXiv 2602.20731): a message of discrete tokens, rewritten after each look at a crop, drawn by a flow.

Shape suffixes in comments: B images, N tokens, K crops that were looked at, M windows of a picture.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.flow import FlowGuidance, check_steps
from ..layers.losses import teacher_similarity
from ..layers.quantizers import FSQ
from ..layers.sampling import Generators, draw_normal, draw_uniform
from ..layers.vae import build_vae, scale_latents, vae_decode, vae_factor, vae_posterior
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput
from .configuration_comit import SOLVERS, ComitConfig
from .modeling_comit_transformer import ComitTransformer

ORDERS = ("raster", "random", "adaptive")


class ComitModel(PreTrainedImageTokenizer):
    """
    Images in [-1, 1] to `num_latent_tokens` ids by looking at crops one after the other, and back through a flow.

    `latents` are FSQ codes in [-1, 1], `(B, N, d)`. A message is drawn from where the last crop was: `encode` hands on
    `decode_kwargs["offset"]`; `decode` takes the end of the raster order for it where it is not given.
    """

    config: ComitConfig
    teacher_inputs = {"teacher_features": "patches"}
    _no_split_modules = ["ComitBlock", "ResnetBlock2D"]
    _keep_in_fp32_modules_strict = ["vae"]

    def __init__(self, config: ComitConfig) -> None:
        super().__init__(config)
        self.transformer = ComitTransformer(config)
        self.quantizer = FSQ(config.fsq_levels)
        self.vae = build_vae(config.vae_config or {})
        self.alignment_head = None
        if config.alignment_dim:
            self.alignment_head = nn.Linear(config.hidden_size, config.alignment_dim)
        self.post_init()

    def train(self, mode: bool = True) -> "ComitModel":
        """As usual, but for the VAE: it stays in eval mode, and frozen (loading forgets that)."""
        super().train(mode)
        self.vae.eval().requires_grad_(False)
        return self

    # ------------------------------------------------------------------ properties

    @property
    def codebook_size(self) -> int:
        """Product of the FSQ levels."""
        return self.quantizer.codebook_size

    @property
    def teacher_grid(self) -> tuple[int, int]:
        """The grid of the flow decoder's patches."""
        side = self.config.latent_size // self.config.patch_size
        return side, side

    @property
    def num_tokens(self) -> int:
        """Tokens of a message."""
        return self.config.num_latent_tokens

    @property
    def latent_dim(self) -> int:
        """Number of FSQ channels."""
        return self.quantizer.dim

    @property
    def num_windows(self) -> int:
        """Windows of a picture."""
        return self.config.crops_per_side**2

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """FSQ codes in [-1, 1], `(B, N, d)`."""
        return self.quantizer.indices_to_latents(token_ids)

    def empty_message(self, batch: int) -> Tensor:
        """The message before the first look, `(B, N, d)`: the middle code everywhere."""
        ids = torch.full((batch, self.num_tokens), self.codebook_size // 2, device=self.device)
        return self.quantizer.indices_to_latents(ids)

    # ------------------------------------------------------------------ looking

    def locations(self, global_crop: bool = False) -> Tensor:
        """Centres (x, y) of the windows in halves of a side, `(M, 2)` in [-1, 1]; the full picture's comes first."""
        config, half = self.config, self.config.image_size / 2
        axis = torch.arange(config.crops_per_side, device=self.device) * config.crop_stride + config.crop_size / 2
        rows, columns = torch.meshgrid(axis / half - 1, axis / half - 1, indexing="ij")
        centres = torch.stack([columns.flatten(), rows.flatten()], 1)
        return torch.cat([torch.zeros_like(centres[:1]), centres]) if global_crop else centres

    def _windows(self, pixels: Tensor) -> Tensor:
        """`(B, M, 3, crop, crop)` in raster order."""
        size, stride = self.config.crop_size, self.config.crop_stride
        windows = pixels.unfold(2, size, stride).unfold(3, size, stride)  # (B, 3, m, m, crop, crop)
        return windows.flatten(2, 3).transpose(1, 2)

    def _order(
        self, crop_order: Any, num_crops: int | None, batch: int, global_crop: bool, generator: Generators
    ) -> Tensor:
        """Which window each image looks at in each step, int64 `(K, B)`; of "adaptive" only the first step."""
        total = self.num_windows + global_crop
        if isinstance(crop_order, str):
            if crop_order not in ORDERS:
                raise ValueError(f"crop_order must be one of {ORDERS} or a list of windows, got {crop_order!r}.")
            if num_crops is not None and not (isinstance(num_crops, int) and 1 <= num_crops <= total):
                raise ValueError(f"num_crops must be 1 to {total}, got {num_crops!r}.")
            if crop_order == "adaptive":
                first = 0 if global_crop else self.num_windows // 2
                return torch.full((1, batch), first, device=self.device)
            order = torch.arange(total, device=self.device).expand(batch, total)
            if crop_order == "random":
                draws = draw_uniform((batch, self.num_windows), generator, self.device)
                order = torch.cat([order[:, :global_crop], draws.argsort(1) + int(global_crop)], 1)
            return order[:, :num_crops].T
        order = torch.as_tensor(crop_order, dtype=torch.long, device=self.device)
        order = order[:, None].expand(-1, batch) if order.ndim == 1 else order.T
        wrong = order.ndim != 2 or order.shape[1] != batch or not order.numel()
        if wrong or int(order.min()) < 0 or int(order.max()) >= total:
            raise ValueError(f"crop_order must list windows in [0, {total - 1}], once or for each of {batch} images.")
        return order

    def _crop_latents(self, pixels: Tensor, index: Tensor, global_crop: bool, sample: bool, generator: Any) -> Tensor:
        """Scaled VAE latents of the window that each image looks at."""
        if global_crop:
            whole = index == 0
            if bool(whole.all()):
                return self.vae_latents(pixels, sample, generator)
            if bool(whole.any()):
                raise ValueError("The full picture (window 0) must come in the same step for all images.")
            index = index - 1
        crops = self._windows(pixels)[torch.arange(len(pixels), device=index.device), index]
        return self.vae_latents(crops, sample, generator)

    def vae_latents(self, pixels: Tensor, sample: bool = False, generator: Generators = None) -> Tensor:
        """Scaled VAE latents `(B, C, h, w)`: the posterior's mode, or a draw (as the authors do)."""
        dist = vae_posterior(self.vae, pixels)
        noise = draw_normal(tuple(dist.mean.shape), generator, pixels.device) if sample else None
        latents = dist.mode() if noise is None else dist.sample(noise=noise)
        return scale_latents(self.vae, latents).to(self.dtype)

    def look(self, message: Tensor, latents: Tensor, offset: Tensor) -> Tensor:
        """The message after a look at `latents` `(B, C, h, w)`, before quantization, `(B, N, d)`."""
        ones = torch.ones(len(latents), device=latents.device)
        return self.transformer(latents, ones, message.to(self.dtype), offset.to(self.dtype)).update

    def _encode(
        self,
        pixel_values: Tensor,
        crop_order: str | Sequence[int] | Sequence[Sequence[int]] | Tensor = "raster",
        num_crops: int | None = None,
        global_crop: bool = False,
        legacy_batch: bool = False,
        sample_posterior: bool = False,
        generator: Generators = None,
        noise: dict[str, Tensor] | Tensor | None = None,
    ) -> ImageTokenizerEncoderOutput:
        batch = len(pixel_values)
        order = self._order(crop_order, num_crops, batch, global_crop, generator)
        total = len(order) if crop_order != "adaptive" or not isinstance(crop_order, str) else num_crops
        total = self.num_windows + global_crop if total is None else total
        centres, last = self.locations(global_crop), None
        message, update, chosen = self.empty_message(batch), None, []
        used = torch.zeros(batch, len(centres), dtype=torch.bool, device=pixel_values.device)
        for step in range(total):
            if step < len(order):
                index = order[step]
            else:
                scores = self._window_errors(pixel_values, message, -last, noise, generator)
                index = self._worst_unused(scores, used, global_crop, legacy_batch)
            chosen.append(index)
            used = used.scatter(1, index[:, None], True)
            place = centres[index]
            latents = self._crop_latents(pixel_values, index, global_crop, sample_posterior, generator)
            update = self.look(message, latents, torch.zeros_like(place) if last is None else place - last)
            message, last = self.quantizer(update).quantized, place
        return ImageTokenizerEncoderOutput(
            latents=message,
            token_ids=self.quantizer.latents_to_indices(message.detach()),
            pre_quant=update,
            decode_kwargs={"offset": -last, "crop_order": torch.stack(chosen, 1)},
        )

    def _window_errors(
        self, pixels: Tensor, message: Tensor, offset: Tensor, noise: Any, generator: Generators
    ) -> Tensor:
        """Squared error of what the message knows (one step without guidance) in each window, `(B, M)`."""
        start = self._start(len(pixels), noise, generator)
        known = vae_decode(self.vae, self.draw_latents(message, offset, start, 1, 1.0))
        error = (known - pixels).square().mean(1, keepdim=True)
        return F.avg_pool2d(error, self.config.crop_size, self.config.crop_stride).flatten(1)

    @staticmethod
    def _worst_unused(scores: Tensor, used: Tensor, global_crop: bool, legacy_batch: bool) -> Tensor:
        """The window with the largest error among those not looked at; the authors bar it for the whole batch."""
        if legacy_batch:
            used = used.any(0).expand_as(used)
        local = used[:, int(global_crop) :]
        return scores.masked_fill(local, float("-inf")).argmax(1) + int(global_crop)

    # ------------------------------------------------------------------ drawing

    def _start(self, batch: int, noise: Any, generator: Generators) -> Tensor:
        shape = (batch, self.config.latent_channels, self.config.latent_size, self.config.latent_size)
        noise = noise.get("start") if isinstance(noise, dict) else noise
        if noise is None:
            return draw_normal(shape, generator, self.device)
        if tuple(noise.shape) != shape:
            raise ValueError(f"noise must have shape {shape}, got {tuple(noise.shape)}.")
        return noise.to(self.device)

    def draw_latents(
        self,
        message: Tensor,
        offset: Tensor,
        start: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        solver: str = "euler",
    ) -> Tensor:
        """
        Follows the flow from noise (t = 0) to scaled VAE latents (t = 1) on a uniform grid.

        diffusers has no midpoint solver for flows, and its Euler scheduler counts time backwards: the loop is here.

        Args:
            message: `(B, N, d)`.
            offset: `(B, 2)`.
            start: standard normal `(B, C, h, w)`.
            num_inference_steps: steps; "midpoint" asks the network twice in each.
            guidance_scale: of the projected guidance against the empty message; 0 and 1 mean none.
            solver: "euler" or "midpoint".
        """
        check_steps(num_inference_steps)
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {SOLVERS}, got {solver!r}.")
        velocity = self._guided_velocity(message, offset, guidance_scale)
        x, dt = start.float(), 1.0 / num_inference_steps
        for step in range(num_inference_steps):
            t = step * dt
            v = velocity(x, t)
            x = x + dt * (v if solver == "euler" else velocity(x + dt / 2 * v, t + dt / 2))
        return x

    def _guided_velocity(self, message: Tensor, offset: Tensor, scale: float) -> Callable[[Tensor, float], Tensor]:
        config, message, offset = self.config, message.to(self.dtype), offset.to(self.dtype)
        guidance = FlowGuidance(
            scale or 1.0, "apg", config.guidance_momentum, config.guidance_eta, config.guidance_norm_threshold
        )
        guided, buffer = guidance.scale != 1.0, guidance.start()
        if guided:
            empty = self.empty_message(len(message)).to(message)
            message, offset = torch.cat([message, empty]), torch.cat([offset, offset])

        def velocity(x: Tensor, t: float) -> Tensor:
            both = torch.cat([x, x]) if guided else x
            times = torch.full((len(both),), t, device=x.device)
            v = self.transformer(both.to(self.dtype), times, message, offset).velocity.float()
            return guidance(*v.chunk(2), guidance.scale, buffer) if guided else v

        return velocity

    def _decode(
        self,
        latents: Tensor,
        token_mask: Tensor | None,
        offset: Tensor | None = None,
        crop_order: Tensor | None = None,
        noise: Tensor | dict[str, Tensor] | None = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        solver: str | None = None,
    ) -> ImageTokenizerDecoderOutput:
        config, batch = self.config, len(latents)
        if offset is None:
            offset = -self.locations()[-1:].expand(batch, 2)
        if tuple(offset.shape) != (batch, 2):
            raise ValueError(
                f"offset must be (B, 2), from the last crop's centre to the picture's, got {offset.shape}."
            )
        drawn = self.draw_latents(
            latents,
            offset.to(latents.device),
            self._start(batch, noise, generator),
            config.num_inference_steps if num_inference_steps is None else num_inference_steps,
            config.guidance_scale if guidance_scale is None else guidance_scale,
            config.solver if solver is None else solver,
        )
        return ImageTokenizerDecoderOutput(sample=vae_decode(self.vae, drawn))

    def noise_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        """Draws that `encode` (of the adaptive order) and `decode` take as `noise`."""
        size = self.config.latent_size
        return {"start": (batch, self.config.latent_channels, size, size)}

    # ------------------------------------------------------------------ training

    def forward(
        self,
        pixel_values: Tensor,
        teacher_features: Tensor | None = None,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        crop_order: Any = "random",
        num_crops: int | None = None,
        global_crop: bool = False,
        **kwargs: Any,
    ) -> ImageTokenizerOutput:
        """
        One training pass: look at some crops, then predict the flow's velocity for the full picture.

        Args:
            pixel_values: `(B, 3, H, W)` in [-1, 1].
            teacher_features: of a frozen image encoder, one for each patch `(B, P, alignment_dim)`.
            noise, timesteps: draws `(B, C, h, w)` and times `(B,)`; drawn where None.
            crop_order, num_crops, global_crop: see `encode`; a random number of random crops by default.
            kwargs: of `encode`.

        Returns:
            losses `flow_loss`, and `alignment_loss` (1 - cosine) where the teacher's features are given.
        """
        batch, device = len(pixel_values), pixel_values.device
        if num_crops is None and isinstance(crop_order, str):
            num_crops = int(torch.randint(1, self.num_windows + global_crop + 1, ())) if self.training else 1
        encoded = self.encode(
            pixel_values, crop_order=crop_order, num_crops=num_crops, global_crop=global_crop, **kwargs
        )
        message = encoded.latents
        if self.training and self.config.condition_dropout:
            drop = torch.rand(batch, 1, 1, device=device) < self.config.condition_dropout
            message = torch.where(drop, self.empty_message(batch).to(message), message)
        data = self.vae_latents(pixel_values)
        noise = torch.randn_like(data) if noise is None else noise.to(data)
        t = torch.rand(batch, device=device) if timesteps is None else timesteps.to(device)
        share = t.view(-1, 1, 1, 1).to(data)
        x = share * data + (1 - share) * noise
        output = self.transformer(x, t, message.to(self.dtype), encoded.decode_kwargs["offset"].to(self.dtype))
        losses = {"flow_loss": F.mse_loss(output.velocity.float(), (data - noise).float())}
        if teacher_features is not None:
            if self.alignment_head is None:
                raise ValueError("teacher_features need alignment_dim in the configuration.")
            ours = self.alignment_head(output.features.flatten(2).transpose(1, 2))
            losses["alignment_loss"] = (1 - teacher_similarity(ours, teacher_features)).mean()
        weights = self.config.loss_weights or {}
        total = sum(weights.get(name, 1.0) * value for name, value in losses.items())
        return ImageTokenizerOutput(total, losses, token_ids=encoded.token_ids)

    def _check_image_size(self, height: int, width: int) -> None:
        super()._check_image_size(height, width)
        if self.config.latent_size * vae_factor(self.vae) != self.config.image_size:
            raise ValueError("latent_size times the VAE's factor must be image_size.")
