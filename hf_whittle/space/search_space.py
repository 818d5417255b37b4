"""Search spaces: subnets of a super-network to sample, mutate and cross over within a bin."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from ..architectures.dimensions import (
    CHANNELS,
    HEAD_CHANNELS,
    HEADS,
    KEY_VALUE_HEADS,
    LAYERS,
    NEURONS,
    QUERIES,
    Dimension,
)
from ..architectures.registry import get_architecture
from ..architectures.table import Architecture
from ..cost.bins import Bin
from ..errors import SubnetError
from ..subnet import Shape, SubnetConfig
from .entries import Choices, Entries
from .moves import Moves
from .reach import Reach
from .sizes import Frame, Sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..importance.scores import ImportanceScores


@dataclass(frozen=True)
class SearchSpace(Sizes):
    """All subnets of a super-network whose sizes lie in given ranges.

    Use `SearchSpace.from_config`, which fills in the ranges.

    Args:
        config (`PreTrainedConfig`): configuration of the super-network, whose layers all have the same sizes.
        granularity (`str`): `"coarse"` keeps the first entries of each dimension, `"fine"` any entries.
        layer_wise (`bool`): whether layers may differ.
        stock_only (`bool`): whether a stock model must hold the students: uniform, with whole heads, and of sizes that
            its class allows.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, num_key_value_heads,
            num_key_value_groups, head_dim (`range`): allowed sizes, `None` where the architecture lacks the dimension.
        vocab_sizes (`tuple[int, ...]`, *optional*): allowed sizes of the vocabulary; the whole one by default.
        token_order (`tuple[int, ...]`, *optional*): token ids, of which the first are kept; ascending by default.
        importance (`ImportanceScores`, *optional*): scores by which fine-grained entries are chosen.
        temperature (`float`): how far a choice may stray from the scores; see `AnyEntries`.
    """

    importance: "ImportanceScores | None" = field(default=None, repr=False)
    temperature: float = 0.1
    _reaches: dict[Bin, Reach] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.importance is not None:
            if self.granularity == "coarse":
                raise SubnetError(
                    "a coarse space keeps first entries and has no use for importance; sort the super-network with "
                    "sort_by_importance, or use granularity='fine'"
                )
            self.importance.check(self.full)
        if not 0 <= self.temperature < math.inf:
            raise SubnetError(f"temperature must be a number from 0, got {self.temperature}")

    @classmethod
    def from_config(
        cls,
        config: "PreTrainedConfig",
        granularity: Literal["coarse", "fine"] = "coarse",
        layer_wise: bool = False,
        stock_only: bool = False,
        hidden_size: range | None = None,
        num_hidden_layers: range | None = None,
        num_attention_heads: range | None = None,
        intermediate_size: range | None = None,
        importance: "ImportanceScores | None" = None,
        temperature: float = 0.1,
        num_key_value_heads: range | None = None,
        num_key_value_groups: range | None = None,
        head_dim: range | None = None,
        vocab_sizes: Sequence[int] | None = None,
        token_order: Sequence[int] | None = None,
    ) -> "SearchSpace":
        """Make a space of subnets of a super-network.

        Args:
            config (`PreTrainedConfig`): configuration of the super-network.
            granularity (`str`, *optional*, defaults to `"coarse"`): `"coarse"` or `"fine"`.
            layer_wise (`bool`, *optional*, defaults to `False`): whether layers may differ.
            stock_only (`bool`, *optional*, defaults to `False`): whether a stock model must hold the student.
            hidden_size (`range`, *optional*): allowed numbers of channels; by default every multiple of
                `config.hidden_size // 64`; with `stock_only`, of the least number from there on whose multiples a
                stock model holds.
            num_hidden_layers (`range`, *optional*): allowed numbers of layers; by default all.
            num_attention_heads (`range`, *optional*): allowed numbers of heads of a layer; by default all.
            intermediate_size (`range`, *optional*): allowed numbers of neurons of a layer; by default every multiple
                of `config.intermediate_size // 256`.
            importance (`ImportanceScores`, *optional*): scores of the super-network; a fine-grained space then draws,
                adds and leaves out entries by them.
            temperature (`float`, *optional*, defaults to 0.1): how far a choice may stray from the scores: 0 always
                keeps the most important entries; see `AnyEntries`.
            num_key_value_heads (`range`, *optional*): allowed numbers of key-value heads of a layer, where queries may
                be grouped; by default all. Each is kept with its queries.
            num_key_value_groups (`range`, *optional*): allowed numbers of queries of a key-value head; by default all
                of them are kept.
            head_dim (`range`, *optional*): allowed numbers of channels of a head, all of them even; by default all
                channels are kept.
            vocab_sizes (`Sequence[int]`, *optional*): allowed sizes of the vocabulary, in any order; by default all
                tokens are kept. Subnets of a size keep the same tokens.
            token_order (`Sequence[int]`, *optional*): token ids, of which each subnet keeps the first, such as
                `rank_tokens` gives; by default the order of ids.

        Raises:
            SubnetError: if a range does not fit the super-network, or a size of the vocabulary leaves out a special
                token that its configuration names.
        """
        architecture, full = get_architecture(config), Shape.from_config(config)
        steps = {CHANNELS: max(1, full.hidden_size // 64), NEURONS: max(1, full.size(NEURONS) // 256)}
        if stock_only:
            steps[CHANNELS] = _stock_step(architecture, config, steps[CHANNELS])
        given: dict[Dimension, Any] = {
            CHANNELS: hidden_size,
            LAYERS: num_hidden_layers,
            HEADS: num_attention_heads,
            NEURONS: intermediate_size,
            KEY_VALUE_HEADS: num_key_value_heads,
            QUERIES: num_key_value_groups,
            HEAD_CHANNELS: head_dim,
        }
        for dimension in architecture.dimensions:
            if given[dimension] is None:
                most = full.size(dimension)
                step = most if dimension.is_optional else steps.get(dimension, 1)
                given[dimension] = range(step, most + 1, step)
        return cls(
            config=config,
            granularity=granularity,
            layer_wise=layer_wise,
            stock_only=stock_only,
            importance=importance,
            temperature=temperature,
            vocab_sizes=None if vocab_sizes is None else tuple(sorted(vocab_sizes)),
            token_order=None if token_order is None else tuple(token_order),
            **{dimension.name: sizes for dimension, sizes in given.items()},
        )

    def to_dict(self) -> dict[str, Any]:
        if self.importance is None:
            return super().to_dict()
        return {**super().to_dict(), "importance": self.importance.settings, "temperature": self.temperature}

    def sample(self, rng: Random, bin: Bin) -> SubnetConfig:
        """Draw a subnet in the bin.

        The law of the draw: the sizes that all layers share, such as the number of channels, and the number of layers
        are together uniform over those for which the bin is reachable; given them, the total of heads (of key-value
        heads, where queries are grouped) is uniform over the totals for which the bin is reachable, and then the total
        of neurons over those that lie in the bin. Totals are spread over the layers by independent uniform draws,
        corrected in a random order. Kept entries are uniform, or follow importance. Every subnet of the bin can be
        drawn, but not all are equally likely: sizes are uniform, so a subnet of few layers, of which there are fewer,
        is likelier than one of many.

        Raises:
            BinError: if no subnet of the space lies in the bin.
        """
        return self._moves(rng, bin).sample()

    def mutate(self, subnet: SubnetConfig, rng: Random, bin: Bin) -> SubnetConfig:
        """Change one dimension of a subnet, then its sizes by as little as brings it back into the bin.

        One of these changes is drawn: another size of one dimension, in one layer if layers have entries of their own
        (in all of them if the space is uniform); or, in a fine-grained space, as many other entries of one dimension.

        Raises:
            BinError: if no subnet of the space lies in the bin.
        """
        return self._moves(rng, bin).mutate(subnet)

    def crossover(self, first: SubnetConfig, second: SubnetConfig, rng: Random, bin: Bin) -> SubnetConfig:
        """Make a child that takes each dimension from one of two parents, then settles in the bin.

        What all layers share, and the layers, come from either parent; the heads and the neurons of a kept layer from
        a parent that keeps this layer (in a uniform space, of all layers from either parent).

        Raises:
            BinError: if no subnet of the space lies in the bin.
        """
        return self._moves(rng, bin).crossover(first, second)

    def reachable_pairs(self, bin: Bin) -> list[tuple[Frame, int]]:
        """Pairs of shared sizes and a number of layers for which some subnet of this space lies in the bin.

        Shared sizes, such as the number of channels, are in the order of `Architecture.shared`.

        Raises:
            BinError: if there is none.
        """
        return self._reach(bin).pairs

    def entries(self, dimension: Dimension, layer: int | None = None) -> Entries:
        """Get the way to choose entries of a dimension; see `Choices.of`."""
        return self._choices.of(dimension, layer)

    def _moves(self, rng: Random, bin: Bin) -> Moves:
        return Moves(self._reach(bin), self._choices, rng)

    def _reach(self, bin: Bin) -> Reach:
        if bin not in self._reaches:
            self._reaches[bin] = Reach(self, bin)
        return self._reaches[bin]

    @cached_property
    def _choices(self) -> Choices:
        return Choices(self.config, self.granularity, self.importance, self.temperature, self.tokens)


def _stock_step(architecture: Architecture, config: "PreTrainedConfig", least: int) -> int:
    """A number of channels, at least `least` if that can be, of which a stock model holds all multiples.

    It is a multiple of the smallest one. Of each multiple, some number of heads must do.
    """
    sizes, dimension = architecture.read_sizes(config), architecture.per_layer[0]

    def is_held(channels: int) -> bool:
        tried = ({**sizes, CHANNELS: channels, dimension: heads} for heads in range(1, sizes[dimension] + 1))
        return any(architecture.stock_problem(config, each) is None for each in tried)

    most = sizes[CHANNELS]
    divisors = (step for step in range(1, most + 1) if most % step == 0)
    step = next((step for step in divisors if all(map(is_held, range(step, most + 1, step)))), most)
    return min(step * math.ceil(least / step), most)
