"""Drive a search: evaluate candidates, keep them on disk, resume where it was interrupted."""

import inspect
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ..cost.bins import Bin
from ..cost.counts import num_parameters
from ..cost.polynomial import parameter_polynomial
from ..errors import BinError, DataError, OtherSearchError, SubnetError
from ..files.atomic import remove_leftovers
from ..files.disk import disk_errors
from ..files.locks import folder_lock
from ..files.paths import expanded
from ..files.text import read_json
from ..fitness.code_fingerprint import fitness_settings
from ..processes import from_first
from ..space.search_space import SearchSpace
from .algorithm import Candidate, Evaluation, SearchAlgorithm, SearchConfig
from .algorithms.additive import AdditiveSearchConfig
from .result import CANDIDATES_FILE, SEARCH_FILE, SearchResult, evaluation_line, read_evaluations
from .workers import Workers

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from ..models.supernet import SuperNetModel


def search_subnets(
    supernet: "SuperNetModel | None",
    space: SearchSpace,
    *,
    bin: Bin | Sequence[Bin],
    eval_dataset: "Dataset | torch.Tensor | None" = None,
    config: SearchConfig | None = None,
    fitness: Callable[..., float] | None = None,
    batch_size: int = 16,
    output_dir: str | Path | None = None,
    progress: bool = True,
) -> SearchResult:
    """Search one or several bins for the subnets of lowest fitness.

    With an `output_dir`, every evaluation is on disk as soon as it is made, and the same call resumes an interrupted
    search to the identical result. Under `accelerate launch`, the candidates of a batch are spread over the
    processes, and the result is that of one process.

    Args:
        supernet (`SuperNetModel`): the super-network; may be `None` if `fitness` is given.
        space (`SearchSpace`): where to search.
        bin (`Bin` or `Sequence[Bin]`): what the subnets must lie in. Several bins are searched in turn; a subnet is
            evaluated once, and a search learns from those of others that lie in its bin. `SearchResult.in_bin` tells
            what was found in each.
        eval_dataset (`datasets.Dataset` or `torch.Tensor`): held-out blocks of tokens, `(blocks, block_size)`. Not
            needed if `fitness` is given.
        config (`SearchConfig`, *optional*): the algorithm and its settings; `AdditiveSearchConfig()` by default,
            which found better subnets for fewer tokens than the paper's `EvolutionConfig()`.
        fitness (`Callable`, *optional*): what to minimise: a `Fitness`, or any function of a `SubnetConfig`;
            perplexity on `eval_dataset` by default. A value that is not finite counts as worst. A function without a
            second argument, the share of the tokens, is always evaluated whole. With an `output_dir`, it is told by
            its code and by what it holds, or by its attribute `settings` instead of the latter.
        batch_size (`int`, *optional*, defaults to 16): blocks evaluated at a time.
        output_dir (`str` or `Path`, *optional*): folder of `search.json` and `candidates.jsonl`.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Returns:
        `SearchResult`: every evaluation, and the best.

    Raises:
        BinError: if no subnet of the space lies in a bin, or if the bins bound different costs.
        DataError: if there is no text to evaluate on.
        SubnetError: if the search space is that of another super-network.
        OtherSearchError: if `output_dir` holds another search.
        OutputError: if it cannot be written, or another process is writing it.
    """
    config = config or AdditiveSearchConfig()
    model = getattr(fitness, "supernet", None) if supernet is None else supernet
    source = getattr(model, "full_config", None)
    if source is not None and parameter_polynomial(source) != parameter_polynomial(space.config):
        raise SubnetError(
            "the search space is that of another super-network: their subnets differ in size; make it with "
            "SearchSpace.from_config(supernet.config)"
        )
    bins = [bin] if isinstance(bin, Bin) else list(bin)
    if len({each.cost(space.config) for each in bins}) != 1:
        raise BinError(
            f"give one bin, or several of the same cost, got {[each.to_dict() for each in bins]}; search each by itself"
        )
    if fitness is None:
        from ..fitness.perplexity import Perplexity

        if supernet is None or eval_dataset is None:
            raise DataError("give a supernet and an eval_dataset, or a fitness of your own")
        fitness = Perplexity(supernet, eval_dataset, batch_size=batch_size)
    settings = {
        "space": space.to_dict(),
        "bins": [each.to_dict() for each in bins],
        "algorithm": config.settings,
        "fitness": fitness_settings(fitness),
        "preparation": getattr(fitness, "preparation", {"tokens": 0, "flops": 0}),
    }
    settings = json.loads(json.dumps(settings))  # as they are read back
    workers = Workers(fitness)
    searches = [(each, config.algorithm(space, each)) for each in bins]
    total = sum(algorithm.max_evaluations for _, algorithm in searches)
    archive = _Archive(output_dir, SearchResult(settings), workers)
    with (
        archive.open(),
        tqdm(total=total, desc="search", unit="subnet", disable=not progress or not workers.is_main) as bar,
    ):
        _Run(searches, fitness, space, archive, workers, bar).finish()
    return archive.result


