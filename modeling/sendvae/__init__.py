"""Send-VAE: a KL autoencoder whose latents are aligned with a vision model through a deep mapper (arXiv 2601.05823)."""
