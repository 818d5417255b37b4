"""The students: which layers, heads, neurons or channels are kept, the same for every rival but `magnitude`.

- `depth`: one run of layers is removed, the one with the lowest angular distance between the hidden states before and
  after it (arXiv 2403.17887), as rivals that replace removed layers want it. The first layer stays.
- `width`: all layers keep as many key-value heads, each with its queries, and as many neurons; heads are cut as much as
  the layers, to a whole number, and neurons make up the size.
- `both`: removed layers make up half of the cut, heads and neurons of the others the rest.
- `channels`: channels of the hidden states are cut.

Units are kept by importance: the norm of mean activations over calibration text. `magnitude` keeps units and layers by
the norm of their weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_whittle import SubnetConfig
from hf_whittle.architectures.dimensions import CHANNELS, NEURONS, Dimension
from hf_whittle.cost import num_parameters
from hf_whittle.importance.scores import ImportanceScores, score_importance
from hf_whittle.subnet import Shape

from .passes import batches, final_norm, layers_of
from .rivals.cut import CUT_CHANNELS, DEPTH, WIDTH


def score(teacher: Any, calibration: torch.Tensor, criterion: str, folder: Path) -> ImportanceScores:
    """Importance of units by `"importance"` or `"magnitude"`."""
    if criterion == "magnitude":
        kinds: dict[str, Any] = {"criterion": "magnitude", "layer_criterion": "magnitude"}
    else:
        kinds = {"criterion": "activation", "layer_criterion": "cosine"}
    return score_importance(teacher, calibration, **kinds, batch_size=4, cache_dir=folder, progress=False)


def angular_distances(teacher: Any, calibration: torch.Tensor) -> torch.Tensor:
    """Mean angle between hidden states before layers `i` and `j`, over pi, `(layers + 1, layers + 1)`."""
    modules = {str(i): module for i, module in enumerate([*layers_of(teacher), final_norm(teacher)])}
    total = torch.zeros(len(modules), len(modules))
    for seen in batches(teacher, calibration, modules):
        states = torch.stack([seen[name].inputs for name in modules], -2)
        states = torch.nn.functional.normalize(states, dim=-1)
        cosines = (states @ states.mT).clamp(-1, 1)
        total += cosines.arccos().sum((0, 1)) / torch.pi
    return total / calibration.numel()


class Chooser:
    """Chooses students of a teacher.

    Args:
        config (`PreTrainedConfig`): the teacher's.
        scores (`ImportanceScores`): importance of its units.
        distances (`torch.Tensor`, *optional*): angular distances; without them, layers are kept by their scores.
    """

    def __init__(self, config: Any, scores: ImportanceScores, distances: torch.Tensor | None):
        self._config, self._scores, self._distances = config, scores, distances
        self._full, self._shape = SubnetConfig.full(config), Shape.from_config(config)
        self._whole = num_parameters(config)
        self._of_layer = self._whole - num_parameters(config, self._full.with_layers(range(len(self._full.layers) - 1)))

    def __call__(self, kind: str, cut: float) -> SubnetConfig:
        """The student of a kind without this share of the parameters."""
        target = round((1 - cut) * self._whole)
        if kind == CUT_CHANNELS:
            return self._narrower_stream(target)
        if kind == WIDTH:
            return self._narrower(self._full.layers, target)
        layers = self._layers(cut if kind == DEPTH else cut / 2)
        return self._full.with_layers(layers) if kind == DEPTH else self._narrower(layers, target)

    def _layers(self, cut: float) -> Sequence[int]:
        """The layers kept where layers alone make up a cut, to the nearest number of them."""
        number = len(self._full.layers)
        removed = min(max(1, round(cut * self._whole / self._of_layer)), number - 1)
        distances = self._distances
        if distances is None:
            return sorted(np.argsort(-self._scores.layers, kind="stable")[: number - removed].tolist())
        start = min(range(1, number - removed + 1), key=lambda first: distances[first, first + removed].item())
        return [layer for layer in range(number) if not start <= layer < start + removed]

    def _narrower(self, layers: Sequence[int], target: int) -> SubnetConfig:
        """Cut heads and neurons of these layers to a number of parameters."""
        heads = next(dimension for dimension in self._shape.per_layer if dimension is not NEURONS)
        outside = self._whole - len(self._full.layers) * self._of_layer
        share = (target - outside) / (len(layers) * self._of_layer)
        kept_heads = min(max(1, round(share * self._shape.size(heads))), self._shape.size(heads))

        def narrowed(neurons: int) -> SubnetConfig:
            kept = {
                dimension: self._best(dimension, count, layers)
                for dimension, count in ((heads, kept_heads), (NEURONS, neurons))
            }
            return self._full.with_layers(layers).replaced(kept)

        neurons = self._largest(
            self._shape.size(NEURONS), lambda number: num_parameters(self._config, narrowed(number)) <= target
        )
        return narrowed(neurons)

    def _narrower_stream(self, target: int) -> SubnetConfig:
        def narrowed(channels: int) -> SubnetConfig:
            best = np.argsort(-self._scores.of(CHANNELS), kind="stable")[:channels]
            return self._full.replaced({CHANNELS: sorted(best.tolist())})

        channels = self._largest(
            self._shape.hidden_size, lambda number: num_parameters(self._config, narrowed(number)) <= target
        )
        return narrowed(channels)

    def _best(self, dimension: Dimension, number: int, layers: Sequence[int]) -> tuple[Any, ...]:
        """The most important entries of each of these layers."""
        scores = self._scores.of(dimension)
        return tuple(sorted(np.argsort(-scores[layer], kind="stable")[:number].tolist()) for layer in layers)

    @staticmethod
    def _largest(size: int, fits: Any) -> int:
        """The largest number of entries that fits.

        Raises:
            ValueError: if not even one does.
        """
        low, high = 0, size
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        if low == 0:
            raise ValueError("this cut leaves no entry; ask for a smaller cut")
        return low
