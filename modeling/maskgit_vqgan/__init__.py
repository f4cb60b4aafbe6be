"""MaskGIT-VQGAN: 256 tokens on a 16 x 16 grid; stage-1 teacher of TiTok and the tokenizer of RAR."""
