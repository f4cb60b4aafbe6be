"""COMiT: a message that is rewritten crop by crop, and a flow that draws it (arXiv 2602.20731)."""
