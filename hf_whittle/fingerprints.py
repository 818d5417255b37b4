"""Hashes of the contents of tokenizers, checkpoints, models and token ids."""

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

from .compat.torch import uncompiled
from .compat.transformers import find_file, tied_weights
from .files.paths import expanded
from .models.placement import check_can_be_gathered, whole_tensor
from .models.weights import full_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CONFIG = "tokenizer_config.json"
_NOT_WEIGHTS = "training_args.bin"  # written by Trainer
_WEIGHTS = ("*.safetensors", "*.bin")  # the second pattern counts only where the first finds nothing
_CONFIGS = ("config.json", "adapter_config.json")
_NOT_FINGERPRINTED = {
    "_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "use_cache", "rotary_pct",
    "rotary_emb_base", "rope_scaling",
}  # fmt: skip


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of everything that decides which ids a tokenizer gives to a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        settings = json.loads(backend.to_str())
        for name in ("truncation", "padding"):  # set by the last call
            settings.pop(name, None)
        return _hash(json.dumps(settings, sort_keys=True).encode())
    if not hasattr(tokenizer, "save_pretrained"):  # a class of the user's own
        return Hasher.hash(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return _hash(*(_tokenizer_file(path) for path in sorted(Path(folder).rglob("*")) if path.is_file()))


def _tokenizer_file(path: Path) -> bytes:
    """Name and content of a tokenizer's file, without settings that depend on where it was loaded from."""
    if path.name != _CONFIG:
        return path.name.encode() + path.read_bytes()
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only", "model_max_length"):
        settings.pop(name, None)
    return json.dumps(settings, sort_keys=True).encode()


def checkpoint_fingerprint(source: str | os.PathLike[str]) -> str:
    """A hash of a checkpoint's files of configuration and weights.

    Args:
        source (`str` or `Path`): a folder or a name on the Hub; files that are not in the cache are downloaded.

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
    """Hash of a file's content. The Hub's cache names large files by it, so that these are not read."""
    blob = path.resolve()
    if path.is_symlink() and blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name):
        return bytes.fromhex(blob.name)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


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
    """A short hash of a model's configuration and weights.

    Args:
        model (`PreTrainedModel`): the model. The processes of a model sharded by FSDP2 must all call this.
        dtype (`torch.dtype`, *optional*): precision to convert the weights to before they are hashed.

    Raises:
        WeightsError: if the model is sharded by FSDP1 or DeepSpeed ZeRO-3.
    """
    model = uncompiled(model)
    check_can_be_gathered(model)
    config = full_config(model).to_diff_dict()
    settings = {name: value for name, value in config.items() if name not in _NOT_FINGERPRINTED}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=8)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    # The state dict of a quantized model adds scales, and weights as they were before a kernel packed them.
    others = {name: value for name, value in model.state_dict().items() if name not in parameters}
    tied = tied_weights(model)  # where they are offloaded, named_parameters takes them for others
    for name, tensor in (*model.named_parameters(), *sorted(others.items())):
        if not torch.is_tensor(tensor) or (name in tied and tensor.is_meta):
            continue
        with whole_tensor(model, name, tensor) as whole:
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
