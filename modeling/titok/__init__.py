"""TiTok: an image as 32 to 256 one-dimensional tokens (arXiv 2406.07550)."""
