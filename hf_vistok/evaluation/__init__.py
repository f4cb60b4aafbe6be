"""Measures of checkpoints; every figure in a card comes from here."""
