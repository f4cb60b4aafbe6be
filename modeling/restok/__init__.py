"""ResTok: images merged to ever fewer tokens inside the encoder, latents in levels that double; and its prior."""
