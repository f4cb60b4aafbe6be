"""Masked priors over a tokenizer's ids, conditioned on a class: BERT-like and U-ViT (MaskGIT, TiTok, One-D-Piece)."""
