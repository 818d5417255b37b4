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
from .files import AGAIN, checksum, digest_blocks, read_settings, shard_path, vocabulary_fingerprint


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
        teacher: PreTrainedModel | None = None,
    ) -> None:
        """Check that the store fits a training; arguments that are `None` are skipped.

        Args:
            temperature (`float`, *optional*): temperature of the loss.
            vocab_size (`int`, *optional*): entries of the student's vocabulary, no fewer than the teacher's.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): the student's tokenizer; compared if the store has the
                fingerprint of the teacher's.
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
                f"the store at {self.folder} is for a vocabulary of {size} entries, the student has {vocab_size}; use "
                "a teacher with the student's vocabulary"
            )
        if tokenizer is not None and known is not None and known != vocabulary_fingerprint(tokenizer):
            raise StoreError(
                f"the store at {self.folder} was made with a tokenizer of another vocabulary; use the teacher's "
                f"tokenizer, or {AGAIN}"
            )
        precisions = (None, torch.float32, torch.bfloat16, torch.float16)
        if teacher is not None and not any(model_fingerprint(teacher, p) == self.settings.teacher for p in precisions):
            raise StoreError(
                f"the store at {self.folder} was made with another teacher than {teacher.config.name_or_path}, or "
                f"that one has changed since; {AGAIN} into another folder"
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
