"""TokenFlow: a semantic and a pixel codebook with one index, in residual scales (arXiv 2412.03069)."""
