"""MaskGen: masked text-to-image generators of TA-TiTok's tokens, discrete and continuous (arXiv 2501.07730)."""
