"""Importance of layers, heads, neurons and channels: scores, and the sorting of super-networks by them."""
