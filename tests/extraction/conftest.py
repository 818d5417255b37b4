"""Checkpoints of the tiny stock model."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from small_checkpoints import (
    CONFIG,
    KINDS,
    WEIGHTS,
    shard_by_layer,
    shard_by_name,
    write_shards,
)


@pytest.fixture(scope="module")
def saved(stock, tmp_path_factory):
    """The tiny stock model on disk."""
    folder = tmp_path_factory.mktemp("saved")
    stock.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(saved, tmp_path / "checkpoint")


@pytest.fixture
def sharded(saved, tmp_path):
    """The same in a shard for each layer and one for the rest."""
    folder = shutil.copytree(saved, tmp_path / "sharded")
    write_shards(folder, load_file(folder / WEIGHTS), shard_by_layer)
    (folder / WEIGHTS).unlink()
    return folder


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def kind(request, saved, tmp_path_factory):
    """Every kind of checkpoint, in one file and in shards."""
    parent = tmp_path_factory.mktemp("kind")
    tensors, config = load_file(saved / WEIGHTS), json.loads((saved / CONFIG).read_text())
    request.param(tensors, config)
    folders = [shutil.copytree(saved, parent / layout) for layout in ("one file", "shards")]
    for folder in folders:
        (folder / CONFIG).write_text(json.dumps(config))
    save_file(tensors, folders[0] / WEIGHTS, metadata={"format": "pt"})
    (folders[1] / WEIGHTS).unlink()
    write_shards(folders[1], tensors, shard_by_name)
    return folders
