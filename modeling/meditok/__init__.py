"""MedITok: UniTok for medical pictures (arXiv 2505.19225)."""
