"""Models and texts of the benchmark."""

import hashlib
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from hf_whittle.data import load_documents, pack_documents, split_documents
from hf_whittle.data.text_files import find_files
from hf_whittle.recipe import Recipe
from hf_whittle.run.inputs import Inputs

RUNS = Path(__file__).parents[1] / "runs" / "recovery"
MODEL, CALIBRATION, WIKITEXT = "HF_WHITTLE_REAL_MODEL", "HF_WHITTLE_CALIBRATION", "HF_WHITTLE_WIKITEXT"
WINDOWS, CALIBRATION_TOKENS = "HF_WHITTLE_WINDOWS", "HF_WHITTLE_CALIBRATION_TOKENS"
WINDOW, BLOCK = 2048, 512
SEED = 0


@dataclass(frozen=True)
class Case:
    """A teacher and its texts.

    Args:
        name (`str`): name of the model.
        model (`str`): its folder.
        calibration (`torch.Tensor`): token ids that rivals may use, `(blocks, block_size)`.
        windows (`torch.Tensor`): token ids of the test text that are read, `(windows, window)`.
        facts (`dict`): facts of the texts.
    """

    name: str
    model: str
    calibration: torch.Tensor
    windows: torch.Tensor
    facts: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Folder of this case's rows, which its texts and the windows that are read give a name of its own."""
        texts = self.calibration.numpy().tobytes() + self.windows.numpy().tobytes()
        return RUNS / f"{self.name}-{hashlib.sha256(texts).hexdigest()[:8]}"

    @property
    def tokens_per_word(self) -> float:
        """Tokens of the whole test text for each of its words, which white space separates."""
        return self.facts["test_tokens"] / self.facts["test_words"]


def real_case() -> Case | None:
    """The model, the calibration files and the test text that environment variables name; `None` if one is missing."""
    missing = [name for name in (MODEL, CALIBRATION, WIKITEXT) if name not in os.environ]
    if missing:
        print(f"no real model is measured: set {', '.join(missing)}", flush=True)
        return None
    folder = os.environ[MODEL]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    files = find_files(os.environ[CALIBRATION].split(os.pathsep))
    blocks = pack_documents(load_documents(files=files), tokenizer, BLOCK)
    text = Path(os.environ[WIKITEXT]).read_text(encoding="utf-8").replace("\n", "\n\n")  # a row is a line
    return _case(Path(folder).name, folder, tokenizer, blocks, text, WINDOW)


def demo_case() -> Case:
    """The demo's teacher, on text that it was not trained on; calibrated on what it was."""
    demo = Path(str(resources.files("hf_whittle"))) / "demo"
    recipe = Recipe.load(demo / "recipe.yaml", teacher=str(demo / "teacher"), output_dir=str(RUNS / "demo"))
    run, data = Inputs(recipe), recipe.data
    fractions = {"search": data.search_fraction, "test": data.test_fraction}
    held_out = split_documents(load_documents(data.dataset), fractions, key=data.document_column)["test"]
    text = "\n\n".join(held_out[data.text_column])
    return _case(
        "demo", recipe.teacher, run.tokenizer, run.blocks["train"], text, run.supernet.config.max_position_embeddings
    )


def _case(name: str, model: str, tokenizer: Any, blocks: Any, text: str, window: int) -> Case:
    wanted = int(os.environ.get(CALIBRATION_TOKENS, 64 * BLOCK)) // len(blocks[0]["input_ids"])
    chosen = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(SEED))[:wanted]
    calibration = torch.tensor(blocks[chosen.tolist()]["input_ids"], dtype=torch.long)
    ids = torch.tensor(tokenizer(text, return_attention_mask=False)["input_ids"])
    windows = ids[: len(ids) // window * window].view(-1, window)
    limit = os.environ.get(WINDOWS)
    read = windows if limit is None else windows[[i * len(windows) // int(limit) for i in range(int(limit))]]
    facts = {
        "calibration_tokens": calibration.numel(),
        "calibration_sha256": hashlib.sha256(calibration.numpy().tobytes()).hexdigest(),
        "test_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "test_tokens": len(ids),
        "test_words": len(text.split()),
        "window": window,
        "windows": len(windows),
        "windows_read": None if limit is None else len(read),
    }
    return Case(name, model, calibration, read, facts)
