"""RAE: a frozen representation encoder as tokenizer, with a ViT decoder of its own (arXiv 2510.11690)."""
