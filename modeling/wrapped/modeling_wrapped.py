"""A thin wrapper: AutoencoderKL, AutoencoderDC and VQModel of diffusers, the VQVAEs of Emu3, Chameleon and Janus."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..layers.conv_codec import check_multiple, flatten_grid, grid_of, unflatten_grid
from ..layers.quantizers import nearest_code
from ..layers.vae import pixel_block, vae_factor, vae_pixels, vae_posterior
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput
from .configuration_wrapped import LIBRARIES, WrappedTokenizerConfig


class WrappedTokenizerModel(PreTrainedImageTokenizer):
    """
    Another library's tokenizer behind the contract. `model` is that library's own module.

    Latents are grids `(B, D, h, w)`, unscaled, exactly what the inner decoder takes; ids are in raster order.
    """

    config: WrappedTokenizerConfig
    latent_layout = "grid"

    def __init__(self, config: WrappedTokenizerConfig) -> None:
        super().__init__(config)
        self.model = build_inner(config)
        self.post_init()

    @classmethod
    def wrap(cls, inner: nn.Module) -> "WrappedTokenizerModel":
        """Wraps a loaded module; its weights are shared, not copied."""
        with torch.device("meta"):
            wrapper = cls(config_of(inner))
        wrapper.model = inner
        return wrapper.eval()

    @property
    def kind(self) -> str:
        """Name of the inner class."""
        return self.config.inner_class

    @property
    def is_discrete(self) -> bool:
        """False for diffusers' AutoencoderKL and AutoencoderDC."""
        return self.kind not in ("AutoencoderKL", "AutoencoderDC")

    @property
    def decodes_to(self) -> str | None:
        """ "pixels"; None for Chameleon, whose decoder transformers leaves out."""
        return None if self.kind == "ChameleonVQVAE" else "pixels"

    @property
    def factor(self) -> int:
        """Pixels per side of a latent position."""
        inner = self.model.config
        if self.kind == "AutoencoderDC":
            return self.model.spatial_compression_ratio
        if self.kind == "AutoencoderKL":
            return vae_factor(self.model)
        levels = getattr(inner, "channel_multiplier", None) or inner.block_out_channels
        return 2 ** (len(levels) - 1)

    @property
    def num_tokens(self) -> int:
        """Positions of a picture of `config.image_size`."""
        return (self.config.image_size // self.factor) ** 2

    @property
    def latent_dim(self) -> int:
        """Width of a position's latents."""
        inner = self.model.config
        if self.kind == "VQModel":
            return inner.vq_embed_dim or inner.latent_channels
        return inner.embed_dim if self.is_discrete else inner.latent_channels

    @property
    def codebook_size(self) -> int | None:
        """Number of ids; None where there are none."""
        return self._embedding.num_embeddings if self.is_discrete else None

    @property
    def _embedding(self) -> nn.Embedding:
        return self.model.quantize.embedding

    def _check_image_size(self, height: int, width: int) -> None:
        check_multiple(self.kind, height, width, self.factor)

    def _check_token_count(self, token_ids: Tensor) -> None:
        """Any count is a grid of some picture; `_ids_to_latents` checks that it is one."""

    # ------------------------------------------------------------------ encode

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        if self.kind == "AutoencoderKL":
            return ImageTokenizerEncoderOutput(latent_dist=vae_posterior(self.model, pixel_values))
        if self.kind == "AutoencoderDC":
            return ImageTokenizerEncoderOutput(latents=self.model.encode(pixel_values).latent)
        pre_quant = self._features(pixel_values)
        height, width = pre_quant.shape[2:]
        ids = nearest_code(flatten_grid(pre_quant), self._embedding.weight)
        return ImageTokenizerEncoderOutput(
            latents=unflatten_grid(self.get_codebook_entry(ids), height, width), token_ids=ids, pre_quant=pre_quant
        )

    def _features(self, pixel_values: Tensor) -> Tensor:
        """What the quantizer searches with, `(B, D, h, w)`."""
        if self.kind == "VQModel":
            return self.model.encode(pixel_values).latents
        if self.kind != "Emu3VQVAE":
            return self.model.quant_conv(self.model.encoder(pixel_values))
        frames = self.model.config.temporal_downsample_factor  # an image is a still of as many frames as make one code
        video = pixel_values[:, None].expand(-1, frames, -1, -1, -1)
        return self.model.quant_conv(self.model.encoder(video).transpose(1, 2))[:, :, 0]

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """Rows of the codebook, `(B, N, D)`. Of unit length for Janus, whose search takes them as they are."""
        rows = self._embedding(token_ids)
        return F.normalize(rows, dim=-1) if self.kind == "JanusVQVAE" else rows

    def _ids_to_latents(self, token_ids: Tensor, image_size: int | tuple[int, int] | None = None) -> Tensor:
        height, width = grid_of(token_ids.shape[1], image_size, self.factor)
        return unflatten_grid(self.get_codebook_entry(token_ids), height, width)

    # ------------------------------------------------------------------ decode

    def _decode(
        self, latents: Tensor, token_mask: Tensor | None = None, image_size: int | tuple[int, int] | None = None
    ) -> ImageTokenizerDecoderOutput:
        return ImageTokenizerDecoderOutput(sample=self._draw(latents.to(self.dtype)))

    def _draw(self, latents: Tensor) -> Tensor:
        if self.kind == "ChameleonVQVAE":
            raise ValueError("ChameleonVQVAE has no decoder in transformers: it only encodes.")
        if self.kind == "VQModel":
            return self.model.decode(latents, force_not_quantize=True).sample
        if self.kind == "AutoencoderKL":
            return vae_pixels(self.model, latents)
        if self.kind == "JanusVQVAE":
            return self.model.decoder(self.model.post_quant_conv(latents))
        if self.kind != "Emu3VQVAE":
            return self.model.decode(latents).sample
        video = latents[:, :, None]
        hidden = self.model.post_quant_conv(video)
        frames = self.model.decoder(hidden.transpose(1, 2), video.transpose(1, 2))
        return frames.reshape(latents.shape[0], -1, self.config.num_channels, *frames.shape[-2:])[:, 0]

    def forward(self, pixel_values: Tensor) -> ImageTokenizerOutput:
        """Reconstruction (mean squared error), and the KL term of AutoencoderKL; other terms are the library's."""
        encoded = self.encode(pixel_values)
        latents, dist = encoded.latents, encoded.latent_dist
        if self.training and dist is not None:
            latents = dist.sample()
            latents = latents + self.config.latent_noise * latents.detach().std() * torch.randn_like(latents)
        sample = self.decode(latents).sample
        losses = {"reconstruction_loss": F.mse_loss(sample, pixel_values)}
        if dist is not None:
            losses["kl_loss"] = self.config.kl_weight * dist.kl(1).sum() / len(sample)
        return ImageTokenizerOutput(sum(losses.values()), losses, sample, encoded.token_ids)


def inner_class(name: str) -> type:
    """The class that a configuration names, out of the table."""
    return getattr(importlib.import_module(LIBRARIES[name]), name)


def build_inner(config: WrappedTokenizerConfig) -> nn.Module:
    """A fresh inner module."""
    cls, fields = inner_class(config.inner_class), dict(config.inner_config or {})
    if LIBRARIES[config.inner_class] == "diffusers":
        return cls(**{name: value for name, value in fields.items() if not name.startswith("_")})
    return cls(cls.config_class(**fields))


def config_of(inner: nn.Module) -> WrappedTokenizerConfig:
    """The configuration of a loaded inner module."""
    name = type(inner).__name__
    if name not in LIBRARIES:
        raise ValueError(f"There is no wrapper for {name}; there are {', '.join(LIBRARIES)}.")
    if LIBRARIES[name] == "diffusers":
        fields = {key: value for key, value in dict(inner.config).items() if not key.startswith("_")}
        size = fields.get("sample_size") or 512
        if name == "AutoencoderKL" and isinstance(size, int):  # of what its first convolution sees
            size *= pixel_block(inner)
    else:
        fields, size = inner.config.to_diff_dict(), getattr(inner.config, "resolution", 512)
    options: dict[str, Any] = {"image_size": size if isinstance(size, int) else min(size)}
    if name == "Emu3VQVAE":
        options |= {"pixel_range": None, "image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    return WrappedTokenizerConfig(inner_class=name, inner_config=fields, **options)
