"""Ordered tokens through linear maps (ours): principal components of VAE latents, for chains small enough to ship.

Where a few million parameters must do, FlexTok's registers cost most of the sequence. A linear map whose outputs are
sorted by the variance they explain is prefix-ordered from the start, and the decoder sees its picture of the kept
tokens beside the noised latents.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class FlexTokLinearEncoder(ModelMixin, ConfigMixin):
    """
    VAE latents to the input of the quantizer, by one linear map; in place of [`FlexTokEncoder`].

    Args:
        in_channels, sample_size: of the latents; no other size is taken.
        num_registers: number N of tokens.
        out_dim: number of FSQ channels.
    """

    @register_to_config
    def __init__(self, in_channels: int = 16, sample_size: int = 8, num_registers: int = 128, out_dim: int = 3) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels * sample_size**2, num_registers * out_dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Scaled VAE latents `(B, C, h, w)` to `(B, N, out_dim)`."""
        return self.proj(hidden_states.to(self.dtype).flatten(1)).unflatten(1, (-1, self.config.out_dim))


class LinearTokenMap(nn.Module):
    """
    Codes of a prefix to a coarse picture in the latents' space.

    Args:
        num_tokens, token_dim: of the codes.
        channels, side: of the latents.
        width: of the embedding of the number of tokens.
    """

    def __init__(self, num_tokens: int, token_dim: int, channels: int, side: int, width: int) -> None:
        super().__init__()
        self.num_tokens, self.shape = num_tokens, (channels, side, side)
        self.proj = nn.Linear(num_tokens * token_dim, channels * side**2)
        self.length_embed = nn.Embedding(num_tokens + 1, width)

    def forward(self, codes: Tensor, token_mask: Tensor | None, null_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """
        The coarse latents `(B, C, h, w)` and the embedding `(B, D)` of the number of tokens they come from.

        Args:
            codes: `(B, k, d)`.
            token_mask: bool `(B, k)`, False for tokens to leave out.
            null_mask: bool `(B,)`, True for pictures without any token.
        """
        seen = torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device) if token_mask is None else token_mask
        if null_mask is not None:
            seen = seen & ~null_mask[:, None]
        kept = codes * seen[..., None]
        used = kept.shape[1] * kept.shape[2]  # a short prefix needs the first columns only
        coarse = nn.functional.linear(kept.flatten(1), self.proj.weight[:, :used], self.proj.bias)
        return coarse.unflatten(1, self.shape), self.length_embed(seen.sum(1))
