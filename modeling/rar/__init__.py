"""RAR: an autoregressive prior trained in random orders, over MaskGIT-VQGAN's ids."""
