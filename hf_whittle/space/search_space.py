"""Search spaces: subnets of a super-network to sample, mutate and cross over within a bin."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from ..cost.bins import Bin
from ..errors import SubnetError
from ..models.architecture import head_dim
from ..subnet import Shape, SubnetConfig
from .entries import Choices, Entries
from .moves import Moves
from .reach import Reach
from .sizes import Sizes

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
        layer_wise (`bool`): whether layers may keep different heads and neurons.
        stock_only (`bool`): whether students must fit a stock model: uniform, with heads that fill the hidden size.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size (`range`): allowed sizes.
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
            self.importance.check(Shape.from_config(self.config))
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
    ) -> "SearchSpace":
        """Make a space of subnets of a super-network.

        Args:
            config (`PreTrainedConfig`): configuration of the super-network.
            granularity (`str`, *optional*, defaults to `"coarse"`): `"coarse"` or `"fine"`.
            layer_wise (`bool`, *optional*, defaults to `False`): whether layers may differ.
            stock_only (`bool`, *optional*, defaults to `False`): whether a stock model must hold the student.
            hidden_size (`range`, *optional*): allowed numbers of channels; by default every multiple of
                `config.hidden_size // 64` (of `head_dim` with `stock_only`).
            num_hidden_layers (`range`, *optional*): allowed numbers of layers; by default all.
            num_attention_heads (`range`, *optional*): allowed numbers of heads of a layer; by default all.
            intermediate_size (`range`, *optional*): allowed numbers of neurons of a layer; by default every multiple
                of `config.intermediate_size // 256`.
            importance (`ImportanceScores`, *optional*): scores of the super-network; a fine-grained space then draws,
                adds and leaves out entries by them.
            temperature (`float`, *optional*, defaults to 0.1): how far a choice may stray from the scores: 0 always
                keeps the most important entries; see `AnyEntries`.

        Raises:
            SubnetError: if a range does not fit the super-network.
        """
        channel_step = head_dim(config) if stock_only else max(1, config.hidden_size // 64)
        neuron_step = max(1, config.intermediate_size // 256)

        def given(sizes: range | None, most: int, step: int = 1) -> range:
            return range(step, most + 1, step) if sizes is None else sizes

        return cls(
            config=config,
            granularity=granularity,
            layer_wise=layer_wise,
            stock_only=stock_only,
            hidden_size=given(hidden_size, config.hidden_size, channel_step),
            num_hidden_layers=given(num_hidden_layers, config.num_hidden_layers),
            num_attention_heads=given(num_attention_heads, config.num_attention_heads),
            intermediate_size=given(intermediate_size, config.intermediate_size, neuron_step),
            importance=importance,
            temperature=temperature,
        )

    def to_dict(self) -> dict[str, Any]:
        if self.importance is None:
            return super().to_dict()
        return {**super().to_dict(), "importance": self.importance.settings, "temperature": self.temperature}

    def sample(self, rng: Random, bin: Bin) -> SubnetConfig:
        """Draw a subnet in the bin.

        The law of the draw: the pair of a number of channels and a number of layers is uniform over the pairs for
        which the bin is reachable; given the pair, the total of heads is uniform over the totals for which the bin is
        reachable, and then the total of neurons over those that lie in the bin. Totals are spread over the layers by
        independent uniform draws, corrected in a random order. Kept entries are uniform, or follow importance. Every
        subnet of the bin can be drawn, but not all are equally likely: sizes are uniform, so a subnet of few layers,
        of which there are fewer, is likelier than one of many.

        Raises:
            BinError: if no subnet of the space lies in the bin.
        """
        return self._moves(rng, bin).sample()

    def mutate(self, subnet: SubnetConfig, rng: Random, bin: Bin) -> SubnetConfig:
        """Change one dimension of a subnet, then its sizes by as little as brings it back into the bin.

        One of these changes is drawn: another number of channels, another number of layers, other heads or other
        neurons in one layer (in all of them if the space is uniform), or, in a fine-grained space, as many other
        entries of one dimension.

        Raises:
            BinError: if no subnet of the space lies in the bin.
        """
        return self._moves(rng, bin).mutate(subnet)

    def crossover(self, first: SubnetConfig, second: SubnetConfig, rng: Random, bin: Bin) -> SubnetConfig:
        """Make a child that takes each dimension from one of two parents, then settles in the bin.

        Channels and layers come from either parent; the heads and the neurons of a kept layer from a parent that
        keeps this layer (in a uniform space, of all layers from either parent).

        Raises:
            BinError: if no subnet of the space lies in the bin.
        """
        return self._moves(rng, bin).crossover(first, second)

    def reachable_pairs(self, bin: Bin) -> list[tuple[int, int]]:
        """Pairs of numbers of channels and layers for which some subnet of this space lies in the bin.

        Raises:
            BinError: if there is none.
        """
        return self._reach(bin).pairs

    def entries(self, name: str, layer: int | None = None) -> Entries:
        """Get the way to choose entries of a dimension; see `Choices.of`."""
        return self._choices.of(name, layer)

    def _moves(self, rng: Random, bin: Bin) -> Moves:
        return Moves(self._reach(bin), self._choices, rng)

    def _reach(self, bin: Bin) -> Reach:
        if bin not in self._reaches:
            self._reaches[bin] = Reach(self, bin)
        return self._reaches[bin]

    @cached_property
    def _choices(self) -> Choices:
        return Choices(self.config, self.granularity, self.importance, self.temperature)
