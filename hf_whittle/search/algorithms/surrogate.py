"""Evolution with a surrogate: a regression predicts the fitness of new subnets, and the best predicted are evaluated.

After "Transferrable surrogates" (arXiv 2504.12971) with features in the manner of GRAF (arXiv 2403.13613).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ...architectures.dimensions import LAYERS
from ...cost.bins import Bin
from ...errors import OtherSearchError
from ...files.paths import expanded
from ...space.search_space import SearchSpace
from ...subnet import DIMENSIONS, Shape, SubnetConfig
from ..algorithm import BudgetedConfig, BudgetedSearch, Candidate, Evaluation, SearchAlgorithm
from ..result import CANDIDATES_FILE, SearchResult
from .features import features


@dataclass
class SurrogateSearchConfig(BudgetedConfig):
    """Settings of search with a surrogate.

    Each generation breeds `pool` new subnets from the elites and evaluates the `num_offspring` predicted best.

    Args:
        archives (`list[str]`): folders of earlier searches, in any bin and super-network, whose evaluations the
            surrogate learns from as well; fitness is scaled to 0 to 1 within each.
    """

    name: ClassVar[str] = "surrogate"

    evaluations: int = field(default=250, metadata={"help": "Candidates to evaluate."})
    population_size: int = field(default=50, metadata={"help": "Candidates drawn at first."})
    pool: int = field(default=200, metadata={"help": "New subnets predicted at a time."})
    num_offspring: int = field(default=10, metadata={"help": "Predicted best that are evaluated."})
    num_elites: int = field(default=10, metadata={"help": "Best candidates so far that become parents."})
    mutation_rate: float = field(default=0.5, metadata={"help": "Share of offspring made by mutation, not crossover."})
    model: Literal["random-forest", "gradient-boosting"] = field(
        default="gradient-boosting", metadata={"help": "Regression of scikit-learn."}
    )
    archives: list[str] = field(default_factory=list, metadata={"help": "Folders of earlier searches to learn from."})

    def __post_init__(self) -> None:
        self.require_at_least(evaluations=1, population_size=1, pool=1, num_offspring=1, num_elites=1)
        if self.pool < self.num_offspring:
            raise ValueError(f"pool must be at least num_offspring, {self.num_offspring}, got {self.pool}")
        if self.model not in _MODELS:
            raise ValueError(f"model must be one of {', '.join(_MODELS)}, got {self.model!r}")
        self.require_shares("mutation_rate")
        self.archives = [expanded(folder) for folder in self.archives]

    @property
    def settings(self) -> dict[str, Any]:
        """All fields, with a hash of each archive's evaluations."""
        files = [(Path(folder) / CANDIDATES_FILE) for folder in self.archives]
        known = [hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None for file in files]
        return {**super().settings, **({"contents_of_archives": known} if known else {})}

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return SurrogateSearch(space, bin, self)