class _Run:
    """The searches of one or several bins, a batch of each in turn."""

    def __init__(
        self,
        searches: list[tuple[Bin, SearchAlgorithm]],
        fitness: Callable[..., float],
        space: SearchSpace,
        archive: "_Archive",
        workers: Workers,
        bar: Any,
    ):
        self._searches, self._fitness, self._space = searches, fitness, space
        self._archive, self._workers, self._bar = archive, workers, bar
        self._cost = searches[0][0].cost(space.config)
        self._takes_share = _takes_share(fitness)
        self._made: dict[tuple[str, float], Evaluation] = {}
        self._best = math.inf

    def finish(self) -> None:
        """Ask and tell until no search asks any more."""
        generation, going = 0, [algorithm for _, algorithm in self._searches]
        while going:
            for algorithm in list(going):
                candidates = algorithm.ask()
                if not candidates:
                    going.remove(algorithm)
                    continue
                made = self._evaluate(candidates, generation)
                algorithm.tell(made)
                self._share(made, algorithm)
                self._archive.save_summary()
            generation += 1

    def _share(self, evaluations: list[Evaluation], source: SearchAlgorithm) -> None:
        for index, (_, algorithm) in enumerate(self._searches):
            if algorithm is not source:
                algorithm.inform([evaluation for evaluation in evaluations if index in evaluation.bins])

    def _evaluate(self, candidates: list[Candidate], generation: int) -> list[Evaluation]:
        if not self._takes_share:  # then a share is all of it
            candidates = [replace(candidate, share=1.0) for candidate in candidates]
        new = [c for c in dict.fromkeys(candidates) if c.key not in self._made]
        recalled = self._archive.recall(new)
        for evaluation in recalled:
            self._take(evaluation, generation)
        for candidate, value in self._workers.evaluate(new[len(recalled) :]):
            evaluation = self._evaluation(candidate, value, generation)
            self._archive.add(evaluation)
            self._take(evaluation, generation)
        return [self._made[candidate.key] for candidate in candidates]

    def _take(self, evaluation: Evaluation, generation: int) -> None:
        self._made[evaluation.key] = evaluation
        if evaluation.is_answer:
            self._best = min(self._best, evaluation.fitness)
        self._bar.set_postfix(best=f"{self._best:.4g}", generation=generation, refresh=False)
        self._bar.update()

    def _evaluation(self, candidate: Candidate, value: float, generation: int) -> Evaluation:
        tokens, flops = 0, 0
        if hasattr(self._fitness, "flops") and hasattr(self._fitness, "tokens"):
            tokens = self._fitness.tokens(candidate.share)
            flops = self._fitness.flops(candidate.subnet, candidate.share)
        cost = self._cost(candidate.subnet)
        in_space = candidate.in_space or self._space.contains(candidate.subnet)
        return Evaluation(
            subnet=candidate.subnet,
            fitness=value,
            parameters=num_parameters(self._space.config, candidate.subnet),
            cost=cost,
            bins=tuple(i for i, (bin, _) in enumerate(self._searches) if in_space and bin.low <= cost <= bin.high),
            generation=generation,
            origin=candidate.origin,
            parents=candidate.parents,
            share=candidate.share,
            tokens=tokens,
            flops=flops,
        )


