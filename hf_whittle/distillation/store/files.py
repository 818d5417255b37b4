"""Files of a store of teacher targets: settings, names of shards, digests and checksums of blocks."""

import dataclasses
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ...checks import check_integers, check_positive
from ...errors import StoreError
from ...files.text import read_json
from .encodings import ENCODINGS, Encoding

STORE_FILE = "store.json"
FORMAT = 1
AGAIN = "run hf-whittle store-logits again"


@dataclass(frozen=True)
class StoreSettings:
    """Settings of a store; stores with equal settings are equal byte for byte.

    Args:
        encoding (`Encoding`): encoding of the teacher's distribution.
        temperature (`float`): temperature of the teacher's distribution.
        blocks (`int`): number of blocks.
        block_size (`int`): tokens in a block.
        blocks_per_shard (`int`): blocks in a file.
        teacher (`str`): fingerprint of the teacher.
        tokenizer (`str`, *optional*): fingerprint of the tokenizer's vocabulary, if it is known.
        data (`str`): fingerprint of the blocks and their order.
        vocabulary (`str`, *optional*): fingerprint of the map to the teacher's vocabulary, if the blocks have another,
            and what became of the probability of dropped tokens.

    Raises:
        StoreError: if a number is out of range.
    """

    encoding: Encoding
    temperature: float
    blocks: int
    block_size: int
    blocks_per_shard: int
    teacher: str
    tokenizer: str | None
    data: str
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        check_positive(self, "temperature", error=StoreError)
        check_integers(self, {"blocks_per_shard": 1}, error=StoreError)

    @property
    def num_shards(self) -> int:
        return -(-self.blocks // self.blocks_per_shard)

    def blocks_of(self, shard: int) -> range:
        """Indices of the blocks in a shard."""
        start = shard * self.blocks_per_shard
        return range(start, min(start + self.blocks_per_shard, self.blocks))

    def identity(self, shard: int) -> str:
        """Identity of a shard, different from that of any other shard of any store."""
        return f"{short_hash(json.dumps(self.to_dict(), sort_keys=True).encode())}/{shard}"

    def to_dict(self) -> dict[str, Any]:
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[1:]}
        if self.vocabulary is None:  # as in stores of earlier versions
            del own["vocabulary"]
        return {"format": FORMAT, "kind": self.encoding.kind, **dataclasses.asdict(self.encoding), **own}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StoreSettings":
        kind = ENCODINGS[values["kind"]]
        encoding = kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})
        values = {"vocabulary": None, **values}
        return cls(encoding, **{field.name: values[field.name] for field in dataclasses.fields(cls)[1:]})


def shard_path(folder: Path, shard: int) -> Path:
    """Path of a shard."""
    return folder / f"shard-{shard:05d}.safetensors"


def read_settings(folder: Path) -> tuple[StoreSettings, bool]:
    """Read the settings of the store in a folder, and whether it is complete.

    Raises:
        StoreError: if there is no store, it is damaged, or it has another format.
    """
    path = folder / STORE_FILE
    try:
        values = read_json(path)
        if values["format"] != FORMAT:
            raise StoreError(
                f"{path} has format {values['format']}, this version reads format {FORMAT}; {AGAIN} into another folder"
            )
        return StoreSettings.from_dict(values), values["complete"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"there is no store at {folder}; make one with hf-whittle store-logits") from error
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path} is damaged; remove the folder and {AGAIN}") from error


def digest_blocks(input_ids: torch.Tensor) -> np.ndarray:
    """Digest the tokens of each block; `int64`, `(B,)`."""
    rows = np.ascontiguousarray(input_ids.cpu().numpy(), dtype="<i4")
    return np.frombuffer(b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows), dtype="<i8").copy()


def checksum(block: dict[str, torch.Tensor]) -> int:
    """CRC-32 of a block's encoded targets."""
    value = 0
    for name in sorted(block):
        array: Any = block[name].contiguous().numpy()
        value = zlib.crc32(array, value)
    return value


def short_hash(data: bytes) -> str:
    """Hash bytes to 16 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash a tokenizer's tokens and their ids."""
    return short_hash(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
