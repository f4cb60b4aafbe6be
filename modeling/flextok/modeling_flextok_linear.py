"""Ordered tokens through linear maps (ours): principal components of VAE latents, for chains small enough to ship.

Where a few million parameters must do, FlexTok's registers cost most of the sequence. Here a token is a few digits of
principal components, sorted by the error that they save, so that any prefix is the best picture of its length; the
decoder sees the linear picture of the kept tokens beside the noised latents.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import initialization as init

from ..layers.quantizers import FSQ


class FlexTokLinearEncoder(ModelMixin, ConfigMixin):
    """
    VAE latents to the input of the quantizer; in place of [`FlexTokEncoder`].

    Each component is rounded to one of `level` values, what is left to one of `level` values again, and so on: digits
    of one number, coarse to fine. The buffer `digits` says which digit of which component each channel of each token
    is, `pass * num_components + component`.

    Args:
        in_channels, sample_size: of the latents; no other size is taken.
        num_registers: number N of tokens.
        out_dim: number of FSQ channels.
        level: number of values of each channel.
        num_components: how many components there are.
        num_passes: digits of a component.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        sample_size: int = 8,
        num_registers: int = 128,
        out_dim: int = 3,
        level: int = 8,
        num_components: int = 384,
        num_passes: int = 1,
    ) -> None:
        super().__init__()
        count = num_registers * out_dim
        if num_components * num_passes < count:
            raise ValueError(f"{num_components} components of {num_passes} digits are too few for {count} channels.")
        self.proj = nn.Linear(in_channels * sample_size**2, num_components)
        self.quantizer = FSQ([level])
        self.register_buffer("digits", torch.arange(count))

    def init_own_weights(self) -> None:
        """The first digits of all components, in order; training chooses better ones."""
        init.copy_(self.digits, torch.arange(len(self.digits)))

    def all_digits(self, hidden_states: Tensor) -> Tensor:
        """Scaled VAE latents `(B, C, h, w)` to the quantizer's input of every digit, `(B, passes * components)`."""
        x, level = self.proj(hidden_states.to(self.dtype).flatten(1)), self.config.level
        passes = [x]
        left = self._rest(x)
        for _ in range(self.config.num_passes - 1):
            middle = 0.5 * (level % 2 == 0)  # even numbers of values have no middle one
            digit = (left * level - middle).round().clamp(-(level // 2), (level - 1) // 2)
            left = left * level - middle - digit
            passes.append(self._input_of(digit))
        return torch.cat(passes, 1)

    def _rest(self, x: Tensor) -> Tensor:
        """What the first rounding leaves, in [-0.5, 0.5] of a step."""
        bounded = self.quantizer.bound(x[..., None])[..., 0]
        return bounded - bounded.round()

    def _input_of(self, digit: Tensor) -> Tensor:
        """Values that the quantizer rounds to `digit`."""
        level = self.config.level
        half, offset = (level - 1) * (1 + 1e-3) / 2, 0.5 * (level % 2 == 0)
        return torch.atanh((digit + offset) / half) - torch.atanh(digit.new_tensor(offset / half))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Scaled VAE latents `(B, C, h, w)` to `(B, N, out_dim)`."""
        return self.all_digits(hidden_states)[:, self.digits].unflatten(1, (-1, self.config.out_dim))


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
