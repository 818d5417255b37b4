"""How much the layers, heads, neurons and channels of a model matter.

Criteria for heads, neurons and channels:

- `magnitude`: L2 norm of all weights that belong to the entry.
- `activation`: L2 norm over sequences of the mean absolute activation over tokens (of a head, the L2 norm over its
  channels): of heads and neurons at the input of their output projection, of channels at the output of each layer norm,
  summed (Minitron, arXiv 2407.14679).
- `taylor`: mean over batches of the square of the sum of weight times gradient, over all weights that belong to the
  entry: the first-order estimate of how the loss changes without it (arXiv 1906.10771).

Criteria for layers: `magnitude` and `taylor` as above; `cosine`, one minus the mean cosine between what goes into the
layer and what comes out (arXiv 2403.03853); `removal`, the cross-entropy without the layer less that with it.
"""

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from ..compat import uncompiled
from ..errors import CheckpointError, SubnetError
from ..evaluation import as_input_ids, cross_entropy, evaluating
from ..files.atomic import atomic_path
from ..files.paths import expanded
from ..fingerprints import fingerprint, model_fingerprint
from ..models.architecture import Axis, Dimension, Weight, get_architecture, head_dim
from ..models.supernet import SuperNetModel
from ..models.weights import all_weights, check_finite, check_no_subnet, check_plain_weights
from ..subnet import Shape, SubnetConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

Criterion = Literal["magnitude", "activation", "taylor"]
LayerCriterion = Literal["magnitude", "cosine", "taylor", "removal"]
CRITERIA = ("magnitude", "activation", "taylor")
LAYER_CRITERIA = ("magnitude", "cosine", "taylor", "removal")


@dataclass(frozen=True, eq=False)
class ImportanceScores:
    """A score for every layer, head, neuron and channel of a model; the higher, the more it matters.

    Scores compare within one dimension and layer only.

    Args:
        layers (`np.ndarray`): `(layers,)`.
        heads (`tuple[np.ndarray, ...]`): `(heads,)` for each layer.
        neurons (`tuple[np.ndarray, ...]`): `(neurons,)` for each layer.
        channels (`np.ndarray`): `(channels,)`.
        settings (`dict`): how they were measured.
    """

    layers: np.ndarray
    heads: tuple[np.ndarray, ...]
    neurons: tuple[np.ndarray, ...]
    channels: np.ndarray
    settings: dict[str, Any] = field(default_factory=dict)

    def check(self, shape: Shape) -> None:
        """Raise `SubnetError` unless there is a score for every entry of a model of this shape."""
        scored = Shape(len(self.channels), tuple(map(len, self.heads)), tuple(map(len, self.neurons)))
        if scored != shape or len(self.layers) != shape.num_hidden_layers:
            raise SubnetError(f"these scores are of a model with {scored}, got one with {shape}; score this model")
        if not all(np.isfinite(scores).all() for scores in (self.layers, self.channels, *self.heads, *self.neurons)):
            raise SubnetError("some of these scores are not finite; score the model in float32")

    def save(self, path: str | Path) -> None:
        """Write the scores as safetensors."""
        arrays = {"layers": self.layers, "channels": self.channels}
        for layer, (heads, neurons) in enumerate(zip(self.heads, self.neurons, strict=True)):
            arrays |= {f"heads.{layer}": heads, f"neurons.{layer}": neurons}
        with atomic_path(path) as temporary:
            save_file(
                {name: np.ascontiguousarray(array) for name, array in arrays.items()},
                temporary,
                metadata={"settings": json.dumps(self.settings)},
            )

    @classmethod
    def load(cls, path: str | Path) -> "ImportanceScores":
        """Read scores that `save` wrote.

        Raises:
            CheckpointError: if the file is missing or damaged.
        """
        try:
            with safe_open(expanded(path), framework="np") as file:
                layers = file.get_tensor("layers")
                return cls(
                    layers=layers,
                    heads=tuple(file.get_tensor(f"heads.{layer}") for layer in range(len(layers))),
                    neurons=tuple(file.get_tensor(f"neurons.{layer}") for layer in range(len(layers))),
                    channels=file.get_tensor("channels"),
                    settings=json.loads(file.metadata()["settings"]),
                )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"cannot read importance scores from {path}: {error}; remove the file and score the model again"
            ) from error


