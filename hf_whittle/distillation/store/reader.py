"""Read a store of teacher targets: find blocks by their tokens, and check that a store fits a training.

Shapes: `B` blocks, `L` tokens in a block, `V` entries of the vocabulary.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import StoreError
from ...files.paths import expanded
from ...fingerprints import model_fingerprint
from ...loss.targets import SparseTargets
from ...vocabulary.vocabulary_map import VocabularyMap
from .files import AGAIN, checksum, digest_blocks, read_settings, shard_path, vocabulary_fingerprint

_OWN = (
    "store the teacher's targets for the student's tokens: store_targets(vocabulary=...) on blocks of these, or "
    "hf-whittle store-logits with a recipe that has this student"
)


class LogitStore:
    """A store that `store_targets` wrote, read from memory-mapped files; blocks are found by their tokens.

    Args:
        folder (`str` or `Path`): folder of the store.

    Attributes:
        settings (`StoreSettings`): settings the store was made with.

    Raises:
        StoreError: if there is no store, it is unfinished, or one of its files is missing or damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(expanded(folder))
        self.settings, complete = read_settings(self.folder)
        if not complete:
            raise StoreError(f"the store at {self.folder} is unfinished; {AGAIN}, which goes on where it stopped")
        self._encoding = self.settings.encoding
        self._shards = [self._open(shard) for shard in range(self.settings.num_shards)]
        digests = np.concatenate([shard.get_tensor("digests").numpy() for shard in self._shards])
        self._order = np.argsort(digests, kind="stable")
        self._sorted = digests[self._order]

    def _open(self, shard: int) -> Any:
        path = shard_path(self.folder, shard)
        try:
            handle = safe_open(path, framework="pt")
        except FileNotFoundError as error:
            raise StoreError(f"{path} is missing; {AGAIN}, which writes it anew") from error
        except SafetensorError as error:
            raise StoreError(f"{path} is damaged ({error}); {AGAIN}, which writes it anew") from error
        if (handle.metadata() or {}).get("shard") != self.settings.identity(shard):
            raise StoreError(f"{path} belongs to another store; remove it and {AGAIN}, which writes it anew")
        return handle

    @property
    def kind(self) -> str:
        """`"sample"` or `"top-k"`."""
        return self._encoding.kind

    @property
    def in_words(self) -> str:
        """Description of the part of the teacher's distribution that is kept."""
        return self._encoding.in_words

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token on disk, without the 16 of each block and the header of each file."""
        return self._encoding.bytes_per_token

    @property
    def tokens(self) -> int:
        """Number of tokens the teacher has read."""
        return self.settings.blocks * self.settings.block_size

    def check(
        self,
        *,
        temperature: float | None = None,
        vocab_size: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vocabulary: VocabularyMap | None = None,
        dropped_tokens: str | None = None,
        teacher: PreTrainedModel | None = None,
    ) -> None:
        """Check that the store fits a training; arguments that are `None` are skipped.

        Args:
            temperature (`float`, *optional*): temperature of the loss.
            vocab_size (`int`, *optional*): entries of the student's vocabulary, no fewer than the store's.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): the student's tokenizer; compared if the store has the
                fingerprint of the one that its blocks were made with.
            vocabulary (`VocabularyMap`, *optional*): the map from the student's tokens to the teacher's.
            dropped_tokens (`str`, *optional*): as in `DistillationConfig`; no effect on stores without dropped tokens.
            teacher (`PreTrainedModel`, *optional*): the teacher the store should be made with, in any precision.

        Raises:
            StoreError: if one of them does not fit, with both values.
        """
        stored, size, known = self.settings.temperature, self._encoding.vocab_size, self.settings.tokenizer
        if temperature is not None and temperature != stored:
            raise StoreError(
                f"the store at {self.folder} holds the teacher's distribution at temperature {stored}, the loss has "
                f"temperature {temperature}; train with temperature={stored}, or {AGAIN} with that of the loss"
            )
        if vocab_size is not None and vocab_size < size:
            raise StoreError(
                f"the store at {self.folder} is for a vocabulary of {size} entries, the student has {vocab_size}; "
                f"{_OWN}"
            )
        if tokenizer is not None and known is not None and known != vocabulary_fingerprint(tokenizer):
            raise StoreError(
                f"the store at {self.folder} was made with a tokenizer of another vocabulary than the student's; {_OWN}"
            )
        self._check_map(vocabulary, dropped_tokens)
        precisions = (None, torch.float32, torch.bfloat16, torch.float16)
        if teacher is not None and not any(model_fingerprint(teacher, p) == self.settings.teacher for p in precisions):
            raise StoreError(
                f"the store at {self.folder} was made with another teacher than {teacher.config.name_or_path}, or "
                f"that one has changed since; {AGAIN} into another folder"
            )

    def _check_map(self, vocabulary: VocabularyMap | None, dropped_tokens: str | None) -> None:
        """Check that the targets were restricted to a student's tokens by the same map and in the same way."""
        stored, _, way = (self.settings.vocabulary or "").partition(", ")
        same_ids = VocabularyMap.of_kept(self._encoding.vocab_size).fingerprint  # of a teacher with more padding
        is_identity = stored in ("", same_ids)
        fits = vocabulary is None or vocabulary.fingerprint == stored or (vocabulary.is_identity and is_identity)
        if vocabulary is not None and not fits and way == "renormalized":  # which needs no pieces
            fits = vocabulary.without_pieces.fingerprint == stored
        if not fits:
            raise StoreError(
                f"the store at {self.folder} was made with another map from the student's tokens to the teacher's than "
                f"the training has; {_OWN}"
            )
        if dropped_tokens is not None and not is_identity and dropped_tokens != way:
            raise StoreError(
                f"the store at {self.folder} was made with dropped_tokens={way!r}, the training has "
                f"{dropped_tokens!r}; train with that of the store, or {AGAIN} with that of the training"
            )

    def targets(self, input_ids: torch.Tensor) -> SparseTargets:
        """Read the teacher's targets for the token after each token of some blocks.

        Args:
            input_ids (`torch.Tensor`): whole blocks of the store, `(B, L)`, in any order.

        Returns:
            `SparseTargets`: targets of `B * L` rows, on the device of `input_ids`.

        Raises:
            StoreError: if a block is not in the store, or its targets are damaged.
        """
        encoded = [self._read(block) for block in self._find(input_ids)]
        device = input_ids.device
        return self._encoding.decode(
            {name: torch.cat([block[name] for block in encoded]).to(device) for name in self._encoding.tensors}
        )

    def _find(self, input_ids: torch.Tensor) -> list[int]:
        """Find the index of each block in the store."""
        length = self.settings.block_size
        if input_ids.ndim != 2 or input_ids.shape[1] != length:
            raise StoreError(
                f"the store at {self.folder} has blocks of {length} tokens, the batch is {tuple(input_ids.shape)}; "
                f"pack the text into blocks of {length}, or {AGAIN}"
            )
        wanted = digest_blocks(input_ids)
        places = np.searchsorted(self._sorted, wanted).clip(max=len(self._sorted) - 1)
        unknown = np.flatnonzero(self._sorted[places] != wanted)
        if len(unknown):
            raise StoreError(
                f"block {unknown[0]} of the batch is not in the store at {self.folder}: the store was made from other "
                f"text, with another tokenizer or other packing; {AGAIN}"
            )
        return self._order[places].tolist()

    def _read(self, block: int) -> dict[str, torch.Tensor]:
        """Read the encoded targets of a block, each tensor `(L, ...)`."""
        shard, row = divmod(block, self.settings.blocks_per_shard)
        handle = self._shards[shard]
        encoded = {name: handle.get_slice(name)[row] for name in self._encoding.tensors}
        if checksum(encoded) != handle.get_slice("checksums")[row]:
            path = shard_path(self.folder, shard)
            raise StoreError(f"{path} is damaged (block {row} of it); remove it and {AGAIN}, which writes it anew")
        return encoded
