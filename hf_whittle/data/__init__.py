"""Text to packed blocks of tokens, and blocks to batches, with `datasets`."""

from .batches import DocumentCollator, collate_blocks
from .documents import STANDARD_LIBRARY, documents_fingerprint, load_documents, split_documents
from .packing import pack_documents

__all__ = [
    "STANDARD_LIBRARY",
    "DocumentCollator",
    "collate_blocks",
    "documents_fingerprint",
    "load_documents",
    "pack_documents",
    "split_documents",
]
