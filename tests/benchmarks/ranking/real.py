"""The study on a real model: near-good subnets of SmolLM2-135M."""

import os

import torch

from hf_whittle import AutoSuperNetForCausalLM, SearchSpace
from hf_whittle.data import documents_fingerprint, load_documents, pack_documents, split_documents
from hf_whittle.evaluation import as_input_ids
from hf_whittle.importance.scores import score_importance

from .settings import RUNS, Material, Setting

MODEL, TEXT = "HF_WHITTLE_REAL_MODEL", "HF_WHITTLE_REAL_TEXT"
BLOCK_SIZE = 512
BLOCKS = {"train": 2048, "search": 64, "test": 32}


def environment_path(name: str, meaning: str) -> str:
    if name not in os.environ:
        raise SystemExit(f"{name} is not set; set it to {meaning}")
    return os.environ[name]


def load() -> Material:
    """SmolLM2-135M with English text: a twentieth of the documents to search on, another to judge on."""
    from transformers import AutoTokenizer

    folder = environment_path(MODEL, "the folder of a checkpoint, such as one of SmolLM2-135M")
    files = environment_path(TEXT, f"patterns of text files, with {os.pathsep!r} between them").split(os.pathsep)
    documents = load_documents(files=files)
    supernet = AutoSuperNetForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    blocks: dict[str, torch.Tensor] = {}
    for name, split in split_documents(documents, {"search": 0.05, "test": 0.05}).items():
        packed = pack_documents(split, tokenizer, BLOCK_SIZE).shuffle(seed=0)
        blocks[name] = as_input_ids(packed.select(range(min(BLOCKS[name], len(packed)))), supernet.config.vocab_size)
    return Material(
        supernet,
        train=blocks["train"][:1024],
        calibration=blocks["train"][1024:],
        search=blocks["search"][:4],
        fitness=blocks["search"][4:12],
        test=blocks["test"],
        text_sha256=documents_fingerprint(lambda: documents, files=files),
    )


def spaces(material: Material) -> dict[str, SearchSpace]:
    """Layer-wise spaces: the most important entries alone, which a sorted coarse space has, and others beside them."""
    scores = score_importance(
        material.supernet, material.calibration[-16:], batch_size=4, cache_dir=RUNS / "importance", progress=False
    )
    return {
        name: SearchSpace.from_config(
            material.supernet.config,
            granularity="fine",
            layer_wise=True,
            hidden_size=range(448, 577, 32),
            importance=scores,
            temperature=temperature,
        )
        for name, temperature in (("most important", 0.0), ("fine", 0.1))
    }


REAL = Setting(
    name="SmolLM2-135M",
    load=load,
    spaces=spaces,
    near_good=True,
    subnets=16,
    bins=((0.6, 0.65), (0.7, 0.75)),
    budgets=(8_192, 32_768),
    rates=((1e-4, 3e-4, 1e-3, 2e-3), (3e-4, 1e-3)),
    batch_size=2,
    healing_tokens=(24_576,),
    probes=(2, 4),
    starts=("sliced",),
    by_space=False,
    eval_batch_size=4,
    autocast=True,
)
