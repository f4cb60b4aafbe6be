"""COMiT's transformer (arXiv 2602.20731, section 3): one network that updates the message and predicts velocities.

Shape suffixes in comments: B images, P patches, N tokens of the message, d their channels, D width, S = 1 + P + 2N.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..layers.adaln import Modulation, modulate
from ..layers.attention import Attention, Mlp
from ..layers.conv_codec import flatten_grid, unflatten_grid
from ..layers.dit import DiTHead
from ..layers.patches import unpatchify
from ..layers.positions import sincos_table
from ..layers.time_embedding import TimeEmbedding
from .configuration_comit import ComitConfig


@dataclass
class ComitTransformerOutput:
    """
    What [`ComitTransformer`] returns.

    Args:
        velocity: `d x / d t`, `(B, C, h, w)`; t = 0 is noise, t = 1 data.
        update: the new message before quantization, `(B, N, d)`.
        location: the third head, `(B, 1, 2)` in [-1, 1].
        features, message_features: patches `(B, D, h', w')` and the message that came in `(B, N, D)`, behind
            `representation_layer`.
    """

    velocity: Tensor
    update: Tensor
    location: Tensor
    features: Tensor
    message_features: Tensor


class ComitBlock(GradientCheckpointingLayer):
    """DiT block over [offset token, patches, message, new message]; patches and messages have own modulations."""

    def __init__(self, config: ComitConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, config.num_heads, config=config)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width, int(config.mlp_ratio * width), approximate="tanh")
        self.image_modulation, self.message_modulation = Modulation(width, 6), Modulation(width, 6)

    def forward(self, x: Tensor, time: Tensor, num_patches: int, mask: Tensor) -> Tensor:
        """`(B, S, D)` and the time `(B, D)` to `(B, S, D)`."""
        sizes = [num_patches, x.shape[1] - 1 - num_patches]
        mods = zip(self.image_modulation(time[:, None]), self.message_modulation(time[:, None]), strict=True)
        # the offset token is neither shifted nor scaled nor gated
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            _by_position(pair, sizes, float(index in (2, 5))) for index, pair in enumerate(mods)
        )
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), mask)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


def _by_position(pair: tuple[Tensor, Tensor], sizes: list[int], first: float) -> Tensor:
    image, message = (value.expand(-1, size, -1) for value, size in zip(pair, sizes, strict=True))
    return torch.cat([torch.full_like(image[:, :1], first), image, message], 1)


def embedder(in_dim: int, dim: int) -> nn.Sequential:
    """Linear, SiLU, Linear."""
    return nn.Sequential(nn.Linear(in_dim, dim), nn.SiLU(), nn.Linear(dim, dim))


class ComitTransformer(nn.Module):
    """Latents, a message, a time and an offset in; velocity and new message out."""

    def __init__(self, config: ComitConfig) -> None:
        super().__init__()
        width, count, dim = config.hidden_size, config.num_latent_tokens, len(config.fsq_levels)
        self.config = config
        self.patch_embed = nn.Conv2d(config.latent_channels, width, config.patch_size, stride=config.patch_size)
        self.message_embed, self.offset_embed = embedder(dim, width), embedder(2, width)
        self.time_embed = TimeEmbedding(width, scale=1000.0)
        self.offset_position = nn.Parameter(torch.empty(1, 1, width))
        self.message_position = nn.Parameter(torch.empty(1, count, width))
        self.new_token = nn.Parameter(torch.empty(1, 1, width))
        self.new_position = nn.Parameter(torch.empty(1, count, width))
        self.layers = nn.ModuleList(ComitBlock(config) for _ in range(config.num_layers))
        self.velocity_head = DiTHead(width, config.patch_size**2 * config.latent_channels)
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.message_head, self.location_head = nn.Linear(width, dim), nn.Linear(width, 2)

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.config.initializer_range)

    def _positions(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """The top left corner of the full picture's table, `(P, D)`: crops do not know where they were."""
        side = self.config.latent_size // self.config.patch_size
        table = sincos_table((side, side), self.config.hidden_size, device=device)
        return table.unflatten(0, (side, side))[:rows, :columns].flatten(0, 1)

    def _mask(self, num_patches: int, masked: bool, like: Tensor) -> Tensor:
        """
        1 where a position may look. The published weights were trained with these numbers *added* to the scores, which
        blocks nothing; `masked` makes a real mask of them.
        """
        count = self.config.num_latent_tokens
        allowed = like.new_ones(1 + num_patches + 2 * count, 1 + num_patches + 2 * count)
        allowed[:-count, -count:] = 0
        allowed[-count:, -count:].tril_()
        return allowed.bool() if masked else allowed

    def forward(
        self, x: Tensor, t: Tensor, message: Tensor, offset: Tensor, masked_attention: bool = False
    ) -> ComitTransformerOutput:
        """
        Args:
            x: scaled VAE latents `(B, C, h, w)`, of a picture or of a crop, with noise where t < 1.
            t: `(B,)`, 0 noise, 1 data.
            message: FSQ codes in [-1, 1], `(B, N, d)`.
            offset: `(B, 2)`, (x, y) from the last crop's centre to this one's, in halves of a side.
            masked_attention: see `_mask`.
        """
        patches = self.patch_embed(x)
        rows, columns, count = patches.shape[2], patches.shape[3], self.config.num_latent_tokens
        num_patches, batch = rows * columns, x.shape[0]
        parts = [
            self.offset_embed(offset)[:, None] + self.offset_position,
            flatten_grid(patches) + self._positions(rows, columns, x.device).to(x.dtype),
            self.message_embed(message) + self.message_position,
            (self.new_token + self.new_position).expand(batch, -1, -1),
        ]
        hidden, time = torch.cat(parts, 1), self.time_embed(t)
        mask, features = self._mask(num_patches, masked_attention, hidden), hidden
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, time, num_patches, mask)
            if index == self.config.representation_layer:
                features = hidden
        velocity = self.velocity_head(hidden[:, 1 : 1 + num_patches], time)
        return ComitTransformerOutput(
            unpatchify(velocity, rows, columns, self.config.patch_size),
            self.message_head(self.norm_out(hidden[:, -count:])),
            self.location_head(self.norm_out(hidden[:, :1])).tanh(),
            unflatten_grid(features[:, 1 : 1 + num_patches], rows, columns),
            features[:, 1 + num_patches : -count],
        )
