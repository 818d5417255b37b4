"""What a tokenizer, a checkpoint, a model and token ids are, told by their contents rather than their names."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets.fingerprint import Hasher

from .compat import find_file, uncompiled
from .files.paths import expanded
from .models.weights import at_hand, full_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CONFIG = "tokenizer_config.json"
_NOT_WEIGHTS = "training_args.bin"  # of a Trainer
_WEIGHTS = ("*.safetensors", "*.bin")  # the latter are not read where there are the former
_CONFIGS = ("config.json", "adapter_config.json")
_NOT_FINGERPRINTED = {
    "_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "use_cache", "rotary_pct",
    "rotary_emb_base", "rope_scaling",
}  # fmt: skip


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of all that tells which ids a tokenizer gives to a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        told = json.loads(backend.to_str())
        for name in ("truncation", "padding"):  # of the last call
            told.pop(name, None)
        return _hash(json.dumps(told, sort_keys=True).encode())
    if not hasattr(tokenizer, "save_pretrained"):  # of a class of the user's
        return Hasher.hash(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return _hash(*(_of_tokenizer(path) for path in sorted(Path(folder).rglob("*")) if path.is_file()))


def _of_tokenizer(path: Path) -> bytes:
    """A file of a tokenizer, without what tells where it was loaded from."""
    if path.name != _CONFIG:
        return path.name.encode() + path.read_bytes()
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only", "model_max_length"):
        told.pop(name, None)
    return json.dumps(told, sort_keys=True).encode()


def checkpoint_fingerprint(source: str | os.PathLike[str]) -> str:
    """A hash of the configuration and the weights of a checkpoint, as they are in its files.

    Args:
        source (`str` or `Path`): a folder, or a name on the Hub, from where what is not in the cache is downloaded.

    Raises:
        OSError: if there is no such checkpoint.
    """
    digest = hashlib.blake2b(digest_size=8)
    paths = sorted(_checkpoint_files(expanded(source)), key=lambda path: path.name)
    with ThreadPoolExecutor() as readers:
        for path, contents in zip(paths, readers.map(_sha256, paths), strict=True):
            digest.update(path.name.encode() + contents)
    return digest.hexdigest()


def _sha256(path: Path) -> bytes:
    """Of what is in a file. In the cache of the Hub, large ones are called so, and need not be read."""
    blob = path.resolve()
    if path.is_symlink() and blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name):
        return bytes.fromhex(blob.name)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _checkpoint_files(source: str) -> Iterator[Path]:
    if Path(source).is_dir():
        for name in _CONFIGS:
            yield from Path(source).glob(name)
        found = (list(Path(source).glob(pattern)) for pattern in _WEIGHTS)
        yield from (path for path in next(filter(None, found), []) if path.name != _NOT_WEIGHTS)
        return
    from transformers.utils import (
        SAFE_WEIGHTS_INDEX_NAME,
        SAFE_WEIGHTS_NAME,
        WEIGHTS_INDEX_NAME,
        WEIGHTS_NAME,
        cached_file,
    )

    config: Any = cached_file(source, "config.json")
    yield Path(config)
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        path = find_file(source, name)
        if path is not None:
            is_index = name.endswith(".index.json")
            shards = set(json.loads(Path(path).read_bytes())["weight_map"].values()) if is_index else [name]
            yield from (Path(str(cached_file(source, shard))) for shard in sorted(shards))
            return


def fingerprint(input_ids: torch.Tensor) -> str:
    """A short hash of token ids."""
    return hashlib.sha256(input_ids.numpy().tobytes()).hexdigest()[:16]


def model_fingerprint(model: "PreTrainedModel", dtype: torch.dtype | None = None) -> str:
    """A short hash of a model: its configuration and its parameters.

    Args:
        model (`PreTrainedModel`): the model.
        dtype (`torch.dtype`, *optional*): the hash that the same weights have in this precision.
    """
    model = uncompiled(model)
    config = full_config(model).to_diff_dict()
    told = {name: value for name, value in config.items() if name not in _NOT_FINGERPRINTED}
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=8)
    states = model.state_dict()  # of a quantized model, with scales and with weights no kernel has packed
    parameters = dict(model.named_parameters(remove_duplicate=False))
    others = {name: value for name, value in states.items() if name not in parameters}
    for name, tensor in (*model.named_parameters(), *sorted(others.items())):
        if not torch.is_tensor(tensor):
            continue
        with at_hand(model, name, tensor) as whole:
            if dtype is not None and whole.is_floating_point():
                whole = whole.to(dtype)
            digest.update(f"{name}{whole.dtype}{tuple(whole.shape)}".encode())
            digest.update(whole.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hash(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
