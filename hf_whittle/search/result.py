"""What a search found: every evaluation, the best subnet, and the files that hold them."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError, WhittleError
from ..files import read_json, write_json, write_text
from ..subnet import SubnetConfig
from .algorithm import Evaluation

if TYPE_CHECKING:
    from datasets import Dataset

SEARCH_FILE = "search.json"
CANDIDATES_FILE = "candidates.jsonl"


@dataclass
class SearchResult:
    """The evaluations of a search, in the order they were made.

    Args:
        settings (`dict`): what defines the search: space, bin, algorithm, fitness, data and model.
        evaluations (`list[Evaluation]`): every candidate evaluated.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def best_evaluation(self) -> Evaluation:
        """The evaluation of lowest fitness on all tokens, the first one where several are equal."""
        if not self.full_evaluations:
            raise WhittleError("the search has no evaluations on all tokens yet, so there is no best subnet")
        return min(self.full_evaluations, key=lambda evaluation: evaluation.fitness)

    @property
    def full_evaluations(self) -> list[Evaluation]:
        """The evaluations on all of the fitness' tokens: only these compare with each other."""
        return [evaluation for evaluation in self.evaluations if evaluation.share == 1]

    @property
    def best(self) -> SubnetConfig:
        """The subnet of lowest fitness."""
        return self.best_evaluation.subnet

    def pareto_front(self) -> list[Evaluation]:
        """Evaluations that no other one beats in fitness and parameters together, from small to large."""
        front: list[Evaluation] = []
        for evaluation in sorted(self.full_evaluations, key=lambda e: (e.parameters, e.fitness)):
            if not front or evaluation.fitness < front[-1].fitness:
                front.append(evaluation)
        return front

    def best_so_far(self) -> list[float]:
        """After each evaluation, the lowest fitness on all tokens until then; infinite before the first."""
        lowest, curve = math.inf, []
        for evaluation in self.evaluations:
            if evaluation.share == 1:
                lowest = min(lowest, evaluation.fitness)
            curve.append(lowest)
        return curve

    @property
    def candidates(self) -> "Dataset":
        """Every evaluation as a row of a `datasets.Dataset`; `to_pandas` makes a data frame of it."""
        from datasets import Dataset

        return Dataset.from_list([json.loads(evaluation_line(evaluation)) for evaluation in self.evaluations])

    def save(self, folder: str | Path) -> None:
        """Write `search.json` (settings and the best) and `candidates.jsonl` (a line for each evaluation)."""
        lines = "".join(evaluation_line(evaluation) for evaluation in self.evaluations)
        write_text(Path(folder) / CANDIDATES_FILE, lines)
        self.save_summary(folder)

    def save_summary(self, folder: str | Path) -> None:
        """Write `search.json` alone."""
        summary: dict[str, Any] = {"settings": self.settings, "evaluations": len(self.evaluations)}
        if self.evaluations:
            summary["best"] = json.loads(evaluation_line(self.best_evaluation))
        write_json(Path(folder) / SEARCH_FILE, summary)

    @classmethod
    def load(cls, folder: str | Path) -> "SearchResult":
        """Read a search back from the folder it was saved in.

        Raises:
            OutputError: if the folder holds no search.
        """
        folder = Path(folder)
        if not (folder / SEARCH_FILE).is_file():
            raise OutputError(f"{folder} holds no search: {SEARCH_FILE} is missing")
        settings = read_json(folder / SEARCH_FILE)["settings"]
        return cls(settings=settings, evaluations=read_evaluations(folder / CANDIDATES_FILE)[0])


def evaluation_line(evaluation: Evaluation) -> str:
    """An evaluation as a line of JSON; infinite fitness is written as `null`."""
    row = {
        "digest": evaluation.subnet.digest,
        "fitness": evaluation.fitness if math.isfinite(evaluation.fitness) else None,
        "parameters": evaluation.parameters,
        "generation": evaluation.generation,
        "origin": evaluation.origin,
        "parents": list(evaluation.parents),
        "share": evaluation.share,
        "tokens": evaluation.tokens,
        "flops": evaluation.flops,
        "subnet": evaluation.subnet.to_json(),
    }
    return json.dumps(row) + "\n"


def read_evaluations(path: str | Path) -> tuple[list[Evaluation], int]:
    """Evaluations in a file of lines, and how many of its bytes they take.

    A last line that was cut off while it was written is passed over.
    """
    evaluations: list[Evaluation] = []
    size = 0
    if not Path(path).is_file():
        return evaluations, size
    for line in Path(path).read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        row = json.loads(line)
        evaluations.append(
            Evaluation(
                subnet=SubnetConfig.from_json(row["subnet"]),
                fitness=math.inf if row["fitness"] is None else row["fitness"],
                parameters=row["parameters"],
                generation=row["generation"],
                origin=row["origin"],
                parents=tuple(row["parents"]),
                share=row["share"],
                tokens=row["tokens"],
                flops=row["flops"],
            )
        )
        size += len(line)
    return evaluations, size
