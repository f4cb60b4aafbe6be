"""Pictures as rows of patches and back; a patch's features are in the order row, column, channel."""

from torch import Tensor


def patchify(pixels: Tensor, patch_size: int) -> Tensor:
    """`(B, C, rows * p, columns * p)` to `(B, rows * columns, p * p * C)`, patches in raster order."""
    batch, channels, height, width = pixels.shape
    x = pixels.reshape(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_size * patch_size * channels)


def unpatchify(patches: Tensor, rows: int, columns: int, patch_size: int) -> Tensor:
    """The inverse of [`patchify`]: `(B, rows * columns, p * p * C)` to `(B, C, rows * p, columns * p)`."""
    batch = patches.shape[0]
    x = patches.reshape(batch, rows, columns, patch_size, patch_size, -1)  # (B, h, w, p, q, C)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch_size, columns * patch_size)
