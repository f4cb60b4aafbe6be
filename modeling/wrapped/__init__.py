"""Tokenizers that transformers and diffusers already have, behind the contract, so that comparisons have baselines."""
