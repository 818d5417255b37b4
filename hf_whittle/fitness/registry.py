"""Registry of fitnesses: how a recipe makes each by its name, and how a model card words it.

A fitness is a class with a `name`, a function here that makes it from the inputs of a recipe, and a label. Classes are
imported when one is made, so that recipes are read without torch.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..models.supernet import SuperNetModel
    from ..subnet import Kept
    from .base import Fitness
    from .healed import HealedPerplexity
    from .probe import ProbeConfig

STAGES = ("perplexity", "healed-perplexity", "probe")
"""Stages of `staged`, one for each share of the tokens, from the smallest share to all tokens."""


class FitnessInputs(Protocol):
    """Inputs that a fitness may be made from; each is loaded when it is asked for."""

    @property
    def supernet(self) -> "SuperNetModel":
        """The super-network whose subnets are evaluated."""

    @property
    def teacher(self) -> "PreTrainedModel":
        """The model that students learn from."""

    @property
    def search_blocks(self) -> "Dataset":
        """Held-out blocks that each candidate is evaluated on."""

    @property
    def documents(self) -> "Sequence[str]":
        """Held-out documents that a fitness of text evaluates each candidate on."""

    @property
    def block_size(self) -> int:
        """Tokens of a block, and most tokens of a window of documents."""

    @property
    def healing_blocks(self) -> "Dataset":
        """Training blocks that healing fits to."""

    @property
    def importance(self) -> Any:
        """`ImportanceScores` of the super-network."""

    @property
    def batch_size(self) -> int | None:
        """Blocks evaluated at a time, where something says how many."""

    @property
    def memory(self) -> float | None:
        """Gigabytes that healing moments may take; what is free if `None`."""

    @property
    def is_healed(self) -> bool:
        """Whether students are healed before they are trained."""

    @property
    def probe(self) -> "ProbeConfig":
        """Settings of a probe's training."""

    @property
    def shares(self) -> Sequence[float]:
        """Shares of the tokens that the search algorithm evaluates on."""

    @property
    def progress(self) -> bool:
        """Whether to show progress bars."""

    def training_blocks(self, number: int) -> "Dataset":
        """At most `number` training blocks, evenly over all of them; of any beginning, sources have their shares."""

    def tokenizer_of(self, kept: "Kept | None") -> "PreTrainedTokenizerBase":
        """The tokenizer of a part of the vocabulary, and the super-network's for `None`."""

    def fitness(self, name: str) -> "Fitness":
        """Another fitness made from the same inputs; each is made once."""


MakeFitness = Callable[[FitnessInputs], "Fitness"]


def _perplexity(inputs: FitnessInputs) -> "Fitness":
    from .perplexity import Perplexity

    return Perplexity(inputs.supernet, inputs.search_blocks, inputs.batch_size)


def _divergence(inputs: FitnessInputs) -> "Fitness":
    from .divergence import KLDivergence

    return KLDivergence(inputs.supernet, inputs.search_blocks, inputs.batch_size, inputs.teacher)


def _healed_perplexity(inputs: FitnessInputs) -> "HealedPerplexity":
    from .healed import HealedPerplexity

    blocks, healing_blocks = inputs.search_blocks, inputs.healing_blocks
    how: dict[str, Any] = {"memory": inputs.memory, "progress": inputs.progress}
    return HealedPerplexity(inputs.supernet, blocks, healing_blocks, inputs.batch_size, **how)


def _bits_per_byte(inputs: FitnessInputs) -> "Fitness":
    from .bits_per_byte import BitsPerByte

    how: dict[str, Any] = {"block_size": inputs.block_size, "batch_size": inputs.batch_size}
    return BitsPerByte(inputs.supernet, inputs.documents, inputs.tokenizer_of, **how)


def _probe(inputs: FitnessInputs) -> "Fitness":
    from .healed import HealedPerplexity
    from .probe import Probe

    config = inputs.probe
    healing = inputs.fitness(HealedPerplexity.name) if inputs.is_healed else None
    assert healing is None or isinstance(healing, HealedPerplexity)
    train_blocks = inputs.training_blocks(config.steps * config.batch_size)
    return Probe(inputs.supernet, train_blocks, inputs.search_blocks, config, teacher=inputs.teacher, healing=healing)


def _staged(inputs: FitnessInputs) -> "Fitness":
    from .staged import StagedFitness

    return StagedFitness(dict(zip(inputs.shares, map(inputs.fitness, STAGES), strict=True)))


FITNESSES: dict[str, MakeFitness] = {
    "perplexity": _perplexity,
    "kl": _divergence,
    "healed-perplexity": _healed_perplexity,
    "bits-per-byte": _bits_per_byte,
    "probe": _probe,
    "staged": _staged,
}
"""Functions that make each fitness of a recipe, by its name; `experimental.FITNESSES` has more in the same form."""

LABELS = {
    "perplexity": "perplexity",
    "kl": "`kl`, the mean divergence of its predictions from the teacher's, in nats a token",
    "healed-perplexity": "`healed-perplexity`, the perplexity after linear fits that recover part of what slicing lost",
    "bits-per-byte": "`bits-per-byte`, the cross-entropy of each byte of text",
    "probe": "`probe`, the perplexity of the student after {steps} steps of training",
    "staged": "`staged`, the perplexity of the student after {steps} steps of training, among the candidates left by "
    "perplexity as sliced and then as healed",
    "importance": "`importance`, the negative share of {criterion} importance retained",
    "magnitude": "`magnitude`, the negative sum of absolute weights",
    "gradient-norm": "`gradient-norm`, the negative norm of the gradients",
    "snip": "`snip`, the negative sum of absolute products of weights and gradients",
    "synflow": "`synflow`, the negative logarithm of synaptic flow",
    "jacobian-covariance": "`jacobian-covariance`, the similarity of the gradients of different blocks",
}
"""Phrases of a model card for the value that a search minimized.

Experimental fitnesses are included, since published results name them even after a fitness is removed.
"""

AXES = {
    "perplexity": "held-out perplexity before training",
    "kl": "KL divergence from the teacher, in nats per token",
    "healed-perplexity": "held-out perplexity after healing",
    "bits-per-byte": "held-out bits per byte before training",
    "probe": "held-out perplexity after {steps} training steps",
    "importance": "share of {criterion} importance retained, negative",
    "magnitude": "sum of absolute weights, negative",
    "gradient-norm": "norm of the gradients, negative",
    "snip": "SNIP score, negative",
    "synflow": "logarithm of synaptic flow, negative",
    "jacobian-covariance": "similarity of the gradients of different blocks",
}
"""Names of axes for the values of fitnesses; a staged one has an axis for each stage."""
