"""Candidates of a search before it runs, and their cost."""

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from ..cost.counts import flops_per_token
from ..search.algorithms import AdditiveSearchConfig, MultiFidelityConfig
from ..subnet import SubnetConfig
from .fitnesses import Fitnesses, Subject
from .students import Students

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe

_DRAWS = 16
"""Subnets that are drawn to estimate what candidates cost."""


@dataclass(frozen=True)
class Candidates:
    """Candidates of a search.

    Args:
        known (`tuple[SubnetConfig, ...]`): subnets that every search of these settings evaluates.
        share (`float`): share of the tokens that they are evaluated on.
        others (`dict[float, int]`): by share of the tokens, how many subnets of the bin are evaluated at most.
    """

    known: tuple[SubnetConfig, ...]
    share: float
    others: dict[float, int]

    @property
    def number(self) -> int:
        """All candidates, at most."""
        return len(self.known) + sum(self.others.values())


def candidates_of(recipe: "Recipe", students: Students) -> Candidates:
    """The candidates of a recipe's search."""
    config = recipe.search.algorithm
    algorithm = config.algorithm(students.space, students.bin)
    if not isinstance(config, MultiFidelityConfig):
        return Candidates((), 1.0, {1.0: algorithm.max_evaluations})
    if not isinstance(config, AdditiveSearchConfig):
        rounds = config.generations + config.initial
        return Candidates((), 1.0, _by_share(config, rounds))
    known = tuple(candidate.subnet for candidate in algorithm.ask())  # replacements, which no value decides
    others = _by_share(config, config.generations)
    others[1.0] = others.get(1.0, 0) + config.answers
    return Candidates(known, config.score_share, others)


def _by_share(config: MultiFidelityConfig, rounds: int) -> dict[float, int]:
    return {share: rounds * size for share, size in zip(config.shares, config.sizes, strict=True)}


def most_expensive(students: Students, fitnesses: Fitnesses, name: str) -> Subject:
    """The costs that no subnet of the bin exceeds, as a fitness counts them."""
    searched = Students(students.space, students.bin, students.block_size)
    healing = searched.most(lambda subnet: fitnesses.healing(subnet, name)) if fitnesses.heals(name) else 0
    return Subject(searched.flops(students.block_size), 0, searched.parameters, healing)


def search_cost(recipe: "Recipe", students: Students, fitnesses: Fitnesses, candidates: Candidates) -> tuple[int, int]:
    """Tokens and FLOPs of a search and of the importance scores that it needs, at most."""
    name = recipe.search.fitness
    tokens, flops = fitnesses.preparation(name)
    for subnet in candidates.known:
        flops += fitnesses.flops(name, fitnesses.subject(subnet, name), candidates.share)
    tokens += len(candidates.known) * fitnesses.tokens(name, candidates.share)
    if any(candidates.others.values()):
        most = most_expensive(students, fitnesses, name)
        flops += sum(number * fitnesses.flops(name, most, share) for share, number in candidates.others.items())
        tokens += sum(number * fitnesses.tokens(name, share) for share, number in candidates.others.items())
    scored, of_scores = importance_cost(recipe, students)
    return tokens + scored, flops + of_scores


def likely_flops(recipe: "Recipe", students: Students, fitnesses: Fitnesses, candidates: Candidates, most: int) -> int:
    """FLOPs of a search if its candidates cost as much as subnets drawn at random from the bin.

    Args:
        recipe (`Recipe`): the recipe.
        students (`Students`): its students.
        fitnesses (`Fitnesses`): costs of fitnesses.
        candidates (`Candidates`): candidates of the search.
        most (`int`): the search's FLOPs at most.
    """
    name, rng = recipe.search.fitness, Random(0)
    drawn = [fitnesses.subject(students.space.sample(rng, students.bin), name) for _ in range(_DRAWS)]
    highest = most_expensive(students, fitnesses, name)
    for share, number in candidates.others.items():
        each = sum(fitnesses.flops(name, subject, share) for subject in drawn) // len(drawn)
        most += number * (each - fitnesses.flops(name, highest, share))
    return most


def importance_cost(recipe: "Recipe", students: Students) -> tuple[int, int]:
    """Tokens and FLOPs of importance scores; none if the recipe needs none."""
    criterion, length = recipe.importance_criterion, students.block_size
    if criterion is None:
        return 0, 0
    tokens = max(1, recipe.data.search_tokens // length) * length
    passes = 4 if criterion == "taylor" else 1
    return tokens, passes * tokens * flops_per_token(students.config, sequence_length=length)
