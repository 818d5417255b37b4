"""Additive scores: replace one thing at a time in the full super-network, then solve for the best sum in the bin."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...architectures.dimensions import (
    CHANNELS,
    HEAD_CHANNELS,
    HEADS,
    KEY_VALUE_HEADS,
    LAYERS,
    NEURONS,
    QUERIES,
    Dimension,
)
from ...cost.bins import Bin
from ...space.moves import Draft
from ...space.search_space import SearchSpace
from ...space.sizes import Frame
from ...subnet import SubnetConfig
from ..algorithm import Candidate, Evaluation
from .additive_program import Program, Replacement, evenly_spread, full_size
from .multi_fidelity import MultiFidelityConfig, MultiFidelitySearch

_OPTIONS = {
    CHANNELS: "channel_options",
    HEADS: "head_options",
    KEY_VALUE_HEADS: "head_options",
    QUERIES: "head_options",
    HEAD_CHANNELS: "channel_options",
    NEURONS: "neuron_options",
}
"""The setting that says how many sizes of a dimension are tried; all of the vocabulary's are."""


@dataclass
class AdditiveSearchConfig(MultiFidelityConfig):
    """Settings of the search by additive scores: it scores, solves, evaluates the best answers and evolves them.

    The evolution is multi-fidelity evolution; with `generations=0`, the search ends after the answers.
    """

    name: ClassVar[str] = "additive"

    head_options: int = field(
        default=4,
        metadata={"help": "Numbers of heads tried in each layer, and of queries of a head, the full one among them."},
    )
    neuron_options: int = field(
        default=4, metadata={"help": "Numbers of neurons tried in each layer, the full one among them."}
    )
    channel_options: int = field(
        default=8, metadata={"help": "Numbers of channels tried, and of channels of a head, the full one among them."}
    )
    score_share: float = field(default=1.0, metadata={"help": "Share of the tokens that replacements are scored on."})
    levels: int = field(default=16, metadata={"help": "Sizes of a dimension that the program chooses from."})
    answers: int = field(default=8, metadata={"help": "Best answers of the program that are evaluated."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(head_options=1, neuron_options=1, channel_options=1, levels=2, answers=1)
        if not 0 < self.score_share <= 1:
            raise ValueError(f"score_share must be above 0 and at most 1, got {self.score_share}")

    def algorithm(self, space: SearchSpace, bin: Bin) -> "AdditiveSearch":
        return AdditiveSearch(space, bin, self)


class AdditiveSearch(MultiFidelitySearch):
    """Evaluate single replacements, then the answers of the program, then evolve these."""

    config: AdditiveSearchConfig

    def __init__(self, space: SearchSpace, bin: Bin, config: AdditiveSearchConfig):
        super().__init__(space, bin, config)
        self._frames = sorted({frame for frame, _ in space.reachable_pairs(bin)})
        self._replacements = self._all_replacements()
        self._scores: dict[Replacement, float] = {}
        self._stage = 0

    @property
    def max_evaluations(self) -> int:
        evolved = self.config.generations * sum(self.config.sizes)
        return 1 + len(self._replacements) + self.config.answers + evolved

    def ask(self) -> list[Candidate]:
        self._stage += 1
        if self._stage == 1:
            changed = [self._full, *map(self._with, self._replacements)]
            share = self.config.score_share
            return [Candidate(subnet, "replacement", share=share, in_space=False) for subnet in changed]
        if self._stage == 2:
            answers = [Candidate(subnet, "answer") for subnet in self._answers()]
            return self._breeder.first_new(answers, self.config.answers)
        return super().ask()

    def tell(self, evaluations: list[Evaluation]) -> None:
        if self._stage == 1:
            full, *others = (evaluation.fitness for evaluation in evaluations)
            self._scores = dict(zip(self._replacements, additive_scores(full, others), strict=True))
        elif self._stage == 2:
            self.begin_from(evaluations)
        else:
            super().tell(evaluations)

    # Replacements

    @property
    def _full(self) -> SubnetConfig:
        return SubnetConfig.full(self.space.full)

    def _all_replacements(self) -> list[Replacement]:
        space, layers = self.space, range(self.space.full.num_hidden_layers)
        tried = {dimension: self._tried(dimension) for dimension in space.named if dimension is not LAYERS}
        found = [Replacement(d, None, size) for d, sizes in tried.items() if not d.per_layer for size in sizes]
        if len(layers) > 1:
            found += [Replacement(LAYERS, layer, 0) for layer in layers]
        for dimension in space.architecture.per_layer:
            found += [Replacement(dimension, layer, size) for layer in layers for size in tried[dimension]]
        return [one for one in found if one.size < full_size(space, one.dimension, one.layer)]

    def _tried(self, dimension: Dimension) -> list[int]:
        sizes, option = self.space.sizes(dimension), _OPTIONS.get(dimension)
        return list(sizes) if option is None else evenly_spread(sizes, getattr(self.config, option))

    def _with(self, replacement: Replacement) -> SubnetConfig:
        """The full super-network with one replacement."""
        dimension, layer, full = replacement.dimension, replacement.layer, self._full
        if dimension is LAYERS:
            return full.with_layers([other for other in full.layers if other != layer])
        kept: Any = self.space.entries(dimension, layer).choose(self._breeder.rng, replacement.size)
        if layer is not None:
            of_layers = full.kept(dimension)
            kept = (*of_layers[:layer], kept, *of_layers[layer + 1 :])
        return full.replaced({dimension: kept})

    # Answers

    def _answers(self) -> list[SubnetConfig]:
        """The best subnet for each of some sizes of the shared dimensions, in the order of their predicted scores."""
        program = Program(self.space, self.bin, self._scores, self.config.levels)
        found = []
        for frame in self._tried_frames():
            solved = program.solve(frame)
            if solved is None:
                continue
            subnet = self._assemble(frame, solved[1])
            # The program ignores the step of numbers of layers, and rounding may leave a bin's ends.
            if self.space.contains(subnet) and self.bin.contains(self.space.config, subnet):
                found.append((solved[0], subnet))
        return [subnet for _, subnet in sorted(found, key=lambda pair: pair[0])]

    def _tried_frames(self) -> list[Frame]:
        """Some numbers of channels, evenly spread, with some sizes of the other shared dimensions."""
        number = max(self.config.levels, self.config.answers)
        others = itertools.groupby(sorted(self._frames, key=_others), key=_others)
        frames = [list(group) for _, group in others]
        groups = evenly_spread(frames, self.config.answers)
        return [frame for group in groups for frame in evenly_spread(group, number)]

    def _assemble(self, frame: Frame, sizes: dict[tuple[Dimension, int], int]) -> SubnetConfig:
        """A subnet of these shared sizes, and of sizes by dimension and layer."""
        space, rng = self.space, self._breeder.rng
        draft = Draft(space, {LAYERS: sorted({layer for _, layer in sizes})})
        for dimension, size in zip(space.architecture.shared, frame, strict=True):
            if dimension in space.named:
                draft.kept[dimension] = space.entries(dimension).choose(rng, size)
        for dimension in space.architecture.per_layer:
            by_layer = {layer: size for (of, layer), size in sizes.items() if of is dimension}
            if space.layer_wise:
                chosen = [space.entries(dimension, layer).choose(rng, size) for layer, size in by_layer.items()]
            else:
                chosen = [space.entries(dimension).choose(rng, next(iter(by_layer.values())))] * len(by_layer)
            draft.kept[dimension] = chosen
        return draft.subnet()


def _others(frame: Frame) -> Frame:
    """The shared sizes but the channels, which are the first."""
    return frame[1:]


def additive_scores(full: float, others: Sequence[float]) -> list[float]:
    """Increase in fitness by each replacement, at least 0.

    Fitness that is nowhere below 1, such as perplexity, is compared by its logarithm, in which replacements add up. An
    increase that is not finite counts as ten times the greatest finite one, plus 1.

    Args:
        full (`float`): fitness of the full super-network.
        others (`Sequence[float]`): fitness with each replacement.
    """
    if min(full, *others, math.inf) >= 1:
        full, others = math.log(full), [math.log(other) for other in others]
    if not math.isfinite(full):
        return [0.0] * len(others)
    scores = [max(other - full, 0.0) for other in others]
    worst = 10 * max((score for score in scores if math.isfinite(score)), default=0.0) + 1
    return [score if math.isfinite(score) else worst for score in scores]