class Surrogate:
    """A regression from features of subnets to their fitness, scaled to 0 to 1 within each task.

    Args:
        space (`SearchSpace`): space of the subnets.
        bin (`Bin`): bin whose cost is a feature.
        model (`str`, *optional*, defaults to `"gradient-boosting"`): `"random-forest"` or `"gradient-boosting"`.
        seed (`int`, *optional*, defaults to 0): seed of the regression.
        archives (`Sequence[SearchResult]`, *optional*): earlier searches, in any bin and super-network, to learn from
            as well.

    Raises:
        ImportError: if scikit-learn is missing.
        OtherSearchError: if an archive's super-network has other dimensions.
    """

    def __init__(
        self,
        space: SearchSpace,
        bin: Bin,
        model: str = "gradient-boosting",
        seed: int = 0,
        archives: Sequence[SearchResult] = (),
    ):
        self._full = space.full
        self._optional = [d for d in space.named if d.is_optional]
        self._cost = bin.cost(space.config)
        _ensemble()  # raises before the search if it is missing
        self._model, self._seed = model, seed
        self._transferred = [self._task(archive) for archive in archives if archive.answers]
        self._regression: Any = None

    def describe(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Features of subnets, `(subnets, features)`."""
        return np.stack([features(each, self._full, self._cost, optional=self._optional) for each in subnets])

    def fit(self, described: np.ndarray | None = None, fitness: Sequence[float] = ()) -> bool:
        """Fit to features `(n, features)` with their fitness `(n,)`, and to the archives.

        Returns:
            `bool`: whether there was anything to fit to.
        """
        own = [] if described is None or not len(described) else [(described, scaled(np.array(fitness)))]
        tasks = own + self._transferred
        if tasks:
            self._regression = _MODELS[self._model](self._seed)
            self._regression.fit(np.concatenate([x for x, _ in tasks]), np.concatenate([y for _, y in tasks]))
        return bool(tasks)

    def predict(self, described: np.ndarray) -> np.ndarray:
        """Predicted fitness `(n,)` on a scale of its own; the lower, the better."""
        return self._regression.predict(described)

    def _task(self, archive: SearchResult) -> tuple[np.ndarray, np.ndarray]:
        """Features `(n, features)` and scaled fitness `(n,)` of an earlier search, as shares of its super-network."""
        answers, full = archive.answers, _sizes(archive).filled(self._full)
        if full.dimensions != self._full.dimensions:
            raise OtherSearchError(
                f"an archive's subnets keep {_in_words(full)}, those of this space {_in_words(self._full)}; give "
                "archives of searches in super-networks with the same dimensions"
            )
        how: dict[str, Any] = {"depth": self._full.num_hidden_layers, "optional": self._optional}
        described = np.stack([features(answer.subnet, full, self._cost, **how) for answer in answers])
        return described, scaled(np.array([answer.fitness for answer in answers]))


def _sizes(archive: SearchResult) -> Shape:
    """Sizes of the super-network of an earlier search, as far as its subnets name them."""
    sizes = dict(archive.settings["space"]["supernet"])
    layers = sizes.pop(LAYERS.name)
    known = {dimension.name: dimension for dimension in DIMENSIONS}
    return Shape(**{name: (size,) * layers if known[name].per_layer else size for name, size in sizes.items()})


def _in_words(shape: Shape) -> str:
    """The dimensions that subnets of a model of this shape must name."""
    return ", ".join(dimension.name for dimension in shape.dimensions if not dimension.is_optional)


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
    """Logarithms of fitness scaled to 0 to 1; an infinite one counts as the worst finite one."""
    finite = np.isfinite(fitness)
    if not finite.any():
        return np.ones(len(fitness))
    low = fitness[finite].min()
    values = np.log1p(np.where(finite, fitness, fitness[finite].max()) - low)  # fitness may be negative
    return values / (values.max() or 1.0)


class SurrogateSearch(BudgetedSearch):
    """Evolution that evaluates only the subnets that a surrogate predicts to be best."""

    config: SurrogateSearchConfig

    def __init__(self, space: SearchSpace, bin: Bin, config: SurrogateSearchConfig):
        super().__init__(space, bin, config)
        archives = [SearchResult.load(folder) for folder in config.archives]
        self._surrogate = Surrogate(space, bin, config.model, config.seed, archives)
        self._known: list[Evaluation] = []
        self._described: list[np.ndarray] = []

    def _next(self, most: int) -> list[Candidate]:
        if not self._asked:
            return self._first(min(self.config.population_size, most))
        return self._predicted_best(min(self.config.num_offspring, most))

    def tell(self, evaluations: list[Evaluation]) -> None:
        self.inform(evaluations)

    def inform(self, evaluations: list[Evaluation]) -> None:
        full = [evaluation for evaluation in evaluations if evaluation.share == 1]
        if full:
            self._known += full
            self._described += list(self._surrogate.describe([evaluation.subnet for evaluation in full]))

    def _first(self, size: int) -> list[Candidate]:
        """Random draws; with archives, those of many draws that are predicted best from them."""
        if not self._surrogate.fit():
            return self._breeder.batch(size, self._breeder.sample)
        drawn = [self._breeder.sample() for _ in range(max(size, self.config.pool))]
        return self._breeder.first_new([candidate for _, candidate in self._predicted(drawn)], size)

    def _predicted_best(self, size: int) -> list[Candidate]:
        self._surrogate.fit(np.stack(self._described), [evaluation.fitness for evaluation in self._known])
        parents = sorted(self._known, key=lambda e: e.fitness)[: self.config.num_elites]
        return self._breeder.first_new([candidate for _, candidate in self._offspring(parents)], size)

    def _offspring(self, parents: Sequence[Evaluation | Candidate]) -> list[tuple[float, Candidate]]:
        """Subnets bred from parents, each with its predicted fitness, the best first."""
        return self._predicted(self._bred(parents))

    def _bred(self, parents: Sequence[Evaluation | Candidate]) -> list[Candidate]:
        bred = [self._breeder.breed(parents, self.config.mutation_rate) for _ in range(self.config.pool)]
        return list({candidate.subnet.digest: candidate for candidate in bred}.values())

    def _predicted(self, candidates: Sequence[Candidate]) -> list[tuple[float, Candidate]]:
        """Candidates with their predicted fitness, the best first."""
        if not candidates:
            return []
        predicted = self._surrogate.predict(self._surrogate.describe([candidate.subnet for candidate in candidates]))
        return sorted(zip(predicted.tolist(), candidates, strict=True), key=itemgetter(0))
