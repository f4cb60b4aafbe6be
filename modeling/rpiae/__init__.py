"""RPiAE: a fine-tuned representation encoder behind a variational bridge (arXiv 2603.19206)."""
