"""Evolution with a surrogate: a regression on what is known predicts mutants, and the best predicted are evaluated.

After "Transferrable surrogates" (arXiv 2504.12971) with features in the manner of GRAF (arXiv 2403.13613).
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ...cost.bins import Bin
from ...files.paths import expanded
from ...space.search_space import SearchSpace
from ...subnet import Shape, SubnetConfig
from ..algorithm import Breeder, Candidate, Evaluation, SearchAlgorithm, SearchConfig
from ..result import CANDIDATES_FILE, SearchResult
from .features import features


@dataclass
class SurrogateSearchConfig(SearchConfig):
    """How search with a surrogate runs.

    `role="filter"`: of `pool` new subnets bred from the elites the `num_offspring` that are predicted best are
    evaluated. `role="objective"`: evolution goes on for `inner_generations` on predictions alone before they are.

    Args:
        archives (`list[str]`): folders of earlier searches, of any bin and super-network, whose evaluations the
            surrogate learns from as well; targets of each are scaled to 0 to 1.
    """

    name: ClassVar[str] = "surrogate"

    evaluations: int = field(default=250, metadata={"help": "Candidates to evaluate."})
    population_size: int = field(default=50, metadata={"help": "Candidates drawn at first."})
    pool: int = field(default=200, metadata={"help": "New subnets predicted at a time."})
    num_offspring: int = field(default=10, metadata={"help": "Predicted best that are evaluated."})
    num_elites: int = field(default=10, metadata={"help": "Best candidates so far that become parents."})
    mutation_rate: float = field(default=0.5, metadata={"help": "Share of offspring made by mutation, not crossover."})
    model: Literal["random-forest", "gradient-boosting"] = field(
        default="gradient-boosting", metadata={"help": "The regression, of scikit-learn."}
    )
    role: Literal["filter", "objective"] = field(default="filter", metadata={"help": "What predictions are used for."})
    inner_generations: int = field(default=10, metadata={"help": "Generations on predictions, as an objective."})
    archives: list[str] = field(default_factory=list, metadata={"help": "Folders of earlier searches to learn from."})

    def __post_init__(self) -> None:
        self.require_at_least(
            evaluations=1, population_size=1, pool=1, num_offspring=1, num_elites=1, inner_generations=1
        )
        if self.pool < self.num_offspring:
            raise ValueError(f"pool must be at least num_offspring, {self.num_offspring}, got {self.pool}")
        for name, known in (("model", tuple(_MODELS)), ("role", ("filter", "objective"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        self.require_shares("mutation_rate")
        self.archives = [expanded(folder) for folder in self.archives]

    @property
    def settings(self) -> dict[str, Any]:
        """With a hash of what is in the archives."""
        files = [(Path(folder) / CANDIDATES_FILE) for folder in self.archives]
        known = [hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None for file in files]
        return {**super().settings, **({"contents_of_archives": known} if known else {})}

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return SurrogateSearch(space, bin, self)


class Surrogate:
    """A regression from features of subnets to their fitness, scaled to 0 to 1 within each task.

    Args:
        space (`SearchSpace`): where the subnets come from.
        bin (`Bin`): the bin, whose cost is a feature.
        model (`str`): `"random-forest"` or `"gradient-boosting"`.
        seed (`int`): of the regression.
        archives (`Sequence[SearchResult]`): earlier searches, of any bin and super-network, to learn from as well.
    """

    def __init__(
        self,
        space: SearchSpace,
        bin: Bin,
        model: str = "gradient-boosting",
        seed: int = 0,
        archives: Sequence[SearchResult] = (),
    ):
        self._full = Shape.from_config(space.config)
        self._cost = bin.cost(space.config)
        _ensemble()  # says before the search if it is missing
        self._model, self._seed = model, seed
        self._transferred = [self._task(archive) for archive in archives if archive.answers]
        self._regression: Any = None

    def describe(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Features of subnets, `(subnets, features)`."""
        return np.stack([features(subnet, self._full, self._cost) for subnet in subnets])

    def fit(self, described: np.ndarray | None = None, fitness: Sequence[float] = ()) -> bool:
        """Fit on features `(n, features)` and the fitness of each, and on the archives.

        Returns:
            `bool`: whether there was anything to fit on.
        """
        own = [] if described is None or not len(described) else [(described, scaled(np.array(fitness)))]
        tasks = own + self._transferred
        if tasks:
            self._regression = _MODELS[self._model](self._seed)
            self._regression.fit(np.concatenate([x for x, _ in tasks]), np.concatenate([y for _, y in tasks]))
        return bool(tasks)

    def predict(self, described: np.ndarray) -> np.ndarray:
        """Predicted fitness, on a scale of its own: the lower, the better."""
        return self._regression.predict(described)

    def _task(self, archive: SearchResult) -> tuple[np.ndarray, np.ndarray]:
        """Features and scaled fitness of an earlier search, each share of the super-network it was made on."""
        sizes, answers = archive.settings["space"]["supernet"], archive.answers
        layers, heads, neurons = (sizes[n] for n in ("num_hidden_layers", "num_attention_heads", "intermediate_size"))
        full = Shape(sizes["hidden_size"], (heads,) * layers, (neurons,) * layers)
        depth = self._full.num_hidden_layers
        described = np.stack([features(answer.subnet, full, self._cost, depth) for answer in answers])
        return described, scaled(np.array([answer.fitness for answer in answers]))


