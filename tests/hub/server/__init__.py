"""The Hub on loopback: repositories in memory, spoken to by the unmodified clients, strict on what they send."""

from .accounts import FINE, OTHER, READ, WRITE
from .hub import HubServer

__all__ = ["FINE", "OTHER", "READ", "WRITE", "HubServer"]