def score_importance(
    model: "PreTrainedModel",
    blocks: "Dataset | torch.Tensor",
    *,
    criterion: Criterion = "activation",
    layer_criterion: LayerCriterion = "cosine",
    batch_size: int = 16,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> ImportanceScores:
    """Score all that a subnet can keep, from one pass over some text; `taylor` and `removal` take passes of their own.

    Args:
        model (`PreTrainedModel`): a super-network, a stock GPT-NeoX or a student; left as it was.
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids, `(blocks, block_size)`.
        criterion (`str`, *optional*, defaults to `"activation"`): how heads, neurons and channels are scored.
        layer_criterion (`str`, *optional*, defaults to `"cosine"`): how layers are scored. `"removal"` needs a
            super-network.
        batch_size (`int`, *optional*, defaults to 16): blocks at a time; `taylor` squares after each batch.
        cache_dir (`str` or `Path`, *optional*): folder that keeps scores; the same model, text and settings are not
            scored twice.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Raises:
        ValueError: if a criterion is not known, or `batch_size` is below 1.
        ArchitectureError: if the model has no table, or is not for causal language modeling.
        WeightsError: if its weights are quantized, offloaded or adapted; `CheckpointError` if they are not finite.
        SubnetError: if `removal` is asked of a model that is no super-network, or a subnet is active.
        DataError, VocabularyError: if the blocks are empty or not in the model's vocabulary.
    """
    for name, value, known in (
        ("criterion", criterion, CRITERIA),
        ("layer_criterion", layer_criterion, LAYER_CRITERIA),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    model = uncompiled(model)
    check_whole(model)
    if layer_criterion == "removal" and not isinstance(model, SuperNetModel):
        raise SubnetError("layer_criterion='removal' runs the model without a layer: load it as a super-network")
    input_ids = as_input_ids(blocks, model.config.vocab_size)
    settings = {
        "criterion": criterion,
        "layer_criterion": layer_criterion,
        "batch_size": batch_size,
        "block_size": input_ids.shape[1],
        "data": fingerprint(input_ids),
        "model": model_fingerprint(model),
    }
    cached = None
    if cache_dir is not None:
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        cached = Path(expanded(cache_dir)) / f"importance-{digest}.safetensors"
        if cached.is_file():
            return ImportanceScores.load(cached)
    scores = _score(model, input_ids, settings, progress)
    if cached is not None:
        scores.save(cached)
    return scores


def _score(
    model: "PreTrainedModel", input_ids: torch.Tensor, settings: dict[str, Any], progress: bool
) -> ImportanceScores:
    wanted = {settings["criterion"], settings["layer_criterion"]}
    found: dict[str, dict[str, np.ndarray]] = {}
    if "magnitude" in wanted:
        found["magnitude"] = _magnitudes(model)
    if wanted & {"activation", "cosine"}:
        found["activation"] = found["cosine"] = _activations(model, input_ids, settings["batch_size"], progress)
    if "taylor" in wanted:
        found["taylor"] = _taylor(model, input_ids, settings["batch_size"], progress)
    layers = range(model.config.num_hidden_layers)
    widths = found[settings["criterion"]]
    if settings["layer_criterion"] == "removal":
        of_layers = _removal(model, input_ids, settings["batch_size"], progress)
    else:
        of_layers = np.stack([found[settings["layer_criterion"]][f"layer.{layer}"] for layer in layers])
    return ImportanceScores(
        layers=of_layers,
        heads=tuple(widths[_key(Dimension.HEADS, layer)] for layer in layers),
        neurons=tuple(widths[_key(Dimension.NEURONS, layer)] for layer in layers),
        channels=widths[_key(Dimension.CHANNELS, None)],
        settings=settings,
    )


def _key(dimension: Dimension, layer: int | None) -> str:
    """Where the scores of a dimension are gathered: channels run through all layers."""
    return "channels" if dimension is Dimension.CHANNELS else f"{dimension.value}.{layer}"


def _by_entry(values: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """Sum over all that belongs to an entry: every axis but one, and the rows of a block. `(entries,)`."""
    summed = values.sum(dim=[other for other in range(values.ndim) if other != axis]) if values.ndim > 1 else values
    return summed.view(-1, block).sum(1)


def _owned(model: "PreTrainedModel", values: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """For every entry and layer, the sum of `values(name)`, tensors shaped like the weights, over what it owns."""
    config = model.config
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
    for weight, layer in model_weights(model):
        value = values(weight.name.format(layer=layer))
        if layer is not None:
            sums[f"layer.{layer}"] = sums[f"layer.{layer}"] + value.sum().cpu()
        for axis_index, axis in enumerate(weight.axes):
            if axis.dimension is not Dimension.VOCABULARY:
                key = _key(axis.dimension, layer)
                sums[key] = sums[key] + _by_entry(value, axis_index, axis.block_size(head_dim(config))).cpu()
    return sums


def model_weights(model: "PreTrainedModel") -> Iterator[tuple[Weight, int | None]]:
    """Every weight of a model, with its layer; a shared one once."""
    return ((weight, layer) for weight, layer in all_weights(model.config) if not weight.is_shared(model.config))


def _magnitudes(model: "PreTrainedModel") -> dict[str, np.ndarray]:
    state = model.state_dict()
    return {key: total.sqrt().numpy() for key, total in _owned(model, lambda name: state[name].float() ** 2).items()}


def _taylor(
    model: "PreTrainedModel", input_ids: torch.Tensor, batch_size: int, progress: bool
) -> dict[str, np.ndarray]:
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


def _activations(
    model: "PreTrainedModel", input_ids: torch.Tensor, batch_size: int, progress: bool
) -> dict[str, np.ndarray]:
    """Activation scores, and `1 - cosine` of the layers."""
    squares: dict[tuple[str, str], Any] = defaultdict(float)  # by key and module
    distances: dict[str, float] = defaultdict(float)
    width = head_dim(model.config)

    def observe(key: str, module: str, axis: Axis) -> Callable[[torch.Tensor], None]:
        def add(states: torch.Tensor) -> None:
            entries = states.detach().float().unflatten(-1, (-1, axis.block_size(width))).norm(dim=-1)
            squares[key, module] += entries.mean(1).square().sum(0).cpu()

        return add

    def compare(layer: int) -> Callable[..., None]:
        def add(module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            before, after = inputs[0], output[0] if isinstance(output, tuple) else output
            distances[f"layer.{layer}"] += (1 - F.cosine_similarity(before.float(), after.float(), dim=-1)).sum().item()

        return add

    with evaluating(model), torch.inference_mode(), contextlib.ExitStack() as hooks:
        for weight, layer in model_weights(model):
            name = weight.name.format(layer=layer).removesuffix(".weight")
            if not weight.name.endswith(".weight"):
                continue
            module = model.get_submodule(name)
            if weight.is_matmul and len(weight.axes) == 2 and weight.axes[1].dimension in _HIDDEN:
                add = observe(_key(weight.axes[1].dimension, layer), name, weight.axes[1])
                handle = module.register_forward_pre_hook(lambda _, inputs, add=add: add(inputs[0]))
            elif [axis.dimension for axis in weight.axes] == [Dimension.CHANNELS]:
                add = observe(_key(Dimension.CHANNELS, None), name, weight.axes[0])
                handle = module.register_forward_hook(lambda _, inputs, output, add=add: add(output))
            else:
                continue
            hooks.callback(handle.remove)
        layers: Any = model.get_submodule(get_architecture(model.config).layers)
        for layer, module in enumerate(layers):
            hooks.callback(module.register_forward_hook(compare(layer)).remove)
        for batch in tqdm(torch.split(input_ids, batch_size), desc="importance", unit="batch", disable=not progress):
            model.base_model(input_ids=batch.to(model.device), use_cache=False)
    scores: dict[str, Any] = {key: np.float32(total / input_ids.numel()) for key, total in distances.items()}
    for (key, _), total in squares.items():
        scores[key] = scores.get(key, 0) + total.sqrt().numpy()
    return scores


_HIDDEN = (Dimension.HEADS, Dimension.NEURONS)


def _removal(model: Any, input_ids: torch.Tensor, batch_size: int, progress: bool) -> np.ndarray:
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


def check_whole(model: "PreTrainedModel") -> None:
    """Raise an error unless this is a causal language model with a table, plain weights and no active subnet."""
    check_no_subnet(model)
    check_plain_weights(model)
    for name, parameter in model.named_parameters():
        check_finite(name, parameter)
