"""Second moments of the activations of a super-network, gathered once for the healing of any subnet."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import psutil
import torch

from ..architectures.registry import get_architecture
from ..architectures.table import Weight
from ..evaluation import evaluating
from ..evaluation.batches import batches_fit, blocks_for
from ..models.activations import recorded_activations
from ..models.single_layer import SingleLayer
from ..models.source import source_of
from ..progress import progress_bar
from ..subnet import Shape
from .hidden_states import HiddenStatesFile, check_hidden_states
from .moments_cost import (
    affordable_gap,
    blocks_in_batch,
    feature_widths,
    gathered_gaps,
    norms_of_readers,
    peak_bytes,
    products,
)
from .parts import absorbs, biases_of, module_of, normalized, output_matrix, projections, side_by_side
from .regression import ridge_solution, token_weights, with_constant
from .symmetric import SymmetricSums

if TYPE_CHECKING:
    from ..models.supernet import SuperNetModel

USABLE = 0.95
"""Share of the free memory of a device that moments may take."""


class SupernetMoments:
    """Second moments of normalized hidden states, of the inputs of writers, and of these with hidden states.

    Moments of the inputs of writers weight each token by `token_weights` of its mean hidden state over all layers.

    Memory does not grow with the number of tokens: for each layer, half a square matrix of all heads' channels and
    neurons, and a matrix of these by the channels for each gap up to `max_gap`. Over a longer gap, hidden states are
    predicted linearly from those `max_gap` layers after its start. All hidden states are kept in a temporary file of
    `2 * tokens * channels * (layers + 1)` bytes for these predictions.

    Args:
        supernet (`SuperNetModel`): the super-network.
        input_ids (`torch.Tensor`): `(blocks, block_size)`.
        batch_size (`int`, *optional*): blocks in a forward pass, at most; see `tokens_at_a_time`.
        progress (`bool`): whether to show a progress bar.
        memory (`float`, *optional*): gigabytes for the moments and their computation; by default 95% of what is free.

    Attributes:
        tokens: number of tokens.
        max_gap: largest gap between kept layers whose moments are exact: 1 where no layer is left out.
        normal: products of normalized hidden states and 1, by norm and layer.
        features: products of the inputs of all writers of a layer and 1, by layer.

    Raises:
        WhittleError: if the moments do not fit into memory.
        HealingError: if hidden states contain NaN or Inf.
    """

    def __init__(
        self,
        supernet: "SuperNetModel",
        input_ids: torch.Tensor,
        batch_size: int | None,
        progress: bool,
        memory: float | None = None,
    ):
        self.config = supernet.full_config
        self.groups = projections(self.config)
        self.readers = tuple(weights for group in self.groups for weights in group.readers)
        self.writers = tuple(weight for group in self.groups for weight in group.writers)
        self.head = output_matrix(self.config)
        self.tokens = input_ids.numel()
        self._source = source_of(supernet)
        device, size = self._source.device, self.config.hidden_size
        blocks, length = input_ids.shape
        at_a_time = batch_size or blocks_for(supernet, length, in_chunks=True)
        self._blocks, self._batch_size = blocks, min(at_a_time, blocks, blocks_in_batch(self.config, length))
        in_batch, limit = self._batch_size * length, _limit(device, memory)
        self.max_gap = affordable_gap(self.config, in_batch, limit, str(device))
        left = limit - peak_bytes(self.config, in_batch, self.max_gap)
        self._most_predictions = max(1, int(left) // (4 * size * (size + 1)))
        self._predictions: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()  # the last used ones
        self.normal = {}
        for (_, layer), same in norms_of_readers(self.config).items():
            self.normal.update(dict.fromkeys([(norm, layer) for norm in same], SymmetricSums(size + 1, device)))
        self._widths = feature_widths(self.config)
        self.features = {layer: SymmetricSums(self._widths[layer], device) for layer in self.layers}
        self._before = {layer: self._zeros(layer) for layer in self.layers if self.absorbs}
        self._changes = {key: self._zeros(key[0]) for key in gathered_gaps(self.config, self.max_gap)}
        self._of_embedding: dict[int, tuple[torch.Tensor, dict[str | None, torch.Tensor]]] = {}
        self._weights = torch.ones(blocks, length, device=device)
        self._states = HiddenStatesFile((blocks * (len(self.layers) + 1), length, size), device, torch.bfloat16)
        description = f"moments, {self.bytes / 1e9:.1f} GB"
        with evaluating(supernet), torch.no_grad(), batches_fit(self._batch_size):
            for first in progress_bar(
                range(0, blocks, self._batch_size), description, unit="batch", disable=not progress
            ):
                self._add(supernet, input_ids[first : first + self._batch_size].to(device), first)

    @property
    def layers(self) -> range:
        return range(self.config.num_hidden_layers)

    @property
    def absorbs(self) -> bool:
        """Whether writers absorb the output of layers that are left out."""
        return absorbs(self.config)

    @property
    def bytes(self) -> int:
        """Memory of the moments, in single precision."""
        return 4 * products(self.config, self.max_gap)

    @property
    def flops_per_token(self) -> int:
        """FLOPs of gathering, without those of the forward pass."""
        return 2 * products(self.config, self.max_gap)

    # Gathering

    def _zeros(self, layer: int) -> torch.Tensor:
        return torch.zeros(self.config.hidden_size, self._widths[layer], device=self._source.device)

    def _name(self, layer: int) -> str:
        return f"{get_architecture(self.config).layers}.{layer}"

    def _add(self, supernet: "SuperNetModel", batch: torch.Tensor, first: int) -> None:
        layers = [self._name(layer) for layer in self.layers]
        norms = [str(norm).format(layer=layer) for norm, layer in norms_of_readers(self.config)]
        writers = [module_of(weight, layer) for weight in self.writers for layer in self.layers]
        with recorded_activations(supernet, [*layers[:1], *norms, *writers], layers) as activations:
            supernet.base_model(input_ids=batch, use_cache=False)
        states = [activations.inputs[layers[0]], *(activations.outputs[name] for name in layers)]
        states = [hidden_states.to(self._source.device) for hidden_states in states]
        for layer in self.layers:
            check_hidden_states(states[layer + 1], "the super-network", layer)
        for index, hidden_states in enumerate(states):
            self._states.write(self._rows(index, first, first + len(batch)), hidden_states)
        roots = torch.stack([hidden_states.square().mean(-1).sqrt() for hidden_states in states])
        weights = token_weights(roots.mean(0))
        self._weights[first : first + len(batch)] = weights
        for layer in self.layers:
            inputs = [activations.inputs[module_of(weight, layer)] for weight in self.writers]
            features = _side_by_side(inputs).to(self._source.device)
            self._add_layer(layer, features, states, weights.flatten()[:, None])
        for norm, layer in norms_of_readers(self.config):
            hidden_states = activations.inputs[str(norm).format(layer=layer)].to(self._source.device)
            self.normal[norm, layer].add(self._normalized(hidden_states))

    def _add_layer(self, layer: int, features: torch.Tensor, states: list[torch.Tensor], weights: torch.Tensor) -> None:
        """Add the features of a layer `(tokens, features)`, with hidden states before each layer and at the end."""
        root = weights.sqrt()
        features *= root
        self.features[layer].add(features)
        if not self.absorbs:
            return
        before = root * states[layer].flatten(0, -2)
        torch.addmm(self._before[layer], before.T, features, out=self._before[layer])
        for (of, gap), change in self._changes.items():
            if of == layer:
                changed = root * states[layer + gap].flatten(0, -2) - before
                torch.addmm(change, changed.T, features, out=change)

    def _normalized(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalized hidden states and 1, `(tokens, channels + 1)`."""
        return with_constant(normalized(hidden_states, self.config).flatten(0, -2), True)

    # Moments of a subnet's layers

    def chosen(
        self, layer: int, writers: Sequence[Weight], kept: Callable[[Weight], torch.Tensor | int | None] | None = None
    ) -> torch.Tensor:
        """Ascending indices, among a layer's features, of the inputs of some writers, and of 1 if they have a bias.

        Args:
            layer (`int`): the layer.
            writers (`Sequence[Weight]`): the writers.
            kept (`Callable`, *optional*): gives the inputs of a writer to choose, as `KeptRows` does; all by default.
        """
        chosen, first, sizes = [], 0, Shape.from_config(self.config).of_layer(layer)
        for weight in self.writers:
            inputs = weight.inputs.size(sizes)
            if weight in writers:
                rows = None if kept is None else kept(weight)
                chosen.append(first + (rows if isinstance(rows, torch.Tensor) else torch.arange(rows or inputs)))
            first += inputs
        if biases_of(self._source.weights, writers, layer):
            chosen.append(torch.tensor([first]))
        return torch.cat(chosen).to(self._source.device)

    def written(self, layer: int, writers: Sequence[Weight], chosen: torch.Tensor) -> torch.Tensor:
        """Products of what some writers of a layer write and chosen features of the layer, `(D, chosen)`."""
        matrix = side_by_side(self._source.weights, writers, layer).to(chosen.device, torch.float32)
        return matrix @ self.features[layer](self.chosen(layer, writers), chosen)

    def change(self, layer: int, last: int, chosen: torch.Tensor) -> torch.Tensor:
        """Products of what hidden states change by from before `layer` to before `last`, and features of the layer.

        Args:
            layer (`int`): a layer.
            last (`int`): a later one, or the number of layers.
            chosen (`torch.Tensor`): ascending indices of features.

        Returns:
            `torch.Tensor`: `(D, chosen)`.
        """
        middle = min(last, layer + self.max_gap)
        if middle == layer + 1:
            change = self.written(layer, self.writers, chosen)
        else:
            change = self._changes[layer, middle - layer][:, chosen]
        if last > middle:
            one = chosen.new_tensor([self._widths[layer] - 1])
            reached = torch.cat([self._before[layer][:, chosen] + change, self.features[layer](one, chosen)])
            change = change + self._prediction(middle, last) @ reached
        return change

    def _prediction(self, first: int, last: int) -> torch.Tensor:
        """The matrix `(D, D + 1)` that predicts a change of hidden states from those before it and 1."""
        if (first, last) not in self._predictions:
            self._predictions[first, last] = self._predict(first, last)
        self._predictions.move_to_end((first, last))
        if len(self._predictions) > self._most_predictions:
            self._predictions.popitem(last=False)
        return self._predictions[first, last]

    def _predict(self, first: int, last: int) -> torch.Tensor:
        size, device = self.config.hidden_size, self._source.device
        gram = SymmetricSums(size + 1, device, torch.float64)
        cross = torch.zeros(size, size + 1, dtype=torch.float64, device=device)
        for before, after, weights in zip(
            self._hidden_states(first), self._hidden_states(last), self._weights.split(self._batch_size), strict=True
        ):
            root = weights.flatten()[:, None].sqrt()
            features = root * with_constant(before.flatten(0, -2), True)
            gram.add(features)
            cross += (root * (after - before).flatten(0, -2)).T @ features
        start = torch.zeros_like(cross)
        solved = ridge_solution(gram.full(), cross, start, (size + 1) / self.tokens)
        return (start if solved is None else solved).float()

    def from_embedding(self, layer: int) -> tuple[torch.Tensor, dict[str | None, torch.Tensor]]:
        """Moments that the first kept layer needs where earlier ones are left out.

        Returns:
            `tuple`: products of the change of hidden states up to the layer and its features, `(D, features)`; and, by
            norm of the layer, those of normalized hidden states and the embedding's, each with 1.
        """
        if layer not in self._of_embedding:
            self._of_embedding = {layer: self._from_embedding(layer)}  # of the last first layer alone
        return self._of_embedding[layer]

    @torch.no_grad()
    def _from_embedding(self, layer: int) -> tuple[torch.Tensor, dict[str | None, torch.Tensor]]:
        single = SingleLayer(self._source, layer)
        writers = [module_of(weight) for weight in self.writers]
        norms = dict.fromkeys(weights[0].norm for weights in self.readers)
        change, normal = self._zeros(layer), dict[str | None, Any](dict.fromkeys(norms, 0.0))
        for embedded, before, weights in zip(
            self._hidden_states(0), self._hidden_states(layer), self._weights.split(self._batch_size), strict=True
        ):
            found = single.recorded(before, [*writers, *(str(norm).format(layer=0) for norm in norms)]).inputs
            features = weights.flatten()[:, None] * _side_by_side([found[name] for name in writers])
            change += (before - embedded).flatten(0, -2).T @ features
            for norm in norms:
                normal[norm] += self._normalized(found[str(norm).format(layer=0)]).T @ self._normalized(embedded)
        return change, normal

    def _rows(self, index: int, first: int, last: int) -> range:
        """Rows of blocks in the file of hidden states before a layer."""
        return range(index * self._blocks + first, index * self._blocks + last)

    def _hidden_states(self, index: int) -> Iterable[torch.Tensor]:
        """Hidden states before a layer, batch by batch."""
        for first in range(0, self._blocks, self._batch_size):
            yield self._states.read(self._rows(index, first, min(first + self._batch_size, self._blocks)))


def _side_by_side(inputs: list[torch.Tensor]) -> torch.Tensor:
    """Inputs of writers and 1, `(tokens, features)`."""
    return with_constant(torch.cat([each.flatten(0, -2) for each in inputs], -1), True)


def free_bytes(device: torch.device) -> int:
    """Free bytes of a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _limit(device: torch.device, memory: float | None) -> float:
    """Bytes that may be used on a device."""
    return min(USABLE * free_bytes(device), math.inf if memory is None else 1e9 * memory)
