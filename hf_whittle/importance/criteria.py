"""Criteria of importance.

For entries of every dimension but the layers, such as heads, neurons and channels:

- `magnitude`: L2 norm of all weights that belong to the entry.
- `activation`: L2 norm over sequences of the mean absolute activation over tokens (of an entry with several channels,
  their L2 norm), summed over the modules where it is observed. Entries inside a layer, such as heads and neurons, are
  observed at the input of its output projections, channels at the output of each norm that matrices read (Minitron,
  arXiv 2407.14679).
- `taylor`: mean over batches of the square of the sum of weight times gradient, over all weights that belong to the
  entry: the first-order estimate of the change in loss without it (arXiv 1906.10771).

Entries that are kept together, such as the two channels of a rotary pair, are scored together, each with the same.

For layers: `magnitude` and `taylor` as above; `cosine`, one minus the mean cosine between the input and the output of
the layer (arXiv 2403.03853); `removal`, the increase in cross-entropy without the layer.

Each function gives arrays by `key_of` their dimension and layer.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from ..architectures.dimensions import CHANNELS, HEAD_CHANNELS, LAYERS, Dimension
from ..architectures.registry import get_architecture, head_channels
from ..architectures.table import Axis, Weight
from ..errors import SubnetError
from ..evaluation import cross_entropy, evaluating
from ..models.placement import input_device, weights_of
from ..models.rows import unsliced_sizes
from ..models.weights import all_weights
from ..progress import progress_bar
from ..subnet import Shape, SubnetConfig

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

Arrays = dict[str, np.ndarray]


def key_of(dimension: Dimension, layer: int | None) -> str:
    """Key of the scores of a dimension, in a layer if layers have scores of their own."""
    return f"{dimension.name}.{layer}" if dimension.per_layer or dimension is LAYERS else dimension.name


def model_weights(model: "PreTrainedModel") -> Iterator[tuple[Weight, int | None]]:
    """Every weight of a model with its layer; a shared one once."""
    return ((weight, layer) for weight, layer in all_weights(model.config) if not weight.is_shared(model.config))


def magnitudes(model: "PreTrainedModel") -> Arrays:
    """Scores by the `magnitude` criterion."""
    weights = _scaling(model)
    return {key: total.sqrt().numpy() for key, total in _owned(model, lambda name: weights(name) ** 2).items()}


def _scaling(model: "PreTrainedModel") -> Callable[[str], torch.Tensor]:
    """Gives weights of a model by name, those of norms as they scale."""
    weights, offset = weights_of(model), get_architecture(model.config).norms.offset
    of_norms = {weight.name.format(layer=layer) for weight, layer in model_weights(model) if weight.is_norm}

    def scaling(name: str) -> torch.Tensor:
        values = weights[name].detach().float()
        return values + offset if name in of_norms else values

    return scaling


def taylor(model: "PreTrainedModel", input_ids: torch.Tensor, batch_size: int, progress: bool) -> Arrays:
    """Scores by the `taylor` criterion."""
    parameters = dict(model.named_parameters())
    needed = {name: parameter.requires_grad for name, parameter in parameters.items()}
    batches = torch.split(input_ids, batch_size)
    weights = _scaling(model)
    totals: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
    with evaluating(model), torch.enable_grad():
        model.requires_grad_(True)
        try:
            for batch in progress_bar(batches, desc="importance", unit="batch", disable=not progress):
                loss = _loss(model, batch.to(input_device(model)))
                gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
                changes = _owned(model, partial(_product, gradients, weights))
                for key, change in changes.items():
                    totals[key] = totals[key] + change**2 / len(batches)
        finally:
            for name, parameter in parameters.items():
                parameter.requires_grad_(needed[name])
    return {key: total.numpy() for key, total in totals.items()}


def _product(gradients: Mapping[str, torch.Tensor], weights: Callable[[str], torch.Tensor], name: str) -> torch.Tensor:
    return gradients[name].float() * weights(name)


def _loss(model: "PreTrainedModel", batch: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits.float(), batch[:, 1:].flatten().to(logits.device))


def activations(model: "PreTrainedModel", input_ids: torch.Tensor, batch_size: int, progress: bool) -> Arrays:
    """Scores by the `activation` criterion, and by `cosine` for layers."""
    sums = _Activations(model)
    with evaluating(model), torch.inference_mode(), contextlib.ExitStack() as hooks:
        for handle in sums.observe(model):
            hooks.callback(handle.remove)
        for batch in progress_bar(
            torch.split(input_ids, batch_size), desc="importance", unit="batch", disable=not progress
        ):
            sums.shape = batch.shape
            model.base_model(input_ids=batch.to(input_device(model)), use_cache=False)
    scores: dict[str, Any] = {key: np.float32(total / input_ids.numel()) for key, total in sums.distances.items()}
    for (key, _), total in sums.squares.items():
        scores[key] = scores.get(key, 0) + total.sqrt().numpy()
    return scores


class _Activations:
    """Sums over forward passes, gathered by hooks.

    Args:
        model (`PreTrainedModel`): the model.

    Attributes:
        squares (`dict`): by key and module, the sum over sequences of squared mean activations, `(entries,)`.
        distances (`dict`): by layer, the sum over tokens of one minus the cosine of input and output.
        shape (`torch.Size`): of the token ids of the forward pass, `(blocks, tokens)`.
    """

    shape: torch.Size

    def __init__(self, model: "PreTrainedModel"):
        self.squares: dict[tuple[str, str], Any] = defaultdict(float)
        self.distances: dict[str, float] = defaultdict(float)
        self._layout = _Layout(model)

    def observe(self, model: "PreTrainedModel") -> "Iterator[RemovableHandle]":
        """Register the hooks on a model."""
        norms = set()
        for weight, layer in all_weights(model.config):
            if weight.is_matmul and CHANNELS not in weight.inputs.dimensions:  # an output projection
                name = weight.module.format(layer=layer)
                add = partial(self._add, name, weight.inputs, layer)
                yield model.get_submodule(name).register_forward_pre_hook(lambda _, inputs, add=add: add(inputs[0]))
            elif weight.norm is not None:
                norms.add(weight.norm.format(layer=layer))
        for name in sorted(norms):
            add = partial(self._add, name, Axis(CHANNELS), None)
            yield model.get_submodule(name).register_forward_hook(lambda _, inputs, output, add=add: add(output))
        layers: Any = model.get_submodule(get_architecture(model.config).layers)
        for index, module in enumerate(layers):
            yield module.register_forward_hook(partial(self._compare, key_of(LAYERS, index)))

    def _add(self, module: str, axis: Axis, layer: int | None, activations: torch.Tensor) -> None:
        by_token = activations.detach().float().reshape(*self.shape, -1)  # an MLP may read blocks end to end
        factors = by_token.unflatten(-1, self._layout.factor_sizes(axis, layer))
        for number, dimension in _sliced(axis):
            others = [2 + other for other in range(len(axis.factors)) if other != number]
            by_entry = torch.linalg.vector_norm(factors, dim=others) if others else factors.abs()
            entries = self._layout.grouped(by_entry.square(), dimension).sqrt()
            self.squares[key_of(dimension, layer), module] += entries.mean(1).square().sum(0).cpu()

    def _compare(self, key: str, module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        before, after = inputs[0].float(), (output[0] if isinstance(output, tuple) else output).float()
        self.distances[key] += (1 - F.cosine_similarity(before.to(after.device), after, dim=-1)).sum().item()


def removal(model: Any, input_ids: torch.Tensor, batch_size: int, progress: bool) -> np.ndarray:
    """Increase in cross-entropy without each layer of a super-network, `(layers,)`."""
    full, layers = SubnetConfig.full(model.config), range(model.config.num_hidden_layers)
    if len(layers) == 1:
        raise SubnetError("layer_criterion='removal' needs a model of at least two layers")
    whole = cross_entropy(model, input_ids, batch_size)
    losses = []
    for layer in progress_bar(layers, desc="importance of layers", unit="layer", disable=not progress):
        without = full.with_layers([other for other in layers if other != layer])
        with model.active_subnet(without):
            losses.append(cross_entropy(model, input_ids, batch_size) - whole)
    return np.array(losses, dtype=np.float32)


class _Layout:
    """Entries of every dimension along the axes of a model's weights.

    Args:
        model (`PreTrainedModel`): the model.
    """

    def __init__(self, model: "PreTrainedModel"):
        self._shape, self._unsliced = Shape.from_config(model.config), unsliced_sizes(model.config)
        self._head_channels = torch.tensor(head_channels(model.config))

    def factor_sizes(self, axis: Axis, layer: int | None) -> tuple[int, ...]:
        """Sizes of the factors of an axis."""
        return axis.factor_sizes({**self._unsliced, **self._shape.of_layer(layer or 0)})

    def grouped(self, values: torch.Tensor, dimension: Dimension) -> torch.Tensor:
        """Values in the order of entries, each the sum over all entries that are kept together, `(..., entries)`."""
        if dimension is HEAD_CHANNELS:
            values = values[..., self._head_channels.to(values.device)]
        if dimension.unit == 1:
            return values
        group = torch.arange(values.shape[-1], device=values.device) // dimension.unit
        return torch.zeros_like(values).index_add(-1, group, values)[..., group]


def _sliced(axis: Axis) -> Iterator[tuple[int, Dimension]]:
    """The factors of an axis of which a part can be kept, with their numbers."""
    return (
        (number, factor)
        for number, factor in enumerate(axis.factors)
        if isinstance(factor, Dimension) and factor.is_sliced and not factor.is_looked_up
    )


def _owned(model: "PreTrainedModel", values: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sums over the weights of each entry and layer, where `values(name)` is a tensor shaped like the weight."""
    layout = _Layout(model)
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
    for weight, layer in model_weights(model):
        value = values(weight.name.format(layer=layer))
        if layer is not None:
            key = key_of(LAYERS, layer)
            sums[key] = sums[key] + value.sum().cpu()
        for number, axis in enumerate(weight.axes):
            along = (
                value.sum(dim=[other for other in range(value.ndim) if other != number]) if value.ndim > 1 else value
            )
            factors = along.unflatten(0, layout.factor_sizes(axis, layer))
            for factor, dimension in _sliced(axis):
                entries = factors.movedim(factor, -1).reshape(-1, factors.shape[factor]).sum(0)
                key = key_of(dimension, layer)
                sums[key] = sums[key] + layout.grouped(entries, dimension).cpu()
    return sums
