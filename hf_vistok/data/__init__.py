"""Data sets: the emoji set, image folders, data sets of the Hub, WebDataset shards, sets of tokens."""
