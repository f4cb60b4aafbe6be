"""Tables of absolute positions, fixed and learned, and their resizing."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .conv_codec import flatten_grid, unflatten_grid
from .rotary import grid_coordinates, rotary_frequencies


def sincos_table(
    grid: Sequence[int],
    dim: int,
    theta: float = 10000.0,
    *,
    first_axis_first: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """
    Sine-cosine positions of a grid, as in MAE: each axis has an equal share of the channels, sines then cosines.

    Args:
        grid: sides, `(length,)` or `(rows, columns)`.
        dim: width, a multiple of twice the number of axes.
        theta: base of the frequencies.
        first_axis_first: whether rows have the first channels; MAE gives them to columns.
        device: of the result.

    Returns:
        float32 `(points, dim)`, in raster order.
    """
    share = dim // len(grid)
    if dim % (2 * len(grid)):
        raise ValueError(f"A width of {dim} cannot be shared by {len(grid)} axes of sines and cosines.")
    frequencies = rotary_frequencies(share, theta, device)
    axes = grid_coordinates(grid, device).unbind(-1)
    axes = axes if first_axis_first else axes[::-1]
    angles = [axis.float()[:, None] * frequencies for axis in axes]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], -1)


def resize_table_bicubic(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """
    A learned table for another grid: bicubic by the factors `(new + 0.1) / old`, as DINO does (families.md: +.1).

    Args:
        table: `(rows * columns, D)` of `grid`.
        grid, new_grid: `(rows, columns)`.

    Returns:
        `(new rows * new columns, D)`; the table itself where the grids are equal.
    """
    if tuple(grid) == tuple(new_grid):
        return table
    image = table.view(*grid, -1).permute(2, 0, 1)[None].float()  # (1, D, rows, columns)
    factors = tuple((new + 0.1) / old for new, old in zip(new_grid, grid, strict=True))
    image = F.interpolate(image, scale_factor=factors, mode="bicubic", align_corners=False)
    return image[0].flatten(1).T.to(table.dtype)


class PositionTable(nn.Module):
    """
    Learned positions of a square grid, resized (bilinear, antialiased) to any grid, as SigLIP 2's NaFlex does.

    Args:
        positions: of the grid that is stored.
        dim: width.
        std: of fresh positions.
    """

    def __init__(self, positions: int, dim: int, std: float) -> None:
        super().__init__()
        self.side, self.std = math.isqrt(positions), std
        self.weight = nn.Parameter(torch.empty(positions, dim))

    def init_own_weights(self) -> None:
        """Normal."""
        init.normal_(self.weight, std=self.std)

    def forward(self, rows: int, columns: int) -> Tensor:
        """`(rows * columns, D)`."""
        if (rows, columns) == (self.side, self.side):
            return self.weight
        table = unflatten_grid(self.weight[None].float(), self.side, self.side)
        table = F.interpolate(table, size=(rows, columns), mode="bilinear", align_corners=False, antialias=True)
        return flatten_grid(table)[0].to(self.weight.dtype)
