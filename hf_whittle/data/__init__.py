"""Load documents, pack them into blocks of tokens, stream and mix them, and stack blocks into batches."""

from .batches import DocumentCollator, collate_blocks
from .documents import STANDARD_LIBRARY, documents_fingerprint, load_documents, split_documents
from .encoding import TextEncoder, TokenEncoder
from .mixing import mix_blocks
from .packing import pack_documents, pack_rows
from .streamed_documents import stream_documents
from .streams import BlockStream, StreamedSource, held_out_blocks

__all__ = [
    "STANDARD_LIBRARY",
    "BlockStream",
    "DocumentCollator",
    "StreamedSource",
    "TextEncoder",
    "TokenEncoder",
    "collate_blocks",
    "documents_fingerprint",
    "held_out_blocks",
    "load_documents",
    "mix_blocks",
    "pack_documents",
    "pack_rows",
    "split_documents",
    "stream_documents",
]
