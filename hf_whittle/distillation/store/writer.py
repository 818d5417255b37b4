"""Write a store of teacher targets: the teacher runs over packed blocks once, and training reads its predictions.

Shapes: `B` blocks, `L` tokens in a block, `N` rows (tokens), `V` entries of the vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...checks import check_integers, check_positive
from ...errors import DataError, StoreError
from ...evaluation import as_input_ids, evaluating
from ...evaluation.batches import batches_fit, blocks_for
from ...files.atomic import atomic_path, remove_leftovers
from ...files.paths import expanded
from ...files.text import write_json
from ...fingerprints import model_fingerprint
from ...loss.targets import dense_targets
from ...models.heads import output_layer
from ...models.placement import input_device, is_sharded
from ...models.weights import check_no_subnet
from ...processes import in_first, is_first, lock_in_first, own_device, own_share, wait_for_all
from ...progress import progress_bar
from ...vocabulary.vocabulary_map import VocabularyMap
from ..teacher import load_teacher
from ..vocabularies import TeacherVocabulary, check_fits
from .encodings import ENCODINGS, Samples, TopK
from .files import (
    STORE_FILE,
    StoreSettings,
    checksum,
    digest_blocks,
    read_settings,
    shard_path,
    short_hash,
    vocabulary_fingerprint,
)
from .reader import LogitStore

if TYPE_CHECKING:
    from datasets import Dataset

_SHARD_BYTES = 2**26
_CHUNK_ENTRIES = 2**23  # rows x vocabulary of the logits held at a time
_TILE_ENTRIES = 2**18  # the same of probabilities encoded at a time on a CPU, to stay in its cache
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
    batch_size: int | None = None,
    blocks_per_shard: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    vocabulary: VocabularyMap | None = None,
    dropped_tokens: Literal["first_piece", "renormalized"] = "first_piece",
    progress: bool = True,
) -> LogitStore:
    """Run a teacher over packed blocks and store its predictions after each of their tokens in a folder.

    After an interruption at any moment, the same call goes on where it stopped: a file is written whole or not at all.
    Under `accelerate launch`, the processes divide the files among them and write the same ones as a single process.
    Samples depend on the seed and on a block's index alone; with another batch size or processor, files differ only if
    the last bits of the teacher's logits do.

    Args:
        teacher (`PreTrainedModel`, `str` or `Path`): the teacher, or a checkpoint of it.
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids, `(blocks, block_size)`.
        output_dir (`str` or `Path`): folder of the store.
        kind (`str`, *optional*, defaults to `"sample"`): `"sample"`, see `Samples`, or `"top-k"`, see `TopK`.
        temperature (`float`, *optional*, defaults to 0.9): temperature of the teacher's distribution and of the loss.
        draws (`int`, *optional*, defaults to 12): ids sampled for each token.
        k (`int`, *optional*, defaults to 1024): tokens kept by `"top-k"`, at most the whole vocabulary.
        seed (`int`, *optional*, defaults to 0): seed of the samples.
        batch_size (`int`, *optional*): blocks in a batch of the teacher; by default 4,096 tokens on a CPU, 16,384 on
            another device.
        blocks_per_shard (`int`, *optional*): blocks in a file; as many as fill about 64 MB by default.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): its vocabulary's fingerprint is stored for
            `LogitStore.check`; the student's, if it has one of its own.
        vocabulary (`VocabularyMap`, *optional*): the teacher's ids of the tokens of the blocks, for students that have
            a part of its tokens; see `DistillationTrainer`.
        dropped_tokens (`str`, *optional*, defaults to `"first_piece"`): as in `DistillationConfig`; no effect without
            `vocabulary`.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Raises:
        StoreError: if the folder holds another store, a setting is out of range, the teacher is sharded, or its logits
            contain NaN.
        DataError, VocabularyError: if there are no blocks, they differ in length, or have ids beyond the vocabulary.
        OutputError: if the folder cannot be written, or another process is writing it.
    """
    check_store_arguments(kind=kind, draws=draws, k=k, seed=seed, batch_size=batch_size, temperature=temperature)
    model: Any = teacher
    if not isinstance(teacher, PreTrainedModel):
        model = load_teacher(str(teacher))
        model.to(own_device())
    check_no_subnet(model)
    if is_sharded(model):
        raise StoreError("the teacher is sharded over processes, each of which runs it alone here; give it whole")
    size = model.config.vocab_size
    of_teacher = None
    if vocabulary is not None:
        check_fits(vocabulary, len(vocabulary), size)
        of_teacher, size = TeacherVocabulary.of(vocabulary, dropped_tokens), len(vocabulary)
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
        vocabulary=None if vocabulary is None else f"{vocabulary.fingerprint}, {dropped_tokens}",
    )
    folder = Path(expanded(output_dir))
    with lock_in_first(folder):
        in_first(lambda: _begin(folder, settings))
        shards = own_share(range(settings.num_shards))
        with evaluating(model), torch.no_grad():
            writer = _ShardWriter(model, blocks, digests, settings, batch_size, of_teacher)
            for shard in progress_bar(shards, desc="teacher", unit="shard", disable=not (progress and is_first())):
                writer.write(shard, folder)
        wait_for_all()
        in_first(lambda: _complete(folder, settings))
    return LogitStore(folder)


def _begin(folder: Path, settings: StoreSettings) -> None:
    if (folder / STORE_FILE).exists():
        _check_same(folder, settings)
    else:
        write_json(folder / STORE_FILE, settings.to_dict() | {"complete": False})


def _complete(folder: Path, settings: StoreSettings) -> None:
    remove_leftovers(folder)
    write_json(folder / STORE_FILE, settings.to_dict() | {"complete": True})


def check_store_arguments(
    *, kind: str, draws: int, k: int, seed: int, batch_size: int | None, temperature: float
) -> None:
    """Raise `StoreError` if an argument of `store_targets` is out of range, before anything is loaded."""
    if kind not in ENCODINGS:
        raise StoreError(f"kind must be one of {', '.join(ENCODINGS)}, got {kind!r}")
    given = SimpleNamespace(batch_size=1 if batch_size is None else batch_size, temperature=temperature, k=k)
    check_integers(given, {"batch_size": 1, "k": 1}, error=StoreError)
    check_positive(given, "temperature", error=StoreError)
    Samples(2, draws, seed)


class _ShardWriter:
    """Writes shards, each of which depends on its own blocks alone."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        blocks: "Dataset | torch.Tensor",
        digests: np.ndarray,
        settings: StoreSettings,
        batch_size: int | None,
        vocabulary: TeacherVocabulary | None,
    ):
        self._teacher, self._blocks, self._digests, self._vocabulary = teacher, blocks, digests, vocabulary
        self._settings, self._encoding = settings, settings.encoding
        self._head = output_layer(teacher)
        self._batch_size = batch_size or blocks_for(teacher, settings.block_size, in_chunks=self._head is not None)

    def write(self, shard: int, folder: Path) -> None:
        """Write a shard, unless it exists."""
        path = shard_path(folder, shard)
        identity = self._settings.identity(shard)
        if _is_whole(path, identity):
            return
        blocks = self._settings.blocks_of(shard)
        starts = range(0, len(blocks), self._batch_size)
        with batches_fit(self._batch_size):
            batches = [self._encode(blocks[start : start + self._batch_size]) for start in starts]
        encoded = {name: torch.cat([batch[name] for batch in batches]) for name in self._encoding.tensors}
        checksums = [checksum({name: tensor[row] for name, tensor in encoded.items()}) for row in range(len(blocks))]
        encoded["checksums"] = torch.tensor(checksums)
        encoded["digests"] = torch.from_numpy(self._digests[blocks.start : blocks.stop])
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(encoded, {"shard": identity}))  # `save_file` leaves a file of its own if killed

    def _encode(self, batch: range) -> dict[str, torch.Tensor]:
        """Encode the targets of some blocks, each tensor `(B, L, ...)`."""
        input_ids = _read_blocks(self._blocks, batch, self._encoding.vocab_size)
        numbers = torch.cat([self._encoding.numbers(block, self._settings.block_size) for block in batch])
        chunks, done = [], 0
        for probabilities in self._probabilities(input_ids):
            if probabilities[:, 0].isnan().any():
                raise StoreError(
                    f"the teacher's logits contain NaN or Inf in one of the blocks {batch.start} to {batch.stop - 1}; "
                    "load the teacher with dtype=torch.float32, or leave these blocks out"
                )
            own = numbers[done : done + len(probabilities)].to(probabilities.device)
            chunks.append({name: part.cpu() for name, part in self._encoding.encode(probabilities, own).items()})
            done += len(probabilities)
        return {
            name: torch.cat([chunk[name] for chunk in chunks]).unflatten(0, input_ids.shape)
            for name in self._encoding.tensors
        }

    def _probabilities(self, input_ids: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the teacher's distribution after each token, at the temperature, `(n, V)` for n rows at a time."""
        size = self._encoding.vocab_size
        input_ids = input_ids.to(input_device(self._teacher))
        if self._vocabulary is not None:
            input_ids = self._vocabulary.read(input_ids)
        targets = dense_targets(self._teacher, self._head, input_ids=input_ids, use_cache=False)
        if self._vocabulary is not None:
            targets = targets.restricted(self._vocabulary.restriction)
        device = targets.hidden_states.device
        on_cpu = device.type in ("cpu", "mps")  # mps has no double precision
        chunk, tile = max(1, _CHUNK_ENTRIES // size), max(1, (_TILE_ENTRIES if on_cpu else _CHUNK_ENTRIES) // size)
        for rows in torch.arange(len(targets), device=device).split(chunk):
            logits = targets.logits(rows, size)
            for some in (logits.cpu() if on_cpu else logits).split(tile):
                yield (some.float() / self._settings.temperature).softmax(-1)


def _is_whole(path: Path, identity: str) -> bool:
    """Whether a shard exists; its identity covers its blocks."""
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
    """Digest every block; also returns their common length."""
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
