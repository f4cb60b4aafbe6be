"""RecTok: a ViT autoencoder whose noisy latents match a teacher all along the flow (arXiv 2512.13421)."""
