"""SEED: 32 causal tokens that say what a picture shows, drawn by unCLIP (arXiv 2307.08041, 2310.01218)."""
