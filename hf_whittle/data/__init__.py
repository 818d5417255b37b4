"""Load documents, pack them into blocks of tokens, and stack blocks into batches, with `datasets`."""

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
