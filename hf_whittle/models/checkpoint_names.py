"""Names of weights in checkpoints, and checkpoints that contradict their configuration."""

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging

from ..architectures.registry import get_architecture
from ..architectures.table import Weight
from ..errors import CheckpointError
from ..subnet import SubnetConfig
from .weights import all_weights, embedding, in_words, kept_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.get_logger(__name__)


class Renamed(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by their names in the table.

    Raises:
        CheckpointError: if a weight is missing.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], config: "PreTrainedConfig"):
        everything = kept_weights(config, SubnetConfig.full(config))
        self._weights = weights
        self.stored = {
            weight.name.format(layer=layer): stored_name(weights, weight, layer, config)
            for weight, layer, _ in everything
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._weights[self.stored[name]]

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def as_stored(config: "PreTrainedConfig", checkpoint: Mapping[str, torch.Tensor]) -> "PreTrainedConfig":
    """The configuration that a checkpoint has once transformers has loaded it.

    Matrices that the configuration ties and that differ in the checkpoint are untied, with a warning. Tensors without a
    place in the configuration are left out, with a warning.
    """
    weights = get_architecture(config).weights
    for weight in weights:
        own, shared = (stored_as(checkpoint, each, 0) for each in (weight, embedding(config)))
        if weight.is_shared(config) and own and shared and not torch.equal(checkpoint[own], checkpoint[shared]):
            logger.warning(
                f"the configuration says {weight.shared_if}, but {own} of the checkpoint is another matrix than "
                f"{shared}: they are not tied, as in transformers"
            )
            config = copy.deepcopy(config)
            setattr(config, str(weight.shared_if), False)
    names = {name.format(layer=layer) for weight, layer in all_weights(config) for name in _names(weight)}
    leftovers = get_architecture(config).leftovers
    others = [name for name in checkpoint if name not in names and not (leftovers and leftovers.search(name))]
    if others:
        logger.warning(f"the configuration has no place for {in_words(others)} of the checkpoint: they are left out")
    return config


def stored_as(weights: Mapping[str, torch.Tensor], weight: Weight, layer: int) -> str | None:
    """The name of a weight in a checkpoint, or `None`; of several that are there, the one that transformers takes."""
    return next((name for each in _names(weight) if (name := each.format(layer=layer)) in weights), None)


def _names(weight: Weight) -> list[str]:
    """Names that a weight may have in a checkpoint; the last one where a model was saved without its head."""
    is_of_head = weight.is_matmul and not weight.in_layer
    without_head = None if is_of_head else weight.name.partition(".")[2]
    return [name for name in (weight.file_name, weight.name, without_head) if name is not None]


def stored_name(
    weights: Mapping[str, torch.Tensor], weight: Weight, layer: int, config: "PreTrainedConfig | None" = None
) -> str:
    """The name of a weight in a checkpoint, or else that of a weight tied to it.

    Raises:
        CheckpointError: if the checkpoint has neither.
    """
    name = stored_as(weights, weight, layer)
    if name is None and config is not None and weight is embedding(config):
        sharing = (each for each in get_architecture(config).weights if each.is_shared(config))
        name = next((found for each in sharing if (found := stored_as(weights, each, 0))), None)
    if name is None:
        known = (weight.name, weight.file_name)
        wanted = " or ".join(each.format(layer=layer) for each in known if each is not None)
        raise CheckpointError(
            f"the checkpoint lacks the tensor {wanted}; download it again. If its model has no head for causal "
            "language modeling, load it with AutoModelForCausalLM and save that"
        )
    return name
