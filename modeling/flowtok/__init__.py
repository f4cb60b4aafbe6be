"""FlowTok: one flow from a text's latents to an image's, in one 1-D token space (arXiv 2503.10772)."""