def _takes_share(fitness: Callable[..., float]) -> bool:
    """Whether a fitness can be called with a share of the tokens as its second argument."""
    try:
        inspect.signature(fitness).bind(None, 1.0)
    except TypeError:
        return False
    return True


class _Archive:
    """The evaluations of a search, in memory and, with a folder, on disk line by line."""

    def __init__(self, folder: str | Path | None, result: SearchResult, workers: Workers):
        self.result = result
        self._folder = None if folder is None else Path(expanded(folder))
        self._known: list[Evaluation] = []
        self._stream: Any = None
        self._lock = ExitStack()
        self._writes = self._folder is not None and workers.is_main
        error = None
        if self._writes:
            try:
                assert self._folder is not None
                self._lock.enter_context(folder_lock(self._folder))
                self._read()
            except Exception as caught:  # every process is to know
                error = caught
        self._known, error = from_first((self._known, error))
        if error is not None:
            self._lock.close()
            raise error

    def _read(self) -> None:
        """Take up what an interrupted search left."""
        assert self._folder is not None
        remove_leftovers(self._folder)
        evaluations, size = read_evaluations(self._folder / CANDIDATES_FILE)
        is_told = self.result.settings["fitness"].get("code", "") is not None
        name = self.result.settings["fitness"].get("name")
        if not evaluations:
            if not is_told:
                warnings.warn(
                    f"the fitness {name!r} holds what cannot be read, so that this search could not go on if it was "
                    "interrupted; give it an attribute 'settings', a dict of what defines it",
                    stacklevel=2,
                )
            self.result.save(self._folder)
            return
        before = read_json(self._folder / SEARCH_FILE)["settings"]
        if not is_told:
            raise OtherSearchError(
                f"{self._folder} holds a search, and nothing tells whether its fitness {name!r} was the same, as it "
                "holds what cannot be read; give it an attribute 'settings', a dict of what defines it, or choose "
                "another folder"
            )
        if before != self.result.settings:
            changed = [name for name, value in self.result.settings.items() if before.get(name) != value]
            raise OtherSearchError(
                f"{self._folder} holds a search with another {' and '.join(changed)}; "
                "choose another folder, or remove this one"
            )
        self._known = evaluations
        with disk_errors(self._folder), (self._folder / CANDIDATES_FILE).open("r+b") as stream:
            stream.truncate(size)

    @contextmanager
    def open(self) -> Iterator[None]:
        if not self._writes:
            yield
            return
        assert self._folder is not None
        with self._lock:
            with disk_errors(self._folder):
                self._stream = (self._folder / CANDIDATES_FILE).open("a", encoding="utf-8")
            try:
                yield
            finally:
                with disk_errors(self._folder):
                    self._stream.close()

    def recall(self, candidates: list[Candidate]) -> list[Evaluation]:
        """The evaluations that an interrupted search made of the first of these candidates."""
        position = len(self.result.evaluations)
        recalled = self._known[position : position + len(candidates)]
        for i, (evaluation, candidate) in enumerate(zip(recalled, candidates, strict=False), position):
            if evaluation.key != candidate.key:
                raise OtherSearchError(
                    f"{self._folder} was made by another version of the search: evaluation {i} is of subnet "
                    f"{evaluation.subnet.digest}, this search asks for {candidate.subnet.digest}; choose another folder"
                )
        self.result.evaluations.extend(recalled)
        return recalled

    def add(self, evaluation: Evaluation) -> None:
        self.result.evaluations.append(evaluation)
        if self._writes:
            with disk_errors(self._folder or ""):
                self._stream.write(evaluation_line(evaluation))
                self._stream.flush()

    def save_summary(self) -> None:
        if self._writes:
            assert self._folder is not None
            with disk_errors(self._folder):
                os.fsync(self._stream.fileno())  # the summary tells how many evaluations there are
            self.result.save_summary(self._folder)
