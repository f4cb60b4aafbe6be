"""TA-TiTok: a one-stage TiTok whose decoder also reads a caption (arXiv 2501.07730)."""
