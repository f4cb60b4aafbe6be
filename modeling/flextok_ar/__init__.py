"""FlexAR and GridAR: autoregressive priors over FlexTok ids, from a class or a text."""
