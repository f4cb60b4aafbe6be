"""FQGAN: factorised codebooks, two or three ids at each position (arXiv 2411.16681)."""
