"""Gradio Spaces: one folder each, and what they share in `common.py`."""
