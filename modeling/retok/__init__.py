"""ReToK: GigaTok with redundant tokens, so that any prefix is a picture."""
