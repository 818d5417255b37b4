"""A Hub on loopback for the unmodified clients: repositories in memory, and strict checks of every request."""

from .accounts import FINE, OTHER, READ, WRITE
from .hub import HubServer

__all__ = ["FINE", "OTHER", "READ", "WRITE", "HubServer"]
