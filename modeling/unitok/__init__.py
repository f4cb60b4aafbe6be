"""UniTok: eight codebooks at each position that serve pictures and texts (arXiv 2502.20321)."""
