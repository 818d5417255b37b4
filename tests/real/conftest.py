"""A real pretrained model, and what each of its tests takes."""

import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from hf_whittle import AutoSuperNetForCausalLM
from hf_whittle.data.documents import load_documents
from hf_whittle.data.packing import pack_documents

FOLDER = os.environ.get("HF_WHITTLE_REAL_MODEL")
BLOCK_SIZE = 256


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in Path(item.fspath).parents:
            item.add_marker(pytest.mark.real)
            item.add_marker(pytest.mark.timeout(3600))
            if FOLDER is None:
                item.add_marker(pytest.mark.skip(reason="HF_WHITTLE_REAL_MODEL names no checkpoint"))


@pytest.fixture(scope="session")
def checkpoint():
    """Folder of the checkpoint."""
    return Path(FOLDER)


@pytest.fixture(scope="session")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def supernet(checkpoint):
    """The model, in single precision, on the GPU if there is one."""
    supernet = AutoSuperNetForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return supernet.to("cuda" if torch.cuda.is_available() else "cpu").eval()


@pytest.fixture(scope="session")
def blocks(tokenizer):
    """English and code from the documents of Python's standard library, `(blocks, 256)`."""
    documents = load_documents("python-standard-library").select(range(60))
    packed = pack_documents(documents, tokenizer, BLOCK_SIZE)
    return torch.tensor(np.stack(packed["input_ids"]))


@pytest.fixture(autouse=True)
def measured(request, supernet, blocks):
    """Append seconds and peak memory of each test to the file `HF_WHITTLE_REAL_REPORT`, if that is set."""
    report = os.environ.get("HF_WHITTLE_REAL_REPORT")
    started = time.perf_counter()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    yield
    stage = {
        "stage": request.node.name.removeprefix("test_").replace("_", " "),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        **getattr(request.node, "found", {}),
    }
    if torch.cuda.is_available():
        stage["peak_gigabytes_of_gpu"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    if report:
        with open(report, "a") as file:
            file.write(json.dumps(stage) + "\n")


@pytest.fixture
def report(request):
    """A function that adds figures to the report of a test."""

    def add(**figures):
        request.node.found = {**getattr(request.node, "found", {}), **figures}

    return add
