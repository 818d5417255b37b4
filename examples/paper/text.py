"""Text of the experiments: the Python standard library, split by module as in the demo."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer

from hf_whittle.data import load_documents, pack_documents, split_documents
from hf_whittle.data.encoding import TextEncoder
from hf_whittle.demo import TEACHER
from hf_whittle.evaluation import as_input_ids
from hf_whittle.fingerprints import fingerprint

LENGTH = 256
"""Tokens of a block."""
USED = 64
"""Test blocks of the demo, evenly spread, which are left out here."""
FITNESS = 16
"""Search blocks of the demo, evenly spread, which fitnesses are evaluated on."""
CALIBRATION = 512
"""Training blocks that are kept for calibration."""


@dataclass(frozen=True)
class Text:
    """Token ids `(blocks, 256)`: to train on, to calibrate on, for fitnesses, to pick learning rates on, and to test.

    Args:
        train, calibration, fitness, rates, test (`torch.Tensor`): the blocks.
        modules (`tuple[str, ...]`): the module that each test block lies in.
    """

    train: torch.Tensor
    calibration: torch.Tensor
    fitness: torch.Tensor
    rates: torch.Tensor
    test: torch.Tensor
    modules: tuple[str, ...]

    def batches(self, seed: int, steps: int, batch_size: int) -> torch.Tensor:
        """Numbers of training blocks `(steps, batch_size)`: every block once in an order of the seed, then again."""
        generator = torch.Generator().manual_seed(seed)
        needed, orders = steps * batch_size, []
        while sum(map(len, orders)) < needed:
            orders.append(torch.randperm(len(self.train), generator=generator))
        return torch.cat(orders)[:needed].view(steps, batch_size)

    def calibrating(self, tokens: int, seed: int) -> torch.Tensor:
        """Blocks to heal or to score on, drawn by the seed."""
        order = torch.randperm(len(self.calibration), generator=torch.Generator().manual_seed(seed))
        return self.calibration[order[: tokens // LENGTH]]

    def identity(self) -> list[str]:
        """Hashes of the blocks."""
        return [fingerprint(each) for each in (self.train, self.calibration, self.fitness, self.rates, self.test)]


def load(test_blocks: int, rate_blocks: int) -> Text:
    """Load the text, with at most `test_blocks` test blocks of a module, so that no module rules the result."""
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    splits = split_documents(load_documents("python-standard-library"), {"search": 0.05, "test": 0.05}, key="name")
    ids = {
        name: as_input_ids(pack_documents(split, tokenizer, LENGTH), len(tokenizer)) for name, split in splits.items()
    }
    order = torch.randperm(len(ids["train"]), generator=torch.Generator().manual_seed(0))
    fitness = set(spread(len(ids["search"]), FITNESS))
    others = [block for block in range(len(ids["search"])) if block not in fitness]
    modules = modules_of(splits["test"], tokenizer, len(ids["test"]))
    unused = set(range(len(modules))) - set(spread(len(modules), USED))
    tested = [block for name in dict.fromkeys(modules) for block in _some(modules, unused, name, test_blocks)]
    return Text(
        train=ids["train"][order[CALIBRATION:]],
        calibration=ids["train"][order[:CALIBRATION]],
        fitness=ids["search"][sorted(fitness)],
        rates=ids["search"][[others[place] for place in spread(len(others), rate_blocks)]],
        test=ids["test"][tested],
        modules=tuple(modules[block] for block in tested),
    )


def spread(number: int, some: int) -> list[int]:
    """At most `some` of the first `number` integers, evenly spread."""
    some = min(some, number)
    return [place * number // some for place in range(some)]


def modules_of(documents: Any, tokenizer: Any, blocks: int) -> list[str]:
    """The module that the middle of each packed block lies in."""
    ends = torch.tensor([len(ids) for ids in TextEncoder(tokenizer)(documents["text"])]).cumsum(0)
    middles = torch.arange(blocks) * LENGTH + LENGTH // 2
    names = [name for name, text in zip(documents["name"], documents["text"], strict=True) if text]
    return [names[place] for place in torch.searchsorted(ends, middles, right=True).tolist()]


def _some(modules: list[str], unused: set[int], name: str, number: int) -> list[int]:
    own = [block for block, module in enumerate(modules) if module == name and block in unused]
    return [own[place] for place in spread(len(own), number)]
