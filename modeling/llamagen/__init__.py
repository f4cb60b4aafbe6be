"""LlamaGen: a convolutional VQ tokenizer and Llama-like priors over its grid of ids."""
