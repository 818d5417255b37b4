"""Settings of a ranking study: teacher, text, bins, spaces and budgets."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_whittle import SearchSpace

RUNS = Path(__file__).parents[1] / "runs" / "ranking"
RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Material:
    """A super-network, and token ids `(blocks, block_size)` of one text.

    Args:
        supernet (`SuperNetModel`): the super-network, which is the teacher too.
        train (`torch.Tensor`): to distil on.
        calibration (`torch.Tensor`): other training text, for healing, probes and gradients.
        search (`torch.Tensor`): held out, to choose subnets on.
        fitness (`torch.Tensor`): held out, to evaluate fitnesses on.
        test (`torch.Tensor`): held out, to judge trained students on.
        text_sha256 (`str`): hash of the text's files.
    """

    supernet: Any
    train: torch.Tensor
    calibration: torch.Tensor
    search: torch.Tensor
    fitness: torch.Tensor
    test: torch.Tensor
    text_sha256: str


@dataclass(frozen=True)
class Setting:
    """A ranking study of one teacher.

    Args:
        name (`str`): name of the teacher, which begins the names of groups.
        load (`Callable`): loads the super-network and the text.
        spaces (`Callable`): makes the search spaces, by name.
        near_good (`bool`): whether subnets are near-good ones, or spread over all that a search evaluates.
        subnets (`int`): subnets of a group.
        bins (`tuple`): shares of the teacher's parameters.
        budgets (`tuple[int, ...]`): tokens of distillation.
        rates (`tuple`): learning rates of each budget, of which the best for the first subnet is taken.
        batch_size (`int`): blocks of a training step.
        healing_tokens (`tuple[int, ...]`): calibration tokens of healed perplexities; healed starts take the most.
        probes (`tuple[int, ...]`): steps of probes.
        starts (`tuple[str, ...]`): starts of the trainings, `"sliced"` or `"healed"`.
        by_space (`bool`): whether subnets of different spaces are different groups.
        eval_batch_size (`int`): blocks evaluated at a time.
        autocast (`bool`): whether matrix products run in bfloat16; weights stay in single precision.
    """

    name: str
    load: Callable[[], Material]
    spaces: Callable[[Material], dict[str, SearchSpace]]
    near_good: bool
    subnets: int
    bins: tuple[tuple[float, float], ...]
    budgets: tuple[int, ...]
    rates: tuple[tuple[float, ...], ...]
    batch_size: int
    healing_tokens: tuple[int, ...]
    probes: tuple[int, ...]
    starts: tuple[str, ...]
    by_space: bool
    eval_batch_size: int
    autocast: bool

    def group(self, bin: tuple[float, float], space: str) -> str:
        share = f"{100 * bin[0]:g}-{100 * bin[1]:g}%"
        return f"{self.name}, {share}, {space}" if self.by_space else f"{self.name}, {share}"
