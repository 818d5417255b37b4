"""Bits per byte of documents, which compare between subnets that keep different parts of the vocabulary."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from ..cost.counts import flops_per_token
from ..evaluation.texts import (
    checked_block_size,
    count_bytes,
    encode_texts,
    prefix_token,
    some_texts,
    window_losses,
)
from ..evaluation.windows import Window, Windows, rolling_windows
from ..fingerprints import model_fingerprint, tokenizer_fingerprint
from ..models.placement import is_sharded
from ..models.weights import check_plain_weights
from ..subnet import Kept, SubnetConfig
from .base import Fitness

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..models.supernet import SuperNetModel

TokenizerOf = Callable[[Kept | None], "PreTrainedTokenizerBase"]
"""Gives the tokenizer of some tokens, the ids of which are places among them; for `None`, that of all."""


class BitsPerByte(Fitness):
    """Bits per byte of a super-network's subnets on documents, each encoded by the tokenizer of the subnet's tokens.

    Every token of a document is predicted, after a token that begins it; windows of long documents are side by side.

    Args:
        supernet (`SuperNetModel`): the super-network.
        documents (`Sequence[str]`): held-out documents; empty ones are left out.
        tokenizer_of (`Callable`): gives the tokenizer of the tokens that a subnet keeps (`SubnetConfig.vocab_size`),
            and the super-network's for `None`. It is called once for each part of the vocabulary.
        block_size (`int`, *optional*): most tokens of a window; by default the positions of the model, 2,048 at most.
        batch_size (`int`, *optional*): windows evaluated at a time; by default 4,096 tokens on a CPU, 16,384 on another
            device.

    Raises:
        DataError: if there is no text, the documents are one string, or the model has fewer positions.
        WeightsError: if the super-network's weights are quantized or adapted.
    """

    name = "bits-per-byte"

    def __init__(
        self,
        supernet: "SuperNetModel",
        documents: Sequence[str],
        tokenizer_of: TokenizerOf,
        *,
        block_size: int | None = None,
        batch_size: int | None = None,
    ):
        check_plain_weights(supernet, may_be_offloaded=True)
        self.supernet, self.batch_size = supernet, batch_size
        self.documents = some_texts(documents)
        self.block_size = checked_block_size(supernet.full_config, block_size)
        self._tokenizer_of = tokenizer_of
        self._bytes = list(map(count_bytes, self.documents))
        self._order = Random(0).sample(range(len(self.documents)), len(self.documents))
        self._encoded: dict[Kept | None, list[list[Window]]] = {}

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        with self.supernet.active_subnet(subnet):
            nats = math.fsum(window_losses(self.supernet, Windows(self._windows(subnet, share)), self.batch_size))
        return nats / math.log(2) / self.bytes(share)

    def bytes(self, share: float = 1.0) -> int:
        """Bytes of the documents of a share, in UTF-8."""
        return sum(self._bytes[document] for document in self._some(share))

    def tokens(self, share: float = 1.0) -> int:
        """Tokens of an evaluation in the whole vocabulary."""
        return self._num_tokens(None, share)

    def tokens_of(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        return self._num_tokens(subnet.vocab_size, share)

    def tokens_per_byte(self, subnet: SubnetConfig) -> float:
        """Tokens for each byte of the documents, by which costs of a token become those of a text."""
        return self.tokens_of(subnet) / self.bytes()

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        lengths = [len(window.inputs) for window in self._windows(subnet, share)]
        alone, with_one = (flops_per_token(self.supernet.full_config, subnet, sequence_length=n) for n in (0, 1))
        return alone * sum(lengths) + (with_one - alone) * sum(length**2 for length in lengths)

    @property
    def is_sharded(self) -> bool:
        return is_sharded(self.supernet)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bytes": self.bytes(),
            "block_size": self.block_size,
            "data": hashlib.sha256(json.dumps(self.documents).encode()).hexdigest()[:16],
            "tokenizer": tokenizer_fingerprint(self._tokenizer_of(None)),
            "model": model_fingerprint(self.supernet),
        }

    def _some(self, share: float) -> list[int]:
        """Ascending numbers of the documents of a share, at least one."""
        return sorted(self._order[: max(1, round(share * len(self._order)))])

    def _windows(self, subnet: SubnetConfig, share: float) -> list[Window]:
        encoded = self._of_vocabulary(subnet.vocab_size)
        return [window for document in self._some(share) for window in encoded[document]]

    def _num_tokens(self, kept: Kept | None, share: float) -> int:
        encoded = self._of_vocabulary(kept)
        return sum(len(window.targets) for document in self._some(share) for window in encoded[document])

    def _of_vocabulary(self, kept: Kept | None) -> list[list[Window]]:
        """The windows of each document in a part of the vocabulary, encoded once."""
        if kept not in self._encoded:
            tokenizer = self._tokenizer_of(kept)
            prefix = prefix_token(tokenizer)
            encoded = encode_texts(tokenizer, self.documents, add_special_tokens=False)
            self._encoded[kept] = [list(rolling_windows(ids, self.block_size, prefix)) for ids in encoded]
        return self._encoded[kept]
