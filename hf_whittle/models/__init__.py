"""Architectures that can be whittled: one folder each, with its table, configuration, modeling and super-network."""
