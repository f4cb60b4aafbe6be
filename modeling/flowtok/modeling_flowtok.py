"""FlowTiTok (arXiv 2503.10772, section 3.2): TA-TiTok with a rotary grid and SwiGLU, without a class token.

Shape suffixes in comments: B images, N latent tokens, G grid positions, T text positions, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..layers.attention import TransformerBlock
from ..layers.conv_codec import flatten_grid, unflatten_grid
from ..layers.mlp import FusedSwiGLU
from ..layers.rotary import apply_rotary, grid_rotary_table
from ..ta_titok.modeling_ta_titok import TaTiTokModel
from .configuration_flowtok import FlowTiTokConfig


def grid_rotary(grid: int, head_dim: int, theta: float, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function that rotates the first `grid ** 2` positions of q or k `(B, H, n, d)` and leaves the rest alone."""
    cos, sin = grid_rotary_table((grid, grid), head_dim, theta, device=device)

    def rotate(x: Tensor) -> Tensor:
        return torch.cat([apply_rotary(x[:, :, : grid**2], cos, sin), x[:, :, grid**2 :]], 2)

    return rotate


def blocks(config: FlowTiTokConfig, width: int, num_heads: int, num_layers: int) -> nn.ModuleList:
    """Pre-norm blocks with SwiGLU of `int(2 / 3 * 4 * width)`."""
    hidden = int(2 / 3 * 4 * width)
    return nn.ModuleList(
        TransformerBlock(width, num_heads, hidden, mlp=FusedSwiGLU(width, hidden), config=config)
        for _ in range(num_layers)
    )


class FlowTiTokEncoder(nn.Module):
    """ViT over [patches, latent tokens]; returns the moments of the latent tokens, `(B, N, 2C)`."""

    def __init__(self, config: FlowTiTokConfig) -> None:
        super().__init__()
        width, patch, count = config.encoder_hidden_size, config.encoder_patch_size, config.num_latent_tokens
        self.config, self.num_tokens = config, count
        self.grid, self.head_dim = config.image_size // patch, width // config.encoder_num_heads
        self.patch_embed = nn.Conv2d(config.num_channels, width, patch, stride=patch)
        self.latent_tokens = nn.Parameter(torch.empty(count, width))
        self.latent_position_embedding = nn.Parameter(torch.empty(count, width))
        self.norm_pre = nn.LayerNorm(width)
        self.layers = blocks(config, width, config.encoder_num_heads, config.encoder_num_layers)
        self.norm_post = nn.LayerNorm(width)
        self.proj = nn.Linear(width, 2 * config.token_size)

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.config.initializer_range)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, N, 2C)`."""
        patches = flatten_grid(self.patch_embed(pixels))  # (B, G, D)
        latents = (self.latent_tokens + self.latent_position_embedding).expand(len(patches), -1, -1)
        x = self.norm_pre(torch.cat([patches, latents], 1))
        rotary = grid_rotary(self.grid, self.head_dim, self.config.rope_theta, x.device)
        for layer in self.layers[:-1]:
            x = layer(x, None, rotary)
        x = self.layers[-1](x, None, rotary, num_queries=self.num_tokens)  # nobody reads the patches after this layer
        return self.proj(self.norm_post(x))


class FlowTiTokDecoder(nn.Module):
    """ViT over [mask tokens, latents, text]; returns the grid positions, `(B, C, h, w)`."""

    def __init__(self, config: FlowTiTokConfig) -> None:
        super().__init__()
        width, patch = config.decoder_hidden_size, config.decoder_patch_size
        self.config = config
        self.grid, self.head_dim = config.image_size // patch, width // config.decoder_num_heads
        self.embed = nn.Linear(config.token_size, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.latent_position_embedding = nn.Parameter(torch.empty(config.num_latent_tokens, width))
        self.text_proj = nn.Linear(config.text_embed_dim, width)
        self.text_position_embedding = nn.Parameter(torch.empty(config.text_context_length, width))
        self.norm_pre = nn.LayerNorm(width)
        self.layers = blocks(config, width, config.decoder_num_heads, config.decoder_num_layers)
        self.norm_post = nn.LayerNorm(width)
        self.head = nn.Linear(width, patch * patch * config.num_channels)

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.config.initializer_range)

    def text_tokens(self, text_hidden_states: Tensor) -> Tensor:
        """States of the text encoder `(B, T, text_embed_dim)` to tokens `(B, T, D)`."""
        return self.text_proj(text_hidden_states) + self.text_position_embedding

    def forward(self, latents: Tensor, token_mask: Tensor | None, text: Tensor) -> Tensor:
        """Latents `(B, N, C)`, which of them count, and text tokens `(B, T, D)` to `(B, C, h, w)`."""
        count = self.grid**2
        masks = self.mask_token.expand(latents.shape[0], count, -1)
        x = self.norm_pre(torch.cat([masks, self.embed(latents) + self.latent_position_embedding, text], 1))
        mask = None
        if token_mask is not None:
            seen = token_mask.new_ones(latents.shape[0], count), token_mask, token_mask.new_ones(text.shape[:2])
            mask = torch.cat(seen, 1)[:, None, None, :]  # (B, 1, 1, G + N + T)
        rotary = grid_rotary(self.grid, self.head_dim, self.config.rope_theta, x.device)
        for layer in self.layers:
            x = layer(x, mask, rotary)
        return unflatten_grid(self.head(self.norm_post(x[:, :count])), self.grid, self.grid)


class FlowTiTokModel(TaTiTokModel):
    """
    Images in [0, 1] to as many continuous tokens as a text has (77 of width 16), and back with the caption.

    As [`TaTiTokModel`]: `decode` needs `text_hidden_states`.
    """

    config: FlowTiTokConfig
    encoder_class, decoder_class = FlowTiTokEncoder, FlowTiTokDecoder
