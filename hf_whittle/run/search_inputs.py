"""Inputs of the search alone; letting go of them frees the memory of fitnesses, moments and teacher."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..cost.bins import Bin
from ..fitness.base import Fitness
from ..fitness.probe import ProbeConfig
from ..healing.supernet_moments import USABLE, free_bytes
from ..importance.scores import ImportanceScores, score_importance
from ..models.source import source_of
from ..models.supernet import SuperNetModel
from ..processes import gathered, in_first, num_launched, num_on_machine
from ..recipe.sections import FITNESSES, SpaceSection
from ..space.search_space import SearchSpace
from ..subnet import Kept
from .inputs import Inputs
from .vocabularies import token_order, tokens_per_byte


class SearchInputs:
    """The search space and the fitnesses of a recipe, with everything these are made from.

    Args:
        inputs (`Inputs`): the inputs of the run.
        cache_dir (`Path`): folder that keeps importance scores and the order of tokens.
        progress (`bool`): whether to show progress bars.
    """

    def __init__(self, inputs: Inputs, cache_dir: Path, progress: bool):
        self._inputs, self._cache_dir, self.progress = inputs, cache_dir, progress
        self._made: dict[str, Fitness] = {}

    @cached_property
    def space(self) -> SearchSpace:
        """The search space; all processes ask for it."""
        section, order = self._inputs.recipe.space, token_order(self._inputs, self._cache_dir)
        scores = self.importance if section.importance else None
        return make_space(self._inputs, order, importance=scores, temperature=section.temperature)

    def fitness(self, name: str) -> Fitness:
        """The fitness of a name; each is made once."""
        if name not in self._made:
            self._made[name] = FITNESSES[name](self)
        return self._made[name]

    @cached_property
    def importance(self) -> ImportanceScores:
        """Scores of the super-network, from the cache if they were measured before; the first process measures them."""
        return in_first(
            lambda: score_importance(
                self.supernet,
                self._inputs.calibration_blocks,
                criterion=self._inputs.recipe.importance_criterion,
                batch_size=self.batch_size,
                cache_dir=self._cache_dir,
                progress=self.progress,
            )
        )

    @cached_property
    def teacher(self) -> PreTrainedModel:
        """The model that students learn from; nothing is sharded in a search."""
        return self.supernet if self._inputs.recipe.is_one_model else self._inputs.load_teacher()

    @property
    def supernet(self) -> SuperNetModel:
        """The super-network whose subnets are judged."""
        return self._inputs.supernet

    @property
    def search_blocks(self) -> Dataset:
        """Held-out blocks that each candidate is evaluated on."""
        return self._inputs.blocks["search"]

    @property
    def documents(self) -> list[str]:
        """Held-out documents that a fitness of text evaluates each candidate on."""
        return self._inputs.search_documents

    def tokenizer_of(self, kept: Kept | None) -> PreTrainedTokenizerBase:
        """The tokenizer of a part of the vocabulary, and the super-network's for `None`."""
        return self._inputs.tokenizer_of(kept)

    @property
    def block_size(self) -> int:
        """Tokens of a block, and most tokens of a window of documents."""
        return self._inputs.recipe.data.block_size

    @property
    def healing_blocks(self) -> Dataset:
        """Training blocks that healing fits to."""
        return self._inputs.healing_blocks

    def training_blocks(self, number: int) -> Dataset:
        """At most `number` training blocks, evenly over all of them, in the order of the mixture."""
        return self._inputs.text.training_blocks(number, by_source=False)

    @property
    def batch_size(self) -> int | None:
        """Blocks evaluated at a time, where the recipe says how many."""
        return self._inputs.recipe.search.batch_size

    @property
    def memory(self) -> float | None:
        """Gigabytes that healing moments may take in each of several processes, the same in all, which call this."""
        if num_launched() == 1:
            return None
        device = source_of(self.supernet).device
        shared_by = 1 if device.type == "cuda" else num_on_machine()
        return 1e-9 * USABLE * min(gathered(free_bytes(device) / shared_by))

    @property
    def is_healed(self) -> bool:
        """Whether students are healed before they are trained."""
        return bool(self._inputs.recipe.heal)

    @property
    def probe(self) -> ProbeConfig:
        """How a probe trains."""
        return self._inputs.recipe.probe_config

    @property
    def shares(self) -> Sequence[float]:
        """Shares of the tokens that the search algorithm evaluates on."""
        algorithm: Any = self._inputs.recipe.search.algorithm
        shares: Sequence[float] = algorithm.shares
        return shares


def make_space(inputs: Inputs, order: Sequence[int] | None = None, **importance: Any) -> SearchSpace:
    """The search space of a recipe; it chooses entries by importance if it gets scores and a temperature.

    The vocabulary is whole unless an order of tokens is given.
    """
    return make_space_of(inputs.origin_config, inputs.recipe.space, order, **importance)


def make_space_of(
    config: PreTrainedConfig, section: SpaceSection, order: Sequence[int] | None = None, **importance: Any
) -> SearchSpace:
    """The search space of a super-network's configuration and a recipe's section; see `make_space`."""
    sizes: dict[str, Any] = section.ranges()
    if order is not None:
        sizes |= {"vocab_sizes": section.vocab_sizes, "token_order": order}
    return SearchSpace.from_config(
        config, section.granularity, section.layer_wise, section.stock_only, **importance, **sizes
    )


def make_bin(inputs: Inputs, space: SearchSpace) -> Bin:
    """The bin of a recipe; of a byte of text, if its cost depends on how many tokens that has."""
    needs = inputs.recipe.needs_tokens_per_byte
    return inputs.recipe.to_bin(tokens_per_byte(inputs, space) if needs else None)
