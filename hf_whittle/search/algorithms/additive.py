"""Additive scores: replace one thing at a time in the full super-network, then solve for the best sum in the bin."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ...subnet import Kept, Shape, SubnetConfig
from ..algorithm import Candidate, Evaluation
from .additive_program import Program, Replacement, evenly_spread, full_size
from .multi_fidelity import MultiFidelityConfig, MultiFidelitySearch


@dataclass
class AdditiveSearchConfig(MultiFidelityConfig):
    """Settings of the search by additive scores: it scores, solves, evaluates the best answers and evolves them.

    The evolution is multi-fidelity evolution; with `generations=0`, the search ends after the answers.
    """

    name: ClassVar[str] = "additive"

    head_options: int = field(
        default=4, metadata={"help": "Numbers of heads tried in each layer, the full one among them."}
    )
    neuron_options: int = field(
        default=4, metadata={"help": "Numbers of neurons tried in each layer, the full one among them."}
    )
    channel_options: int = field(default=8, metadata={"help": "Numbers of channels tried, the full one among them."})
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
        self._channels = sorted({channels for channels, _ in space.reachable_pairs(bin)})
        self._full = Shape.from_config(space.config)
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
            changed = [SubnetConfig.full(self._full), *map(self._with, self._replacements)]
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

    def _all_replacements(self) -> list[Replacement]:
        space, config, layers = self.space, self.config, range(self._full.num_hidden_layers)
        channels = evenly_spread(space.hidden_size, config.channel_options)
        heads = evenly_spread(space.num_attention_heads, config.head_options)
        neurons = evenly_spread(space.intermediate_size, config.neuron_options)
        found = [Replacement("channels", -1, size) for size in channels]
        if len(layers) > 1:
            found += [Replacement("layer", layer, 0) for layer in layers]
        found += [Replacement("heads", layer, size) for layer in layers for size in heads]
        found += [Replacement("neurons", layer, size) for layer in layers for size in neurons]
        return [one for one in found if one.size < full_size(self._full, one.dimension, one.layer)]

    def _with(self, replacement: Replacement) -> SubnetConfig:
        """The full super-network with one replacement."""
        full, entries, rng = self._full, self.space.entries, self._breeder.rng
        if replacement.dimension == "layer":
            layers = [layer for layer in range(full.num_hidden_layers) if layer != replacement.layer]
            return SubnetConfig.full(full).with_layers(layers)
        kept = entries(replacement.dimension, replacement.layer).choose(rng, replacement.size)
        if replacement.dimension == "channels":
            return SubnetConfig(kept, full.num_hidden_layers, full.num_attention_heads, full.intermediate_size)
        heads: list[Kept] = list(full.num_attention_heads)
        neurons: list[Kept] = list(full.intermediate_size)
        (heads if replacement.dimension == "heads" else neurons)[replacement.layer] = kept
        return SubnetConfig(full.hidden_size, full.num_hidden_layers, tuple(heads), tuple(neurons))

    # Answers

    def _answers(self) -> list[SubnetConfig]:
        """The best subnet for each of some numbers of channels, in the order of their predicted scores."""
        program = Program(self.space, self.bin, self._scores, self.config.levels)
        found = []
        for channels in evenly_spread(self._channels, max(self.config.levels, self.config.answers)):
            solved = program.solve(channels)
            if solved is None:
                continue
            subnet = self._assemble(channels, solved[1])
            # The program ignores the step of numbers of layers, and rounding may leave a bin's ends.
            if self.space.contains(subnet) and self.bin.contains(self.space.config, subnet):
                found.append((solved[0], subnet))
        return [subnet for _, subnet in sorted(found, key=lambda pair: pair[0])]

    def _assemble(self, channels: int, sizes: dict[tuple[str, int], int]) -> SubnetConfig:
        """A subnet of these sizes by dimension and layer."""
        layers = [layer for layer in range(self._full.num_hidden_layers) if ("heads", layer) in sizes]
        rng, entries = self._breeder.rng, self.space.entries
        kept_channels = entries("channels").choose(rng, channels)
        kept: list[tuple[Kept, ...]] = []
        for name in ("heads", "neurons"):
            if self.space.layer_wise:
                kept.append(tuple(entries(name, layer).choose(rng, sizes[name, layer]) for layer in layers))
            else:
                kept.append((entries(name).choose(rng, sizes[name, layers[0]]),) * len(layers))
        return SubnetConfig(kept_channels, tuple(layers), *kept)


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
