"""Architectures: for each, a table that says which axis of which weight runs along which dimension of a subnet.

- `dimensions`: the dimensions that a subnet can keep a part of.
- `table`: axes, weights, and the table made of them.
- `registry`: the table of a configuration, and names of an architecture's classes.
- `rotary_decoder`: what tables of decoders in the manner of Llama have in common.

Each other module is the table of one architecture. None imports torch, so that counting does not.
"""

from .registry import register_architecture
from .table import Architecture, Axis, Norms, Weight

__all__ = ["Architecture", "Axis", "Norms", "Weight", "register_architecture"]
