"""Second moments of the activations of a super-network, gathered once for the healing of any subnet."""

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import psutil
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..architectures.registry import get_architecture
from ..errors import WhittleError
from ..evaluation import evaluating
from ..models.activations import Activations, recorded_activations
from ..subnet import Shape
from .hidden_states import check_hidden_states
from .parts import module_of, normalized, output_matrix, projections, writer_features

if TYPE_CHECKING:
    from ..models.supernet import SuperNetModel


class SupernetMoments:
    """Second moments of normalized hidden states, of the inputs of writers, and of these with the layers' outputs.

    A layer's output is the change of its hidden states. Memory is that of a square matrix of all heads' channels and
    neurons for each layer, and of one of these by the channels for each pair of layers, whatever the number of tokens.

    Args:
        supernet (`SuperNetModel`): the super-network.
        input_ids (`torch.Tensor`): `(blocks, block_size)`.
        batch_size (`int`): blocks in a forward pass.
        progress (`bool`): whether to show a progress bar.

    Attributes:
        normal: products of normalized hidden states and 1, by norm and layer.
        normal_from_embedding: products of these with the embedding's normalized hidden states and 1, by norm and layer.
        features: products of the inputs of all writers of a layer and 1, by layer.
        written: products of a later layer's output with a layer's features, by the layer and the later one.
        written_before: products of the summed outputs of all earlier layers with a layer's features, by layer. Both are
            empty where a norm follows the writers, which then absorb nothing.

    Raises:
        WhittleError: if the moments do not fit into memory.
        HealingError: if hidden states contain NaN or Inf.
    """

    def __init__(self, supernet: "SuperNetModel", input_ids: torch.Tensor, batch_size: int, progress: bool):
        self.config = supernet.full_config
        self.groups = projections(self.config)
        self.readers = tuple(weights for group in self.groups for weights in group.readers)
        self.writers = tuple(weight for group in self.groups for weight in group.writers)
        self.head = output_matrix(self.config)
        self._check_memory(supernet.device, min(batch_size, len(input_ids)) * input_ids.shape[1])
        self.normal: dict[tuple[str | None, int], Any] = defaultdict(float)
        self.normal_from_embedding: dict[tuple[str | None, int], Any] = defaultdict(float)
        self.features: dict[int, Any] = defaultdict(float)
        self.written: dict[tuple[int, int], Any] = defaultdict(float)
        self.written_before: dict[int, Any] = defaultdict(float)
        with evaluating(supernet), torch.no_grad():
            for batch in tqdm(input_ids.split(batch_size), "moments", unit="batch", disable=not progress):
                self._add(supernet, batch.to(supernet.device))

    @property
    def layers(self) -> range:
        return range(self.config.num_hidden_layers)

    @property
    def absorbs(self) -> bool:
        """Whether writers absorb the output of layers that are left out: no norm scales what they add."""
        return not any(group.is_normalized for group in self.groups)

    @property
    def bytes(self) -> int:
        """Memory of the moments, in single precision."""
        return 4 * (self._products_of_writers + 4 * self.config.hidden_size**2 * (len(self.layers) + 1))

    @property
    def flops_per_token(self) -> int:
        """FLOPs of gathering, without those of the forward pass."""
        norms = len(list(self._norms()))
        return 2 * self._products_of_writers + 4 * self.config.hidden_size**2 * norms

    @property
    def _widths(self) -> list[int]:
        """For each layer, the number of inputs of all its writers, plus 1."""
        features = writer_features(self.config, Shape.from_config(self.config))
        return [sum(groups) - len(groups) + 1 for groups in features]

    @property
    def _products_of_writers(self) -> int:
        """Products that are summed over tokens for the writers: each takes a number in memory and 2 FLOPs a token."""
        size, layers = self.config.hidden_size, len(self.layers)
        outputs = [(layers - layer + 1) * self.absorbs for layer in self.layers]
        return sum(width**2 + width * size * of_layer for width, of_layer in zip(self._widths, outputs, strict=True))

    def _check_memory(self, device: torch.device, tokens: int) -> None:
        activations = sum(self._widths) + 5 * self.config.hidden_size * len(self.layers)
        needed = self.bytes + 4 * tokens * activations
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        if needed > free:
            raise WhittleError(
                f"healed perplexity needs {needed / 1e9:.1f} GB for moments of this super-network, and "
                f"{free / 1e9:.1f} GB are free on {device}; search by perplexity, with a smaller batch_size, or where "
                "there is more memory"
            )

    def _norms(self) -> Iterable[tuple[str | None, int]]:
        """The norms before readers, with their layer; the norm before the output matrix counts to the last layer."""
        yield from dict.fromkeys((weights[0].norm, layer) for weights in self.readers for layer in self.layers)
        if self.head is not None:
            yield self.head.norm, self.layers[-1]

    def _layer(self, layer: int) -> str:
        return f"{get_architecture(self.config).layers}.{layer}"

    def _add(self, supernet: "SuperNetModel", batch: torch.Tensor) -> None:
        layers = [self._layer(layer) for layer in self.layers]
        norms = [str(norm).format(layer=layer) for norm, layer in self._norms()]
        writers = [module_of(weight, layer) for weight in self.writers for layer in self.layers]
        with recorded_activations(supernet, [*layers, *norms, *writers], layers) as activations:
            supernet.base_model(input_ids=batch, use_cache=False)
        for layer in self.layers:
            check_hidden_states(activations.outputs[self._layer(layer)], "the super-network", layer)
        self._add_normal(activations)
        self._add_written(activations)

    def _add_normal(self, activations: Activations) -> None:
        embedded = activations.inputs[self._layer(0)]
        for norm, layer in self._norms():
            pair = (embedded, activations.inputs[str(norm).format(layer=layer)])
            first, normal = (_with_one(normalized(hidden, self.config)) for hidden in pair)
            self.normal[norm, layer] += normal.T @ normal
            self.normal_from_embedding[norm, layer] += normal.T @ first

    def _add_written(self, activations: Activations) -> None:
        before = [activations.inputs[self._layer(layer)] for layer in self.layers]
        after = [activations.outputs[self._layer(layer)] for layer in self.layers]
        written = [(after[layer] - before[layer]).flatten(0, -2) for layer in self.layers]
        for layer in self.layers:
            inputs = [activations.inputs[module_of(weight, layer)].flatten(0, -2) for weight in self.writers]
            features = _with_one(torch.cat(inputs, -1))
            self.features[layer] += features.T @ features
            if not self.absorbs:
                continue
            self.written_before[layer] += (before[layer] - before[0]).flatten(0, -2).T @ features
            for later in self.layers[layer:]:
                self.written[layer, later] += written[later].T @ features


def _with_one(features: torch.Tensor) -> torch.Tensor:
    """Flatten `(B, T, features)` to `(tokens, features + 1)`; the last feature is 1."""
    return F.pad(features.flatten(0, -2), (0, 1), value=1.0)
