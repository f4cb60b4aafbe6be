"""The small MLP that turns one token's condition into its continuous latent by diffusion (MAR, arXiv 2406.11838)."""

from collections.abc import Callable

from torch import Tensor, nn

from .adaln import Modulation, modulate
from .time_embedding import TimeEmbedding


class SiluMlp(nn.Module):
    """Linear, SiLU, Linear, all of one width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` to `(..., D)`."""
        return self.fc2(self.act(self.fc1(x)))


class HeadBlock(nn.Module):
    """`x += gate * mlp(modulate(norm(x)))`; the modulation's order is shift, scale, gate."""

    def __init__(self, dim: int, make_mlp: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = make_mlp(dim)
        self.modulation = Modulation(dim, 3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`(..., D)` to `(..., D)`."""
        shift, scale, gate = self.modulation(condition)
        return x + gate * self.mlp(modulate(self.norm(x), shift, scale))


class DiffusionHead(nn.Module):
    """
    MLP with adaLN over single tokens (section 3.2).

    Args:
        in_dim: width C of a latent.
        out_dim: width of the prediction, 2C where the variance is predicted too.
        condition_dim: width of a token's condition.
        dim: width of the blocks.
        num_blocks: number of blocks.
        make_mlp: makes a block's MLP of a width; Linear, SiLU, Linear by default.
        time_scale: factor of the times; see [`TimeEmbedding`].
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        condition_dim: int,
        dim: int,
        num_blocks: int,
        *,
        make_mlp: Callable[[int], nn.Module] = SiluMlp,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.input_proj = nn.Linear(in_dim, dim)
        self.time_embed = TimeEmbedding(dim, scale=time_scale)
        self.condition_embed = nn.Linear(condition_dim, dim)
        self.blocks = nn.ModuleList(HeadBlock(dim, make_mlp) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = Modulation(dim, 2)
        self.output_proj = nn.Linear(dim, out_dim)
        self.output_proj.zero_init = True

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """
        Args:
            x: noisy latents `(B, ..., C)`.
            t: times `(B,)` or one for each latent, `(B, ...)`.
            condition: `(B, ..., condition_dim)`.

        Returns:
            `(B, ..., out_dim)`.
        """
        x = self.input_proj(x)
        time = self.time_embed(t.flatten()).unflatten(0, t.shape)
        y = time.view(*t.shape, *[1] * (x.ndim - 1 - t.ndim), -1) + self.condition_embed(condition)
        for block in self.blocks:
            x = block(x, y)
        shift, scale = self.modulation(y)
        return self.output_proj(modulate(self.norm(x), shift, scale))
