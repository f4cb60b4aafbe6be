"""A tiny text encoder: one vector per word piece, for chains that ship inside the package."""
