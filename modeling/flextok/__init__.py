"""FlexTok: an image as 1 to 256 ordered tokens, drawn by a rectified flow (arXiv 2502.13967)."""
