"""Drive a search: ask algorithms for candidates, evaluate these, tell their fitness."""

import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..architectures.dimensions import VOCABULARY
from ..cost.bins import Bin
from ..cost.counts import num_parameters
from ..cost.polynomial import parameter_polynomial
from ..errors import BinError, DataError, SubnetError
from ..fitness.code_fingerprint import fitness_settings
from ..progress import progress_bar
from ..space.search_space import SearchSpace
from .algorithm import Candidate, Evaluation, SearchAlgorithm, SearchConfig
from .algorithms.additive import AdditiveSearchConfig
from .archive import Archive
from .result import SearchResult
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
    batch_size: int | None = None,
    output_dir: str | Path | None = None,
    progress: bool = True,
) -> SearchResult:
    """Search one or several bins for the subnets of lowest fitness.

    With an `output_dir`, every evaluation is written as soon as it is made, and the same call resumes an interrupted
    search to the identical result. Under `accelerate launch`, the candidates of a batch are spread over the
    processes, and the result is that of one process.

    Args:
        supernet (`SuperNetModel`): the super-network; may be `None` if `fitness` is given.
        space (`SearchSpace`): space to search.
        bin (`Bin` or `Sequence[Bin]`): bin that the subnets must lie in. Several bins are searched in turn; a subnet
            is evaluated once, and each search learns from the others' subnets that lie in its bin.
            `SearchResult.in_bin` gives the evaluations in each.
        eval_dataset (`datasets.Dataset` or `torch.Tensor`): held-out blocks of tokens, `(blocks, block_size)`. Not
            needed if `fitness` is given.
        config (`SearchConfig`, *optional*): the algorithm and its settings; `AdditiveSearchConfig()` by default,
            which found subnets as good as those of the paper's `EvolutionConfig()` for fewer tokens.
        fitness (`Callable`, *optional*): function to minimize: a `Fitness`, or any function of a `SubnetConfig`;
            perplexity on `eval_dataset` by default. A value that is not finite counts as the worst. A function
            without a second argument, the share of the tokens, is always evaluated on all of them. With an
            `output_dir`, a resumed search must have the same fitness: it is compared by a hash of its code and of the
            objects it holds, or by the dict `settings` where it has this attribute.
        batch_size (`int`, *optional*): blocks evaluated at a time by perplexity; by default 4,096 tokens on a CPU,
            16,384 on another device.
        output_dir (`str` or `Path`, *optional*): folder of `search.json` and `candidates.jsonl`.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Returns:
        `SearchResult`: every evaluation, and the best.

    Raises:
        BinError: if no subnet of the space lies in a bin, or if the bins bound different costs.
        DataError: if there is no text to evaluate on.
        SubnetError: if the model is no super-network, the search space belongs to another one, or its subnets leave out
            tokens and are evaluated on fixed token ids.
        OtherSearchError: if `output_dir` holds another search.
        OutputError: if it cannot be written, or another process is writing it.
        WhittleError: if launched processes search differently.
    """
    config = config or AdditiveSearchConfig()
    _check_space(space, getattr(fitness, "supernet", None) if supernet is None else supernet)
    bins = [bin] if isinstance(bin, Bin) else list(bin)
    check_bins(space, bins)  # before anything is evaluated or written
    if fitness is None:
        from ..fitness.perplexity import Perplexity

        if supernet is None or eval_dataset is None:
            raise DataError("give a supernet and an eval_dataset, or a fitness of your own")
        if not hasattr(supernet, "active_subnet"):
            raise SubnetError(
                f"a {type(supernet).__name__} has no subnets to search; load the checkpoint with "
                "AutoSuperNetForCausalLM.from_pretrained"
            )
        fitness = Perplexity(supernet, eval_dataset, batch_size=batch_size)
    check_fitness(space, fitness)
    settings = _settings(space, bins, config, fitness)
    workers = Workers(fitness)
    workers.check_same(settings)
    algorithms = [config.algorithm(space, each) for each in bins]
    total = sum(algorithm.max_evaluations for algorithm in algorithms)
    archive = Archive(output_dir, SearchResult(settings))
    with (
        archive.open(),
        progress_bar(total=total, desc="search", unit="subnet", disable=not progress or not workers.is_main) as bar,
    ):
        _finish(algorithms, _Evaluator(space, bins, fitness, workers, archive, bar), archive)
    return archive.result


