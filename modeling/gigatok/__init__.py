"""GigaTok: convolutional codec with a Q-Former between pixels and tokens, 1-D and 2-D, and its priors."""
