"""One-D-Piece: a TiTok whose tokens are ordered by importance, so that any prefix is a picture (arXiv 2501.10064)."""