def _check_space(space: SearchSpace, supernet: Any) -> None:
    if not hasattr(supernet, "config"):  # None, or an object of a user's fitness that is no model
        return
    from ..models.weights import full_config  # imports torch

    if parameter_polynomial(full_config(supernet)) != parameter_polynomial(space.config):
        raise SubnetError(
            "the search space belongs to another super-network: their subnets differ in size; make it with "
            "SearchSpace.from_config(supernet.config)"
        )


def check_bins(space: SearchSpace, bins: Sequence[Bin]) -> None:
    """Raise `BinError` if bins bound different costs, or no subnet of the space lies in one of them."""
    if len({each.cost(space.config) for each in bins}) != 1:
        raise BinError(
            f"give one bin, or several of the same cost, got {[each.to_dict() for each in bins]}; search each by itself"
        )
    for each in bins:
        space.reachable_pairs(each)


def check_fitness(space: SearchSpace, fitness: Any) -> None:
    """Raise `SubnetError` if subnets have different vocabularies and are evaluated on the same token ids."""
    if VOCABULARY in space.named and getattr(fitness, "reads_token_ids", False):
        sizes = " or ".join(map(str, space.sizes(VOCABULARY)))
        raise SubnetError(
            f"subnets of this space have vocabularies of {sizes} tokens, and {fitness.name} on fixed token ids does "
            "not compare them; search for BitsPerByte on documents, or in a student that has the vocabulary"
        )


def _settings(
    space: SearchSpace, bins: Sequence[Bin], config: SearchConfig, fitness: Callable[..., float]
) -> dict[str, Any]:
    """Everything that defines a search, as it is read back from JSON."""
    settings = {
        "space": space.to_dict(),
        "bins": [each.to_dict() for each in bins],
        "algorithm": config.settings,
        "fitness": fitness_settings(fitness),
        "preparation": getattr(fitness, "preparation", {"tokens": 0, "flops": 0}),
    }
    return json.loads(json.dumps(settings))


def _finish(algorithms: Sequence[SearchAlgorithm], evaluator: "_Evaluator", archive: Archive) -> None:
    """Ask the searches of all bins in turn, a batch of each, until none asks any more."""
    generation, going = 0, list(algorithms)
    while going:
        for algorithm in list(going):
            candidates = algorithm.ask()
            if not candidates:
                going.remove(algorithm)
                continue
            made = evaluator.evaluate(candidates, generation)
            algorithm.tell(made)
            for index, other in enumerate(algorithms):
                if other is not algorithm:
                    other.inform([evaluation for evaluation in made if index in evaluation.bins])
            archive.save_summary()
        generation += 1


class _Evaluator:
    """Evaluates each candidate once, or recalls it from an interrupted search."""

    def __init__(
        self,
        space: SearchSpace,
        bins: Sequence[Bin],
        fitness: Callable[..., float],
        workers: Workers,
        archive: Archive,
        bar: Any,
    ):
        self._space, self._bins, self._fitness = space, bins, fitness
        self._workers, self._archive, self._bar = workers, archive, bar
        self._cost = bins[0].cost(space.config)
        self._takes_share = _takes_share(fitness)
        self._made: dict[tuple[str, float], Evaluation] = {}
        self._best = math.inf

    def evaluate(self, candidates: list[Candidate], generation: int) -> list[Evaluation]:
        if not self._takes_share:
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
            if hasattr(self._fitness, "tokens_of"):
                tokens = self._fitness.tokens_of(candidate.subnet, candidate.share)
            else:
                tokens = self._fitness.tokens(candidate.share)
            flops = self._fitness.flops(candidate.subnet, candidate.share)
        cost = self._cost(candidate.subnet)
        in_space = candidate.in_space or self._space.contains(candidate.subnet)
        return Evaluation(
            subnet=candidate.subnet,
            fitness=value,
            parameters=num_parameters(self._space.config, candidate.subnet),
            cost=cost,
            bins=tuple(i for i, bin in enumerate(self._bins) if in_space and bin.low <= cost <= bin.high),
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
