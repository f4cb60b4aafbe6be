"""Data sets for training and evaluation: the emoji set, image folders, the Hub's data sets, WebDataset shards."""
