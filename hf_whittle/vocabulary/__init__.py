"""Vocabularies: tokenizers with a part of their tokens, orders of tokens, and maps between two vocabularies."""

from .pruning import closed, minimum_size, prune_tokenizer
from .ranking import rank_tokens
from .vocabulary_map import VocabularyMap

__all__ = ["VocabularyMap", "closed", "minimum_size", "prune_tokenizer", "rank_tokens"]
