"""Schedulers of samplers that diffusers does not have."""
