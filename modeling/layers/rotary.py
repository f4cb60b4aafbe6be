"""
Rotary positions: angles from coordinates, and the rotation in its two dialects.

Tables are computed in float32 at call time: buffers would be cast with the model, or lost on the meta device.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DIALECTS = ("adjacent", "half")


def rotary_frequencies(dim: int, theta: float = 10000.0, device: torch.device | str | None = None) -> Tensor:
    """`theta ** (-2i / dim)` for i < dim / 2, float32 `(dim / 2,)`; `dim` counts channels, two for each frequency."""
    return theta ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)


def axial_angles(coordinates: Tensor, head_dim: int, theta: float = 10000.0) -> Tensor:
    """
    Angles of points with several coordinates: each axis turns its own equal share of the channels.

    Args:
        coordinates: `(..., A)`; A = 1 is plain rotary, A = 2 turns the first half of the channels with the row and
            the second with the column.
        head_dim: width of a head, a multiple of 2A.
        theta: base of the frequencies.

    Returns:
        float32 `(..., head_dim / 2)`.
    """
    axes = coordinates.shape[-1]
    if head_dim % (2 * axes):
        raise ValueError(f"A head of width {head_dim} cannot be split among {axes} axes of pairs.")
    frequencies = rotary_frequencies(head_dim // axes, theta, coordinates.device)
    return (coordinates.float()[..., None] * frequencies).flatten(-2)


def grid_coordinates(grid: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Coordinates of the points of `grid` in raster order, int64 `(points, axes)`."""
    axes = [torch.arange(side, device=device) for side in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def grid_rotary_table(
    grid: Sequence[int],
    head_dim: int,
    theta: float = 10000.0,
    *,
    zero_rows: int = 0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """
    Cosines and sines of a token grid.

    Args:
        grid: sides of the grid, `(rows, columns)` or `(length,)`.
        head_dim, theta: see [`axial_angles`].
        zero_rows: number of condition positions before the grid. Their rows are all zero and not the identity, as in
            LlamaGen: queries and keys there become zero vectors.

    Returns:
        two float32 tables `(zero_rows + points, head_dim / 2)`.
    """
    angles = axial_angles(grid_coordinates(grid, device), head_dim, theta)
    zeros = angles.new_zeros(zero_rows, angles.shape[-1])
    return torch.cat([zeros, angles.cos()]), torch.cat([zeros, angles.sin()])


def grid_rotary_at(
    positions: Tensor, grid: tuple[int, int], head_dim: int, theta: float = 10000.0, *, zero_rows: int = 0
) -> tuple[Tensor, Tensor]:
    """The rows `positions` `(n,)` of [`grid_rotary_table`], without the table."""
    index = positions - zero_rows
    coordinates = torch.stack([index // grid[1], index % grid[1]], -1)
    angles = axial_angles(coordinates, head_dim, theta)
    inside = (index >= 0)[:, None]
    return angles.cos() * inside, angles.sin() * inside


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, dialect: str = "adjacent") -> Tensor:
    """
    Rotates pairs of channels, in float32.

    Args:
        x: `(B, H, N, d)`.
        cos, sin: `(N, d / 2)`, or anything that broadcasts to `(B, H, N, d / 2)`.
        dialect: pairs are channels (2i, 2i + 1) in "adjacent" and (i, i + d / 2) in "half".

    Returns:
        `(B, H, N, d)` in the dtype of `x`.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"dialect must be one of {DIALECTS}, got {dialect!r}.")
    wide = x.float()
    first, second = wide.unflatten(-1, (-1, 2)).unbind(-1) if dialect == "adjacent" else wide.chunk(2, -1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    out = torch.stack(turned, -1).flatten(-2) if dialect == "adjacent" else torch.cat(turned, -1)
    return out.to(x.dtype)


def axial_rotation(
    coordinates: Tensor, head_dim: int, theta: float = 10000.0, inside: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """
    The rotation of positions as a function of heads `(B, H, N, d)`, for attention layers.

    Args:
        coordinates: `(N, A)`.
        head_dim, theta: see [`axial_angles`].
        inside: bool `(N,)`, False where heads become zero vectors (condition positions of LlamaGen's kind).
    """
    angles = axial_angles(coordinates, head_dim, theta)
    cos, sin = angles.cos(), angles.sin()
    if inside is not None:
        cos, sin = cos * inside[:, None], sin * inside[:, None]
    return lambda heads: apply_rotary(heads, cos, sin)


def rotate_adjacent(x: Tensor, angles: Tensor) -> Tensor:
    """
    `x cos + turn(x) sin` with an angle for each channel and not for each pair, in float32 (RecTok).

    Where the two angles of a pair differ this is no rotation: lengths change.

    Args:
        x: `(B, H, N, d)`.
        angles: `(N, d)`, or anything that broadcasts to `(B, H, N, d)`.

    Returns:
        `(B, H, N, d)` in the dtype of `x`.
    """
    wide = x.float()
    first, second = wide.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-second, first], -1).flatten(-2)
    return (wide * angles.cos() + turned * angles.sin()).to(x.dtype)
