"""Extraction from disk at Pythia-1.4B's shapes: peak memory, and time against copying the same bytes."""

import json
import os
import tempfile
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from hf_whittle import SubnetConfig, extract_subnet
from hf_whittle.cost import weight_bytes

from .measuring import peak_memory, time_in_turn

CONFIG = GPTNeoXConfig(
    vocab_size=50304, hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, intermediate_size=8192,
    dtype="bfloat16", architectures=["GPTNeoXForCausalLM"],
)  # fmt: skip
MEGABYTE = 2**20


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        write_checkpoint(checkpoint)
        stored = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
        largest = 2 * CONFIG.vocab_size * CONFIG.hidden_size
        return {
            "checkpoint": {"gigabytes": round(stored / 1e9, 2), "files": len(list(checkpoint.glob("*.safetensors")))},
            "largest_tensor_megabytes": round(largest / MEGABYTE),
            "subnets": {name: measure_subnet(checkpoint, subnet, largest) for name, subnet in subnets().items()},
        }


def subnets() -> dict[str, SubnetConfig]:
    rng = Random(0)

    def some(size: int, total: int) -> list[int]:
        return sorted(rng.sample(range(total), size))

    layers = some(18, 24)
    heads, neurons = [rng.randint(6, 14) for _ in layers], [rng.randrange(2048, 8192, 32) for _ in layers]
    return {
        "coarse": SubnetConfig(1536, 18, heads, neurons),
        "fine": SubnetConfig(
            some(1536, 2048), layers, [some(size, 16) for size in heads], [some(size, 8192) for size in neurons]
        ),
    }


def measure_subnet(checkpoint: Path, subnet: SubnetConfig, largest: int) -> dict[str, Any]:
    size = weight_bytes(CONFIG, subnet)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "student"
        peak = peak_memory(partial(prepare, checkpoint), partial(extract, subnet=subnet, target=target))
        written = list(target.glob("*.safetensors"))
        assert sum(file.stat().st_size for file in written) >= size
        from_memory = extract_subnet(GPTNeoXForCausalLM.from_pretrained(checkpoint), subnet)
        equal = all(
            torch.equal(ours, theirs)
            for ours, theirs in zip(
                from_memory.state_dict().values(),
                type(from_memory).from_pretrained(target).state_dict().values(),
                strict=True,
            )
        )
        del from_memory
        numbers = iter(range(1000))
        seconds = time_in_turn(
            {
                "extract": lambda: extract(checkpoint, subnet, Path(folder) / f"{next(numbers)}"),
                "copy": lambda: copy_bytes(checkpoint, size, Path(folder) / f"{next(numbers)}"),
            },
            repeats=3,
        )
    return {
        "student_megabytes": round(size / MEGABYTE),
        "files": len(written),
        "equal_to_extraction_from_memory": equal,
        "peak_megabytes": round(peak),
        "peak_beyond_student_and_largest_tensor_megabytes": round(peak - (size + largest) / MEGABYTE),
        "time_to_reading_and_writing_the_same_bytes": round(seconds["extract"] / seconds["copy"], 2),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def prepare(checkpoint: Path) -> Path:
    """Import what extraction needs before memory is measured."""
    from hf_whittle import WhittleGPTNeoXForCausalLM  # noqa: F401

    torch.set_num_threads(1)
    return checkpoint


def extract(checkpoint: Path, subnet: SubnetConfig, target: Path) -> None:
    extract_subnet(checkpoint, subnet, target, max_shard_size="500MB", progress=False)


def copy_bytes(checkpoint: Path, size: int, target: Path) -> None:
    """Read as many bytes of the checkpoint as the student has, and write them, synchronized like the extraction."""
    with target.open("wb") as written:
        for file in sorted(checkpoint.glob("*.safetensors")):
            with file.open("rb") as stored:
                while size > 0 and (block := stored.read(min(size, 16 * MEGABYTE))):
                    written.write(block)
                    size -= len(block)
        os.fsync(written.fileno())


def write_checkpoint(folder: Path) -> None:
    """A checkpoint of random weights under Pythia's names, in shards, with an index."""
    folder.mkdir()
    CONFIG.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPTNeoXForCausalLM(CONFIG).state_dict().items()}
    weight_map, shard, held, generator = {}, {}, 0, torch.Generator().manual_seed(0)
    for name, shape in [*shapes.items(), (None, None)]:
        if name is None or held > 900 * MEGABYTE:
            file = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(shard, file))
            shard, held = {}, 0
        if name is not None:
            tensor = torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.02, 0.02, generator=generator)
            shard["embed_out.weight" if name == "lm_head.weight" else name] = tensor
            held += tensor.nbytes
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    os.sync()
