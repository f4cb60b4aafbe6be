"""KARL: a tokenizer that decides in one pass how many tokens an image needs (arXiv 2507.07995)."""
