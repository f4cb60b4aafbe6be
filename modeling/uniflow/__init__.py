"""UniFlow: a vision encoder as tokenizer, with a flow decoder of single patches (arXiv 2510.10575)."""
