"""Tokenizers and the vocabularies of models: that of a subnet, and whether a model has every token."""

from transformers import PreTrainedTokenizerBase

from ..errors import VocabularyError
from ..kept import Kept, is_part
from .pruning import prune_tokenizer


def tokenizer_of_subnet(
    tokenizer: PreTrainedTokenizerBase, kept: Kept | None, vocab_size: int
) -> PreTrainedTokenizerBase:
    """The tokenizer of a subnet: the super-network's, or one of the tokens that the subnet keeps.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): tokenizer of the super-network.
        kept (`int` or `tuple[int, ...]`, *optional*): tokens that the subnet keeps; all if `None`.
        vocab_size (`int`): entries of the super-network's vocabulary.

    Raises:
        VocabularyError: if the kept tokens do not make a tokenizer, as `prune_tokenizer` says.
    """
    return prune_tokenizer(tokenizer, kept) if is_part(kept, vocab_size) else tokenizer


def check_has_tokens(vocab_size: int, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `VocabularyError` if a model of `vocab_size` embeddings lacks a token of the tokenizer, called `name`.

    Special tokens may lie beyond: that of images in Gemma 3's tokenizer does for its smaller models, which read text
    alone, and so does a token for padding that was added and is masked. Ids of a text are checked where it is read.
    """
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokens = max((index for index in tokenizer.get_vocab().values() if index not in special), default=-1) + 1
    if tokens > vocab_size:
        raise VocabularyError(
            f"{name} has {tokens} tokens, the model only {vocab_size} embeddings; use the model's own tokenizer, which "
            "prune_tokenizer makes for a model with a part of the tokens"
        )
