"""Drive a search: evaluate candidates, keep them on disk, resume where it was interrupted."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ..cost import Bin, num_parameters
from ..errors import DataError, OutputError
from ..files import disk_errors, read_json
from ..search_space import SearchSpace
from ..subnet import SubnetConfig
from .algorithm import Candidate, Evaluation, SearchAlgorithm
from .evolution import EvolutionConfig
from .result import CANDIDATES_FILE, SEARCH_FILE, SearchResult, evaluation_line, read_evaluations

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from ..models.supernet import SuperNetModel

Fitness = Callable[[SubnetConfig], float]


def search_subnets(
    supernet: "SuperNetModel | None",
    space: SearchSpace,
    *,
    bin: Bin,
    eval_dataset: "Dataset | torch.Tensor | None" = None,
    config: EvolutionConfig | None = None,
    fitness: Fitness | None = None,
    batch_size: int = 16,
    output_dir: str | Path | None = None,
    progress: bool = True,
) -> SearchResult:
    """Search a bin for the subnet of lowest fitness, with the paper's evolutionary algorithm.

    With an `output_dir`, every evaluation is on disk as soon as it is made, and the same call resumes an interrupted
    search to the identical result.

    Args:
        supernet (`SuperNetModel`): the super-network; may be `None` if `fitness` is given.
        space (`SearchSpace`): where to search.
        bin (`Bin`): what the subnets must lie in.
        eval_dataset (`datasets.Dataset` or `torch.Tensor`): held-out blocks of tokens, `(blocks, block_size)`; every
            candidate is evaluated on all of them. Not needed if `fitness` is given.
        config (`EvolutionConfig`, *optional*): the algorithm and its settings; the paper's by default.
        fitness (`Callable[[SubnetConfig], float]`, *optional*): what to minimise; perplexity on `eval_dataset` by
            default.
        batch_size (`int`, *optional*, defaults to 16): blocks evaluated at a time.
        output_dir (`str` or `Path`, *optional*): folder of `search.json` and `candidates.jsonl`.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Returns:
        `SearchResult`: every evaluation, and the best.

    Raises:
        BinError: if no subnet of the space lies in the bin.
        DataError: if there is no text to evaluate on.
        OutputError: if `output_dir` holds another search, or cannot be written.
    """
    config = config or EvolutionConfig()
    if fitness is None:
        from ..fitness import Perplexity

        if supernet is None or eval_dataset is None:
            raise DataError("give a supernet and an eval_dataset, or a fitness of your own")
        fitness = Perplexity(supernet, eval_dataset, batch_size=batch_size)
    settings = {
        "space": space.to_dict(),
        "bin": bin.to_dict(),
        "algorithm": {"name": config.name, **vars(config)},
        "fitness": getattr(fitness, "settings", {"name": getattr(fitness, "__name__", type(fitness).__name__)}),
    }
    algorithm = config.algorithm(space, bin)
    archive = _Archive(output_dir, SearchResult(settings))
    with archive.open(), _progress_bar(algorithm, progress) as bar:
        _run(algorithm, fitness, space, archive, bar)
    return archive.result


def _run(algorithm: SearchAlgorithm, fitness: Fitness, space: SearchSpace, archive: "_Archive", bar: Any) -> None:
    best = math.inf
    generation = 0
    while candidates := algorithm.ask():
        evaluations = []
        for candidate in candidates:
            evaluation = archive.recall(candidate)
            if evaluation is None:
                evaluation = _evaluate(candidate, fitness, space, generation)
                archive.add(evaluation)
            evaluations.append(evaluation)
            best = min(best, evaluation.fitness)
            bar.set_postfix(best=f"{best:.4g}", generation=generation, refresh=False)
            bar.update()
        algorithm.tell(evaluations)
        archive.save_summary()
        generation += 1


def _evaluate(candidate: Candidate, fitness: Fitness, space: SearchSpace, generation: int) -> Evaluation:
    value = float(fitness(candidate.subnet))
    return Evaluation(
        subnet=candidate.subnet,
        fitness=value if math.isfinite(value) else math.inf,
        parameters=num_parameters(space.config, candidate.subnet),
        generation=generation,
        origin=candidate.origin,
        parents=candidate.parents,
    )


def _progress_bar(algorithm: SearchAlgorithm, progress: bool) -> Any:
    return tqdm(total=algorithm.max_evaluations, desc="search", unit="subnet", disable=not progress)


class _Archive:
    """The evaluations of a search, in memory and, with a folder, on disk line by line."""

    def __init__(self, folder: str | Path | None, result: SearchResult):
        self.result = result
        self._folder = None if folder is None else Path(folder)
        self._known: list[Evaluation] = []
        self._stream: Any = None
        if self._folder is not None:
            self._read()

    def _read(self) -> None:
        """Take up what an interrupted search left."""
        assert self._folder is not None
        evaluations, size = read_evaluations(self._folder / CANDIDATES_FILE)
        if not evaluations:
            self.result.save(self._folder)
            return
        before = read_json(self._folder / SEARCH_FILE)["settings"]
        if before != self.result.settings:
            changed = [name for name, value in self.result.settings.items() if before.get(name) != value]
            raise OutputError(
                f"{self._folder} holds a search with another {' and '.join(changed)}; "
                "choose another folder, or remove this one"
            )
        self._known = evaluations
        with disk_errors(self._folder), (self._folder / CANDIDATES_FILE).open("r+b") as stream:
            stream.truncate(size)

    @contextmanager
    def open(self) -> Iterator[None]:
        if self._folder is None:
            yield
            return
        with disk_errors(self._folder):
            self._stream = (self._folder / CANDIDATES_FILE).open("a", encoding="utf-8")
        try:
            yield
        finally:
            with disk_errors(self._folder):
                self._stream.close()

    def recall(self, candidate: Candidate) -> Evaluation | None:
        """The evaluation an interrupted search made of this candidate."""
        position = len(self.result.evaluations)
        if position >= len(self._known):
            return None
        evaluation = self._known[position]
        if evaluation.subnet != candidate.subnet:
            raise OutputError(
                f"{self._folder} was made by another version of the search: evaluation {position} is of subnet "
                f"{evaluation.subnet.digest}, this search asks for {candidate.subnet.digest}; choose another folder"
            )
        self.result.evaluations.append(evaluation)
        return evaluation

    def add(self, evaluation: Evaluation) -> None:
        self.result.evaluations.append(evaluation)
        if self._folder is not None:
            with disk_errors(self._folder):
                self._stream.write(evaluation_line(evaluation))
                self._stream.flush()

    def save_summary(self) -> None:
        if self._folder is not None:
            self.result.save_summary(self._folder)
