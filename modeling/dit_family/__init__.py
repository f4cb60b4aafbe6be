"""DiT, SiT, LightningDiT and their kin: one class-conditional latent transformer with the published dialects."""
