"""Importance of layers, heads, neurons and channels: scores, and super-networks sorted by them."""
