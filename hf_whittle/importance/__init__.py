"""Importance of layers and of entries of other dimensions: scores, and super-networks sorted by them."""
