"""Checkpoints for people without this package: with their code (`export_code`), or as ONNX graphs (`export_onnx`)."""
