"""What a teacher says about packed blocks, computed once and read from disk in training.

Shapes: `B` blocks, `L` tokens in a block, `N` rows (tokens), `V` entries of the vocabulary.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...checks import check_integers, check_positive
from ...errors import DataError, StoreError
from ...evaluation import as_input_ids, evaluating
from ...files.atomic import atomic_path, remove_leftovers
from ...files.paths import expanded
from ...files.text import write_json
from ...fingerprints import model_fingerprint
from ...loss.heads import head_of, in_place_of, output_module
from ...loss.targets import DenseTargets, SparseTargets
from ...models.weights import check_no_subnet, input_device
from ...processes import launched_processes, lock_in_first
from ..teacher import load_teacher
from .encodings import ENCODINGS, Samples, TopK
from .files import (
    AGAIN,
    STORE_FILE,
    StoreSettings,
    checksum,
    digest_blocks,
    read_settings,
    shard_path,
    short_hash,
    vocabulary_fingerprint,
)

if TYPE_CHECKING:
    from datasets import Dataset

_SHARD_BYTES = 2**26
_CHUNK_ENTRIES = 2**23  # rows x vocabulary of the logits held at a time
_TILE_ENTRIES = 2**18  # of the probabilities treated at a time on a CPU, so that they stay in its cache
_BLOCKS_READ = 1024


def store_targets(
    teacher: PreTrainedModel | str | Path,
    blocks: "Dataset | torch.Tensor",
    output_dir: str | Path,
    *,
    kind: Literal["sample", "top-k"] = "sample",
    temperature: float = 0.9,
    draws: int = 12,
    k: int = 1024,
    seed: int = 0,
    batch_size: int = 8,
    blocks_per_shard: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: bool = True,
) -> "LogitStore":
    """Run a teacher over packed blocks and keep what it says after each of their tokens, in a folder.

    Interrupted at any moment, the same call goes on where it was: a file is written whole or not at all. Under
    `accelerate launch`, the processes share the files, which are those of one process. What is drawn for a block
    depends on the seed and the block's index; another batch size or processor changes a file only as far as it changes
    the last bits of the teacher's logits.

    Args:
        teacher (`PreTrainedModel`, `str` or `Path`): the teacher, or where to load it from.
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids, `(blocks, block_size)`.
        output_dir (`str` or `Path`): folder of the store.
        kind (`str`, *optional*, defaults to `"sample"`): `"sample"`, see `Samples`, or `"top-k"`, see `TopK`.
        temperature (`float`, *optional*, defaults to 0.9): of the teacher's distribution; that of the loss.
        draws (`int`, *optional*, defaults to 12): ids sampled for a token.
        k (`int`, *optional*, defaults to 1024): tokens kept by `"top-k"`, at most the whole vocabulary.
        seed (`int`, *optional*, defaults to 0): of the samples.
        batch_size (`int`, *optional*, defaults to 8): blocks the teacher reads at a time.
        blocks_per_shard (`int`, *optional*): blocks in a file; about 64 MB of them by default.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): its vocabulary is noted, for `LogitStore.check`.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Raises:
        StoreError: if the folder holds another store, a setting is out of range, or the teacher's logits are NaN.
        DataError, VocabularyError: if there are no blocks, they differ in length, or have ids the teacher lacks.
        OutputError: if the folder cannot be written, or another process is writing it.
    """
    check_store_arguments(kind=kind, draws=draws, k=k, seed=seed, batch_size=batch_size, temperature=temperature)
    processes = _Processes()
    model: Any = teacher
    if not isinstance(teacher, PreTrainedModel):
        model = load_teacher(str(teacher))
        model.to(processes.device)
    check_no_subnet(model)
    size = model.config.vocab_size
    encoding = Samples(size, draws, seed) if kind == "sample" else TopK(size, min(k, size))
    digests, block_size = _digest_all(blocks, size)
    if blocks_per_shard is None:
        blocks_per_shard = max(1, _SHARD_BYTES // (block_size * encoding.bytes_per_token))
    settings = StoreSettings(
        encoding,
        float(temperature),
        len(digests),
        block_size,
        blocks_per_shard,
        teacher=model_fingerprint(model),
        tokenizer=None if tokenizer is None else vocabulary_fingerprint(tokenizer),
        data=short_hash(digests.tobytes()),
    )
    folder = Path(expanded(output_dir))
    with lock_in_first(folder):
        if (folder / STORE_FILE).exists():
            _check_same(folder, settings)
        elif processes.is_main:
            write_json(folder / STORE_FILE, settings.to_dict() | {"complete": False})
        shards = range(processes.index, settings.num_shards, processes.count)
        with evaluating(model), torch.no_grad():
            writer = _ShardWriter(model, blocks, digests, settings, batch_size)
            for shard in tqdm(shards, desc="teacher", unit="shard", disable=not (progress and processes.is_main)):
                writer.write(shard, folder)
        processes.wait()
        if processes.is_main:
            remove_leftovers(folder)
            write_json(folder / STORE_FILE, settings.to_dict() | {"complete": True})
        processes.wait()
    return LogitStore(folder)


def check_store_arguments(*, kind: str, draws: int, k: int, seed: int, batch_size: int, temperature: float) -> None:
    """Raise `StoreError` for arguments of `store_targets` out of range, before anything is loaded."""
    if kind not in ENCODINGS:
        raise StoreError(f"kind must be one of {', '.join(ENCODINGS)}, got {kind!r}")
    given = SimpleNamespace(batch_size=batch_size, temperature=temperature, k=k)
    check_integers(given, {"batch_size": 1, "k": 1}, error=StoreError)
    check_positive(given, "temperature", error=StoreError)
    Samples(2, draws, seed)


class _Processes:
    """The processes that were launched together; one, without a launcher."""

    def __init__(self) -> None:
        self._state = launched_processes()
        self.index, self.count = 0, 1
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.device = accelerator or torch.device("cpu")  # a build for GPUs names one where there is none
        if self._state is not None:
            self.index, self.count = self._state.process_index, self._state.num_processes
            self.device = self._state.device

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def wait(self) -> None:
        if self._state is not None:
            self._state.wait_for_everyone()


class _ShardWriter:
    """Writes shards, each from its own blocks alone."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        blocks: "Dataset | torch.Tensor",
        digests: np.ndarray,
        settings: StoreSettings,
        batch_size: int,
    ):
        self._teacher, self._blocks, self._digests = teacher, blocks, digests
        self._settings, self._encoding, self._batch_size = settings, settings.encoding, batch_size
        self._head = output_module(teacher)

    def write(self, shard: int, folder: Path) -> None:
        """Write a shard, unless it is there."""
        path = shard_path(folder, shard)
        identity = self._settings.identity(shard)
        if _is_whole(path, identity):
            return
        blocks = self._settings.blocks_of(shard)
        batches = [
            self._encode(blocks[start : start + self._batch_size]) for start in range(0, len(blocks), self._batch_size)
        ]
        kept = {name: torch.cat([batch[name] for batch in batches]) for name in self._encoding.tensors}
        checksums = [checksum({name: tensor[row] for name, tensor in kept.items()}) for row in range(len(blocks))]
        kept["checksums"] = torch.tensor(checksums)
        kept["digests"] = torch.from_numpy(self._digests[blocks.start : blocks.stop])
        with atomic_path(path) as temporary:
            save_file(kept, temporary, metadata={"shard": identity})

    def _encode(self, batch: range) -> dict[str, torch.Tensor]:
        """What is kept of some blocks, each tensor `(B, L, ...)`."""
        input_ids = _read_blocks(self._blocks, batch, self._encoding.vocab_size)
        numbers = torch.cat([self._encoding.numbers(block, self._settings.block_size) for block in batch])
        chunks, done = [], 0
        for probabilities in self._probabilities(input_ids):
            if probabilities[:, 0].isnan().any():
                raise StoreError(
                    f"the teacher's logits are not finite somewhere in the blocks {batch.start} to {batch.stop - 1}; "
                    "load it with dtype=torch.float32, or leave these blocks out"
                )
            own = numbers[done : done + len(probabilities)].to(probabilities.device)
            chunks.append({name: part.cpu() for name, part in self._encoding.encode(probabilities, own).items()})
            done += len(probabilities)
        return {
            name: torch.cat([chunk[name] for chunk in chunks]).unflatten(0, input_ids.shape)
            for name in self._encoding.tensors
        }

    def _probabilities(self, input_ids: torch.Tensor) -> Iterator[torch.Tensor]:
        """The teacher's distribution at the temperature after each token, `(n, V)` for n rows at a time."""
        size = self._encoding.vocab_size
        input_ids = input_ids.to(input_device(self._teacher))
        with contextlib.nullcontext() if self._head is None else in_place_of(self._head, lambda states: states):
            states = self._teacher(input_ids=input_ids, use_cache=False).logits.flatten(0, 1)
        targets = DenseTargets(states, None if self._head is None else head_of(self._head))
        on_cpu = states.device.type in ("cpu", "mps")  # the latter has no double precision
        chunk, tile = max(1, _CHUNK_ENTRIES // size), max(1, (_TILE_ENTRIES if on_cpu else _CHUNK_ENTRIES) // size)
        for rows in torch.arange(len(states), device=states.device).split(chunk):
            logits = targets.logits(rows, size)
            for some in (logits.cpu() if on_cpu else logits).split(tile):
                yield (some.float() / self._settings.temperature).softmax(-1)


def _is_whole(path: Path, identity: str) -> bool:
    """Whether a shard is there; its identity covers the blocks."""
    try:
        return (safe_open(path, framework="pt").metadata() or {}).get("shard") == identity
    except (FileNotFoundError, SafetensorError):
        return False


def _check_same(folder: Path, settings: StoreSettings) -> None:
    before, now = read_settings(folder)[0].to_dict(), settings.to_dict()
    different = [
        f"{name} is {before.get(name)}, not {now.get(name)}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]
    if different:
        raise StoreError(
            f"{folder} holds another store: {', '.join(different)}; choose another output_dir, or remove that folder"
        )


def _read_blocks(blocks: "Dataset | torch.Tensor", rows: range, vocab_size: int) -> torch.Tensor:
    every: Any = blocks
    some = every.select(rows) if hasattr(every, "select_columns") else every[rows.start : rows.stop]
    return as_input_ids(some, vocab_size, ignore_labels=True)


def _digest_all(blocks: "Dataset | torch.Tensor", vocab_size: int) -> tuple[np.ndarray, int]:
    """Digests of all blocks, and their length."""
    if len(blocks) == 0:
        raise DataError("there are no blocks of text for the teacher to read; give a dataset of packed tokens")
    rows = range(len(blocks))
    digests, lengths = [], set()
    for start in range(0, len(blocks), _BLOCKS_READ):
        input_ids = _read_blocks(blocks, rows[start : start + _BLOCKS_READ], vocab_size)
        digests.append(digest_blocks(input_ids))
        lengths.add(input_ids.shape[1])
    if len(lengths) > 1:
        raise DataError(f"the blocks have {sorted(lengths)} tokens; pack the text into blocks of the same length")
    return np.concatenate(digests), lengths.pop()


class LogitStore:
    """What `store_targets` wrote, read from mapped files; blocks are found by their tokens, in any order.

    `settings` says what it was made with.

    Args:
        folder (`str` or `Path`): the store.

    Raises:
        StoreError: if there is no store, it is not finished, or a file of it is missing or damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(expanded(folder))
        self.settings, complete = read_settings(self.folder)
        if not complete:
            raise StoreError(f"the store at {self.folder} is not finished; {AGAIN}, which goes on where it stopped")
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
        """What it keeps of the teacher's distribution."""
        if isinstance(self._encoding, Samples):
            return f"{self._encoding.draws} samples of the teacher's distribution for each token"
        return f"the top {self._encoding.k} entries of the teacher's distribution, the others as one"

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token on disk, but for 16 of each block and the header of each file."""
        return self._encoding.bytes_per_token

    @property
    def tokens(self) -> int:
        """Tokens the teacher has read."""
        return self.settings.blocks * self.settings.block_size

    def check(
        self,
        *,
        temperature: float | None = None,
        vocab_size: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        teacher: PreTrainedModel | None = None,
    ) -> None:
        """See that the store fits a training; what is `None` is not looked at.

        Args:
            temperature (`float`, *optional*): of the loss.
            vocab_size (`int`, *optional*): entries of the student's vocabulary, at least those of the teacher's.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): the student's; compared if the store knows the teacher's.
            teacher (`PreTrainedModel`, *optional*): what the store is to be of, in this precision or another.

        Raises:
            StoreError: that says what differs.
        """
        stored, size, known = self.settings.temperature, self._encoding.vocab_size, self.settings.tokenizer
        if temperature is not None and temperature != stored:
            raise StoreError(
                f"the store at {self.folder} holds the teacher's distribution at temperature {stored}, the loss takes "
                f"it at {temperature}; train with temperature={stored}, or {AGAIN} at the other"
            )
        if vocab_size is not None and vocab_size < size:
            raise StoreError(
                f"the store at {self.folder} is of a vocabulary of {size} entries, the student's has {vocab_size}; use "
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
                f"the store at {self.folder} is of another teacher than {teacher.config.name_or_path}, or it was "
                f"changed since; {AGAIN} into another folder"
            )

    def targets(self, input_ids: torch.Tensor) -> SparseTargets:
        """What the teacher says after each token of some blocks.

        Args:
            input_ids (`torch.Tensor`): whole blocks of the store, `(B, L)`, in any order.

        Returns:
            `SparseTargets`: of `B * L` rows, on the device of `input_ids`.

        Raises:
            StoreError: if a block is not in the store, or what is stored of it is damaged.
        """
        kept = [self._read(block) for block in self._find(input_ids)]
        device = input_ids.device
        return self._encoding.decode(
            {name: torch.cat([block[name] for block in kept]).to(device) for name in self._encoding.tensors}
        )

    def _find(self, input_ids: torch.Tensor) -> list[int]:
        """Index in the store of each block."""
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
        """What is kept of a block, each tensor `(L, ...)`."""
        shard, row = divmod(block, self.settings.blocks_per_shard)
        handle = self._shards[shard]
        kept = {name: handle.get_slice(name)[row] for name in self._encoding.tensors}
        if checksum(kept) != handle.get_slice("checksums")[row]:
            path = shard_path(self.folder, shard)
            raise StoreError(f"{path} is damaged (block {row} of it); remove it and {AGAIN}, which writes it anew")
        return kept
