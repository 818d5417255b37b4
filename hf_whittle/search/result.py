"""Result of a search: every evaluation, the best subnet, and the files that hold them."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import OutputError, WhittleError
from ..files.paths import expanded
from ..files.sources import fetch_folder
from ..files.text import read_json, write_json, write_text
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
        settings (`dict`): everything that defines the search: space, bins, algorithm, fitness, data and model.
        evaluations (`list[Evaluation]`): every candidate evaluated.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def best_evaluation(self) -> Evaluation:
        """The answer of lowest fitness, the first one where several are equal."""
        if not self.answers:
            raise WhittleError(
                "the search has evaluated no subnet of its bin on all tokens yet, so there is no best one"
            )
        return min(self.answers, key=lambda evaluation: evaluation.fitness)

    @property
    def best(self) -> SubnetConfig:
        """The subnet of lowest fitness."""
        return self.best_evaluation.subnet

    @property
    def answers(self) -> list[Evaluation]:
        """Evaluations on all of the fitness' tokens, in a bin; these compare with each other."""
        return [evaluation for evaluation in self.evaluations if evaluation.is_answer]

    def top(self, number: int) -> list[SubnetConfig]:
        """The subnets of lowest fitness, the best first."""
        return [answer.subnet for answer in sorted(self.answers, key=lambda evaluation: evaluation.fitness)[:number]]

    def in_bin(self, index: int) -> "SearchResult":
        """Evaluations in one of the bins of the search, counted from 0."""
        bins = self.settings["bins"]
        if not 0 <= index < len(bins):
            raise WhittleError(f"the search has {len(bins)} bins, counted from 0; there is no bin {index}")
        inside = [replace(evaluation, bins=(0,)) for evaluation in self.evaluations if index in evaluation.bins]
        return SearchResult({**self.settings, "bins": [bins[index]]}, inside)

    def pareto_front(self, cost: Literal["parameters", "cost"] = "parameters") -> list[Evaluation]:
        """Answers that no other one beats in fitness and cost together, in the order of their cost.

        Args:
            cost (`str`, *optional*, defaults to `"parameters"`): `"parameters"`, or `"cost"` for the cost that the
                bins bound.
        """
        front: list[Evaluation] = []
        for evaluation in sorted(self.answers, key=lambda e: (getattr(e, cost), e.fitness)):
            if not front or evaluation.fitness < front[-1].fitness:
                front.append(evaluation)
        return front

    def best_so_far(self) -> list[float]:
        """Lowest fitness of an answer up to each evaluation; infinite before the first answer."""
        lowest, curve = math.inf, []
        for evaluation in self.evaluations:
            if evaluation.is_answer:
                lowest = min(lowest, evaluation.fitness)
            curve.append(lowest)
        return curve

    @property
    def tokens(self) -> int:
        """Tokens read by all evaluations and to prepare the fitness."""
        return self._preparation("tokens") + sum(evaluation.tokens for evaluation in self.evaluations)

    @property
    def flops(self) -> int:
        """FLOPs of all evaluations and of preparing the fitness."""
        return self._preparation("flops") + sum(evaluation.flops for evaluation in self.evaluations)

    def _preparation(self, name: str) -> int:
        return self.settings.get("preparation", {}).get(name, 0)

    @property
    def candidates(self) -> "Dataset":
        """Every evaluation as a row of a `datasets.Dataset`, which `to_pandas` turns into a data frame."""
        from datasets import Dataset

        return Dataset.from_list([json.loads(evaluation_line(evaluation)) for evaluation in self.evaluations])

    def plot(self, folder: str | Path) -> list[Path]:
        """Draw the search, its Pareto front and the best subnet as PNG files.

        Returns:
            `list[Path]`: `search.png`, `pareto.png` and `architecture.png` in the folder.
        """
        from ..plots import plot_architecture
        from .plots import plot_pareto, plot_search

        files = [Path(expanded(folder)) / f"{name}.png" for name in ("search", "pareto", "architecture")]
        plot_search(self, files[0])
        plot_pareto(self, files[1])
        plot_architecture(self.best, self.settings["space"]["supernet"], files[2])
        return files

    def save(self, folder: str | Path) -> None:
        """Write `search.json` (settings and the best) and `candidates.jsonl` (a line for each evaluation)."""
        lines = "".join(evaluation_line(evaluation) for evaluation in self.evaluations)
        write_text(Path(folder) / CANDIDATES_FILE, lines)
        self.save_summary(folder)

    def save_summary(self, folder: str | Path) -> None:
        """Write `search.json` alone."""
        summary: dict[str, Any] = {"settings": self.settings, "evaluations": len(self.evaluations)}
        if self.answers:
            summary["best"] = json.loads(evaluation_line(self.best_evaluation))
        write_json(Path(folder) / SEARCH_FILE, summary)

    @classmethod
    def load(cls, folder: str | Path) -> "SearchResult":
        """Read a search from the folder it was saved in.

        Raises:
            OutputError: if the folder holds no search.
        """
        folder = Path(expanded(folder))
        if not (folder / SEARCH_FILE).is_file():
            raise OutputError(f"{folder} holds no search: {SEARCH_FILE} is missing")
        settings = read_json(folder / SEARCH_FILE)["settings"]
        return cls(settings=settings, evaluations=read_evaluations(folder / CANDIDATES_FILE)[0])

    @classmethod
    def from_pretrained(cls, source: str | Path, **hub: Any) -> "SearchResult":
        """Read the search that a student was published with, or an archive that `push_search_archive` published.

        Args:
            source (`str` or `Path`): a folder, or a name on the Hub.
            hub: `revision`, `token`, `cache_dir` and `local_files_only` as in `PreTrainedModel.from_pretrained`;
                `repo_type="dataset"` for an archive.

        Raises:
            CheckpointError: if the source has no search.
        """
        return cls.load(fetch_folder(source, [SEARCH_FILE, CANDIDATES_FILE], **hub))


def evaluation_line(evaluation: Evaluation) -> str:
    """An evaluation as a line of JSON; infinite fitness is written as `null`."""
    row = {
        "digest": evaluation.subnet.digest,
        **vars(evaluation),
        "fitness": evaluation.fitness if math.isfinite(evaluation.fitness) else None,
        "subnet": evaluation.subnet.to_json(),
    }
    return json.dumps(row) + "\n"


def read_evaluations(path: str | Path) -> tuple[list[Evaluation], int]:
    """Read evaluations from a file of lines, up to a last line that was only half written.

    Returns:
        `tuple[list[Evaluation], int]`: the evaluations, and the bytes of the file that they take.

    Raises:
        OutputError: if the file was not written by a search of this version.
    """
    evaluations: list[Evaluation] = []
    size = 0
    if not Path(path).is_file():
        return evaluations, size
    for number, line in enumerate(Path(path).read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            evaluations.append(_evaluation(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"line {number} of {path} is not an evaluation of this version of hf_whittle ({error!r}); "
                "remove the folder, or choose another one"
            ) from error
        size += len(line)
    return evaluations, size


def _evaluation(row: dict[str, Any]) -> Evaluation:
    values = {name: value for name, value in row.items() if name != "digest"}
    values["subnet"] = SubnetConfig.from_json(row["subnet"])
    values["fitness"] = math.inf if row["fitness"] is None else row["fitness"]
    return Evaluation(**{**values, "bins": tuple(row["bins"]), "parents": tuple(row["parents"])})