def _random_forest(seed: int) -> Any:
    return _ensemble().RandomForestRegressor(n_estimators=200, random_state=seed, n_jobs=1)


def _gradient_boosting(seed: int) -> Any:
    return _ensemble().HistGradientBoostingRegressor(random_state=seed, min_samples_leaf=5, early_stopping=False)


def _ensemble() -> Any:
    try:
        from sklearn import ensemble
    except ImportError as error:
        raise ImportError("a surrogate needs scikit-learn: pip install 'hf_whittle[search]'") from error
    return ensemble


_MODELS: dict[str, Callable[[int], Any]] = {"random-forest": _random_forest, "gradient-boosting": _gradient_boosting}


def scaled(fitness: np.ndarray) -> np.ndarray:
    """Logarithms scaled to 0 to 1; what is infinite counts as the worst that is not."""
    finite = np.isfinite(fitness)
    if not finite.any():
        return np.ones(len(fitness))
    low = fitness[finite].min()
    values = np.log1p(np.where(finite, fitness, fitness[finite].max()) - low)  # fitness may be negative
    return values / (values.max() or 1.0)


class SurrogateSearch(SearchAlgorithm):
    """Evolution that evaluates only what a surrogate predicts to be good."""

    def __init__(self, space: SearchSpace, bin: Bin, config: SurrogateSearchConfig):
        self.config = config
        self._breeder = Breeder(space, bin, config.seed)
        archives = [SearchResult.load(folder) for folder in config.archives]
        self._surrogate = Surrogate(space, bin, config.model, config.seed, archives)
        self._known: list[Evaluation] = []
        self._described: list[np.ndarray] = []
        self._asked = 0

    @property
    def max_evaluations(self) -> int:
        return self.config.evaluations

    def ask(self) -> list[Candidate]:
        left = self.config.evaluations - self._asked
        if left <= 0:
            return []
        if not self._asked:
            batch = self._first(min(self.config.population_size, left))
        else:
            batch = self._predicted_best(min(self.config.num_offspring, left))
        self._asked += len(batch)
        return batch

    def tell(self, evaluations: list[Evaluation]) -> None:
        self.inform(evaluations)

    def inform(self, evaluations: list[Evaluation]) -> None:
        full = [evaluation for evaluation in evaluations if evaluation.share == 1]
        if full:
            self._known += full
            self._described += list(self._surrogate.describe([evaluation.subnet for evaluation in full]))

    def _first(self, size: int) -> list[Candidate]:
        """Draws; where archives tell of other searches, those of many draws that they predict to be best."""
        if not self._surrogate.fit():
            return self._breeder.batch(size, self._breeder.sample)
        drawn = [self._breeder.sample() for _ in range(max(size, self.config.pool))]
        predicted = self._surrogate.predict(self._surrogate.describe([candidate.subnet for candidate in drawn]))
        return self._breeder.first_new([drawn[i] for i in predicted.argsort(kind="stable")], size)

    def _predicted_best(self, size: int) -> list[Candidate]:
        self._surrogate.fit(np.stack(self._described), [evaluation.fitness for evaluation in self._known])
        parents = sorted(self._known, key=lambda e: e.fitness)[: self.config.num_elites]
        rounds = self.config.inner_generations if self.config.role == "objective" else 1
        pool: dict[str, tuple[float, Candidate]] = {}
        for _ in range(rounds):
            bred = [self._breeder.breed(parents, self.config.mutation_rate) for _ in range(self.config.pool)]
            bred = [candidate for candidate in bred if candidate.subnet.digest not in pool]
            if bred:
                predicted = self._surrogate.predict(self._surrogate.describe([c.subnet for c in bred]))
                pool |= {c.subnet.digest: (value, c) for value, c in zip(predicted.tolist(), bred, strict=True)}
            ranked = sorted(pool.values(), key=lambda pair: pair[0])
            parents = [_as_parent(candidate) for _, candidate in ranked[: self.config.num_elites]]
        best = [candidate for _, candidate in ranked]
        return self._breeder.first_new(best, size)


def _as_parent(candidate: Candidate) -> Evaluation:
    return Evaluation(candidate.subnet, math.inf, 0, 0, (), 0, candidate.origin, candidate.parents)
