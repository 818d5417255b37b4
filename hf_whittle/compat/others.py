"""Names of huggingface_hub, datasets, peft, bitsandbytes, lm_eval and the standard library."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from datasets import Dataset, IterableDataset
    from huggingface_hub import CommitInfo
    from torch import nn


HUB_LOGGERS = ("huggingface_hub.utils._http", "httpx", "httpx2")
"""Loggers that print the URLs of requests, with the signatures in them; huggingface_hub has no option to hide these."""


def commit_info(endpoint: str, **facts: Any) -> "CommitInfo":
    """Make the `CommitInfo` of a commit whose answer was lost.

    `_endpoint`: otherwise its `repo_url` is on the default Hub. The public `create_commit` would commit again.
    """
    from huggingface_hub import CommitInfo

    return CommitInfo(**facts, _endpoint=endpoint)


def dataset_fingerprint(documents: "Dataset") -> str:
    """Return the hash by which `datasets` caches results of `map`: `_fingerprint`, documented as a concept alone."""
    return documents._fingerprint


def set_dataset_fingerprint(documents: "Dataset", fingerprint: str) -> None:
    """Set the hash of a dataset that was loaded.

    `_fingerprint`: the public argument `new_fingerprint` belongs to `map` and `filter`, not to loading.
    """
    documents._fingerprint = fingerprint


def with_features(documents: "IterableDataset") -> "IterableDataset":
    """Return a streamed dataset that knows its columns, read off its first rows if needed.

    `_resolve_features`: publicly, `column_names` stays `None` where the source does not state its columns.
    """
    return documents._resolve_features()


LORA_PREFIX = "lora_"
"""Part of the name of every parameter of a LoRA adapter; peft has no public test for such a parameter."""


@contextlib.contextmanager
def without_packing(model: "nn.Module") -> Iterator[None]:
    """Keep bitsandbytes from packing 4-bit weights for the CPU inside the block.

    `support_avx512bf16_for_cpu` of `Linear4bit`; there is no public switch. On CPUs with AVX512-BF16, the first forward
    in evaluation mode packs the weights in place, with rounded scales, for a kernel that asserts multiples of 32
    outputs.
    """
    name = "support_avx512bf16_for_cpu"
    packing: list[Any] = [module for module in model.modules() if getattr(module, name, False)]
    for module in packing:
        setattr(module, name, False)
    try:
        yield
    finally:
        for module in packing:
            setattr(module, name, True)


def divide_requests(lm: Any, accelerator: Any) -> None:
    """Let the processes of an `Accelerator` divide the requests that lm-evaluation-harness makes to an `HFLM`.

    `_rank` and `_world_size`: it divides requests by itself only to a model that it has loaded.
    """
    lm.accelerator = accelerator
    lm._rank, lm._world_size = accelerator.process_index, accelerator.num_processes


def arguments_of(parser: "argparse.ArgumentParser") -> "list[argparse.Action]":
    """Return the arguments of a parser, the commands of which are one.

    `_actions`: `argparse` has no public list of them.
    """
    return list(parser._actions)
