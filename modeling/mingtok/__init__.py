"""MingTok-Vision: one continuous tokenizer for understanding and generation, in three stages (arXiv 2510.06590)."""
