"""Criteria of importance.

For heads, neurons and channels:

- `magnitude`: L2 norm of all weights that belong to the entry.
- `activation`: L2 norm over sequences of the mean absolute activation over tokens (of a head, the L2 norm over its
  channels). Heads and neurons are observed at the input of their output projection, channels at the output of each
  layer norm, summed over the norms (Minitron, arXiv 2407.14679).
- `taylor`: mean over batches of the square of the sum of weight times gradient, over all weights that belong to the
  entry: the first-order estimate of the change in loss without it (arXiv 1906.10771).

For layers: `magnitude` and `taylor` as above; `cosine`, one minus the mean cosine between the input and the output of
the layer (arXiv 2403.03853); `removal`, the increase in cross-entropy without the layer.

Each function gives arrays by key: `"channels"`, `"heads.{layer}"`, `"neurons.{layer}"` and `"layer.{layer}"`.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..errors import SubnetError
from ..evaluation import cross_entropy, evaluating
from ..models.architecture import Axis, Dimension, Weight, get_architecture, head_dim
from ..models.weights import all_weights
from ..subnet import SubnetConfig

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

Arrays = dict[str, np.ndarray]
_HIDDEN = (Dimension.HEADS, Dimension.NEURONS)


def key_of(dimension: Dimension, layer: int | None) -> str:
    """Key of the scores of a dimension; channels run through all layers."""
    return "channels" if dimension is Dimension.CHANNELS else f"{dimension.value}.{layer}"


def model_weights(model: "PreTrainedModel") -> Iterator[tuple[Weight, int | None]]:
    """Every weight of a model with its layer; a shared one once."""
    return ((weight, layer) for weight, layer in all_weights(model.config) if not weight.is_shared(model.config))


def magnitudes(model: "PreTrainedModel") -> Arrays:
    """Scores by the `magnitude` criterion."""
    state = model.state_dict()
    return {key: total.sqrt().numpy() for key, total in _owned(model, lambda name: state[name].float() ** 2).items()}


def taylor(model: "PreTrainedModel", input_ids: torch.Tensor, batch_size: int, progress: bool) -> Arrays:
    """Scores by the `taylor` criterion."""
    parameters = dict(model.named_parameters())
    needed = {name: parameter.requires_grad for name, parameter in parameters.items()}
    batches = torch.split(input_ids, batch_size)
    totals: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
    with evaluating(model), torch.enable_grad():
        model.requires_grad_(True)
        try:
            for batch in tqdm(batches, desc="importance", unit="batch", disable=not progress):
                loss = _loss(model, batch.to(model.device))
                gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
                changes = _owned(model, partial(_product, gradients, parameters))
                for key, change in changes.items():
                    totals[key] = totals[key] + change**2 / len(batches)
        finally:
            for name, parameter in parameters.items():
                parameter.requires_grad_(needed[name])
    return {key: total.numpy() for key, total in totals.items()}


def _product(gradients: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return gradients[name].float() * parameters[name].detach().float()


def _loss(model: "PreTrainedModel", batch: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits.float(), batch[:, 1:].flatten())


def activations(model: "PreTrainedModel", input_ids: torch.Tensor, batch_size: int, progress: bool) -> Arrays:
    """Scores by the `activation` criterion, and by `cosine` for layers."""
    sums = _Activations(model)
    with evaluating(model), torch.inference_mode(), contextlib.ExitStack() as hooks:
        for handle in sums.observe(model):
            hooks.callback(handle.remove)
        for batch in tqdm(torch.split(input_ids, batch_size), desc="importance", unit="batch", disable=not progress):
            model.base_model(input_ids=batch.to(model.device), use_cache=False)
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
    """

    def __init__(self, model: "PreTrainedModel"):
        self.squares: dict[tuple[str, str], Any] = defaultdict(float)
        self.distances: dict[str, float] = defaultdict(float)
        self._width = head_dim(model.config)

    def observe(self, model: "PreTrainedModel") -> "Iterator[RemovableHandle]":
        """Register the hooks on a model."""
        for weight, layer in model_weights(model):
            if weight.name.endswith(".weight"):
                yield from self._observe_weight(model, weight, layer)
        layers: Any = model.get_submodule(get_architecture(model.config).layers)
        for index, module in enumerate(layers):
            yield module.register_forward_hook(partial(self._compare, f"layer.{index}"))

    def _observe_weight(
        self, model: "PreTrainedModel", weight: Weight, layer: int | None
    ) -> "Iterator[RemovableHandle]":
        """Observe the input of an output projection, or the output of a norm."""
        name = weight.name.format(layer=layer).removesuffix(".weight")
        module, axis = model.get_submodule(name), weight.axes[-1]
        add = partial(self._add, key_of(axis.dimension, layer), name, axis)
        if weight.is_matmul and len(weight.axes) == 2 and axis.dimension in _HIDDEN:
            yield module.register_forward_pre_hook(lambda _, inputs: add(inputs[0]))
        elif [axis.dimension for axis in weight.axes] == [Dimension.CHANNELS]:
            yield module.register_forward_hook(lambda _, inputs, output: add(output))

    def _add(self, key: str, module: str, axis: Axis, activations: torch.Tensor) -> None:
        entries = activations.detach().float().unflatten(-1, (-1, axis.block_size(self._width))).norm(dim=-1)
        self.squares[key, module] += entries.mean(1).square().sum(0).cpu()

    def _compare(self, key: str, module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        before, after = inputs[0], output[0] if isinstance(output, tuple) else output
        self.distances[key] += (1 - F.cosine_similarity(before.float(), after.float(), dim=-1)).sum().item()


def removal(model: Any, input_ids: torch.Tensor, batch_size: int, progress: bool) -> np.ndarray:
    """Increase in cross-entropy without each layer of a super-network, `(layers,)`."""
    full, layers = SubnetConfig.full(model.config), range(model.config.num_hidden_layers)
    if len(layers) == 1:
        raise SubnetError("layer_criterion='removal' needs a model of at least two layers")
    whole = cross_entropy(model, input_ids, batch_size)
    losses = []
    for layer in tqdm(layers, desc="importance of layers", unit="layer", disable=not progress):
        without = full.with_layers([other for other in layers if other != layer])
        with model.active_subnet(without):
            losses.append(cross_entropy(model, input_ids, batch_size) - whole)
    return np.array(losses, dtype=np.float32)


def _by_entry(values: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """Sum over every axis but one, and over the `block` rows of each entry along this one. `(entries,)`."""
    summed = values.sum(dim=[other for other in range(values.ndim) if other != axis]) if values.ndim > 1 else values
    return summed.view(-1, block).sum(1)


def _owned(model: "PreTrainedModel", values: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sums over the weights of each entry and layer, where `values(name)` is a tensor shaped like the weight."""
    config = model.config
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
    for weight, layer in model_weights(model):
        value = values(weight.name.format(layer=layer))
        if layer is not None:
            sums[f"layer.{layer}"] = sums[f"layer.{layer}"] + value.sum().cpu()
        for axis_index, axis in enumerate(weight.axes):
            if axis.dimension is not Dimension.VOCABULARY:
                key = key_of(axis.dimension, layer)
                sums[key] = sums[key] + _by_entry(value, axis_index, axis.block_size(head_dim(config))).cpu()
    return sums
