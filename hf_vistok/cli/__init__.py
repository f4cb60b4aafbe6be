"""The command line `hf-vistok`."""
