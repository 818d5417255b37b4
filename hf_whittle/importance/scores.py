"""Scores of the importance of a model's layers and of the entries of every other dimension."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..architectures.dimensions import CHANNELS, LAYERS, Dimension
from ..architectures.registry import get_architecture
from ..compat.torch import uncompiled
from ..errors import CheckpointError, SubnetError
from ..evaluation import as_input_ids
from ..evaluation.batches import blocks_for
from ..files.atomic import atomic_path
from ..files.paths import expanded
from ..fingerprints import fingerprint, model_fingerprint
from ..models.placement import weights_of
from ..models.supernet import SuperNetModel
from ..models.weights import check_finite, check_no_subnet, check_plain_weights
from ..subnet import DIMENSIONS, Shape
from .criteria import Arrays, activations, key_of, magnitudes, removal, taylor

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

Criterion = Literal["magnitude", "activation", "taylor"]
LayerCriterion = Literal["magnitude", "cosine", "taylor", "removal"]
CRITERIA = get_args(Criterion)
LAYER_CRITERIA = get_args(LayerCriterion)

_TAYLOR_BATCH = 16
_LAYERS = "layers"
_PER_LAYER = {dimension.name: dimension.per_layer for dimension in DIMENSIONS if dimension is not LAYERS}


Entries = np.ndarray | tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class ImportanceScores:
    """Scores of every layer of a model, and of every entry of its other dimensions; the higher, the more important.

    Scores compare only within one dimension and layer.

    Args:
        layers (`np.ndarray`): `(layers,)`.
        entries (`Mapping[str, np.ndarray | tuple[np.ndarray, ...]]`): by the name of a dimension in `SubnetConfig`,
            `(entries,)`, or a tuple of these by layer where each layer keeps entries of its own.
        settings (`dict`): criteria, text and model of the measurement.
    """

    layers: np.ndarray
    entries: Mapping[str, Entries]
    settings: dict[str, Any] = field(default_factory=dict)

    def of(self, dimension: Dimension) -> Any:
        """Scores of a dimension, by layer where each layer keeps entries of its own; `None` if it was not scored."""
        return self.layers if dimension is LAYERS else self.entries.get(dimension.name)

    def check(self, shape: Shape) -> None:
        """Raise `SubnetError` unless there is a score for every entry of a model of this shape.

        Dimensions that subnets need not name may be without scores.
        """
        scored = self._shape()
        if scored is None or scored.filled(shape) != shape or len(self.layers) != shape.num_hidden_layers:
            raise SubnetError(f"these scores are for a model with {scored}, got one with {shape}; score this model")
        if not all(np.isfinite(array).all() for array in self._arrays().values()):
            raise SubnetError("some of these scores are NaN or Inf; score the model in float32")

    def _shape(self) -> Shape | None:
        """Sizes of the model that was scored; `None` if it has no channels."""
        sizes: dict[str, Any] = {
            name: tuple(map(len, scores)) if isinstance(scores, tuple) else len(scores)
            for name, scores in self.entries.items()
        }
        return Shape(**sizes) if CHANNELS.name in sizes else None

    def _arrays(self) -> dict[str, np.ndarray]:
        """All arrays by their names in a file."""
        arrays = {_LAYERS: self.layers}
        for name, scores in self.entries.items():
            if isinstance(scores, tuple):
                arrays |= {f"{name}.{layer}": of_layer for layer, of_layer in enumerate(scores)}
            else:
                arrays[name] = scores
        return arrays

    def save(self, path: str | Path) -> None:
        """Write the scores as safetensors."""
        with atomic_path(path) as temporary:
            contiguous = {name: np.ascontiguousarray(array) for name, array in self._arrays().items()}
            content = save(contiguous, {"settings": json.dumps(self.settings)})
            temporary.write_bytes(content)  # `save_file` leaves a file of its own if killed

    @classmethod
    def load(cls, path: str | Path) -> "ImportanceScores":
        """Read scores from a file that `save` wrote.

        Raises:
            CheckpointError: if the file is missing or damaged, or of an earlier version.
        """
        try:
            with safe_open(expanded(path), framework="np") as file:
                layers = file.get_tensor(_LAYERS)
                entries: dict[str, Entries] = {}
                for name in dict.fromkeys(key.partition(".")[0] for key in file.keys() if key != _LAYERS):  # noqa: SIM118
                    if name not in _PER_LAYER:
                        raise ValueError(f"it has scores of {name!r}, which is no dimension of a subnet")
                    of_layers = (file.get_tensor(f"{name}.{layer}") for layer in range(len(layers)))
                    entries[name] = tuple(of_layers) if _PER_LAYER[name] else file.get_tensor(name)
                if CHANNELS.name not in entries:
                    raise ValueError(f"it has no scores of {CHANNELS.name}")
                return cls(layers, entries, json.loads(file.metadata()["settings"]))
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
    batch_size: int | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> ImportanceScores:
    """Score layers, and the entries of every other dimension, in one pass over some text.

    `taylor` and `removal` take passes of their own.

    Args:
        model (`PreTrainedModel`): a super-network, a stock model or a student; it is not changed.
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids, `(blocks, block_size)`.
        criterion (`str`, *optional*, defaults to `"activation"`): criterion of entries, such as heads, neurons
            and channels.
        layer_criterion (`str`, *optional*, defaults to `"cosine"`): criterion of layers; `"removal"` needs a
            super-network.
        batch_size (`int`, *optional*): blocks at a time; by default 4,096 tokens on a CPU and 16,384 on another
            device. `taylor`, which squares after each batch, takes 16 blocks by default.
        cache_dir (`str` or `Path`, *optional*): folder of scores, from which those of the same model, text and settings
            are read.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Raises:
        ValueError: if a criterion is unknown, or `batch_size` is below 1.
        ArchitectureError: if the model has no table, or is not for causal language modeling.
        WeightsError: if its weights are quantized or adapted or, for `taylor`, offloaded.
        CheckpointError: if its weights contain NaN or Inf.
        SubnetError: if `removal` is asked of a model that is no super-network, or a subnet is active.
        DataError, VocabularyError: if the blocks are empty or not in the model's vocabulary.
    """
    _check_settings(criterion, layer_criterion, batch_size)
    has_taylor = "taylor" in (criterion, layer_criterion)
    model = uncompiled(model)
    check_whole(model, may_be_offloaded=not has_taylor)
    if layer_criterion == "removal" and not isinstance(model, SuperNetModel):
        raise SubnetError("layer_criterion='removal' runs the model without a layer: load it as a super-network")
    input_ids = as_input_ids(blocks, model.config.vocab_size)
    settings = {
        "criterion": criterion,
        "layer_criterion": layer_criterion,
        "batch_size": (batch_size or _TAYLOR_BATCH) if has_taylor else None,  # other scores do not depend on it
        "block_size": input_ids.shape[1],
        "data": fingerprint(input_ids),
        "model": model_fingerprint(model),
    }
    cached = None
    if cache_dir is not None:
        dimensions = [dimension.name for dimension in get_architecture(model.config).dimensions]
        digest = hashlib.sha256(json.dumps([settings, dimensions]).encode()).hexdigest()[:16]
        cached = Path(expanded(cache_dir)) / f"importance-{digest}.safetensors"
        if cached.is_file():
            return ImportanceScores.load(cached)
    scores = _score(model, input_ids, settings, batch_size, progress)
    if cached is not None:
        scores.save(cached)
    return scores


def _check_settings(criterion: str, layer_criterion: str, batch_size: int | None) -> None:
    chosen = (("criterion", criterion, CRITERIA), ("layer_criterion", layer_criterion, LAYER_CRITERIA))
    for name, value, known in chosen:
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def _score(
    model: "PreTrainedModel",
    input_ids: torch.Tensor,
    settings: dict[str, Any],
    batch_size: int | None,
    progress: bool,
) -> ImportanceScores:
    how = (model, input_ids, batch_size or blocks_for(model, input_ids.shape[1], in_chunks=True), progress)
    wanted = {settings["criterion"], settings["layer_criterion"]}
    found: dict[str, Arrays] = {}
    if "magnitude" in wanted:
        found["magnitude"] = magnitudes(model)
    if wanted & {"activation", "cosine"}:
        found["activation"] = found["cosine"] = activations(*how)
    if "taylor" in wanted:
        found["taylor"] = taylor(model, input_ids, settings["batch_size"], progress)
    layers = range(model.config.num_hidden_layers)
    if settings["layer_criterion"] == "removal":
        of_layers = removal(*how)
    else:
        by_key = found[settings["layer_criterion"]]
        of_layers = np.stack([by_key[key_of(LAYERS, layer)] for layer in layers])
    by_key = found[settings["criterion"]]
    entries: dict[str, Entries] = {
        dimension.name: tuple(by_key[key_of(dimension, layer)] for layer in layers)
        if dimension.per_layer
        else by_key[dimension.name]
        for dimension in get_architecture(model.config).dimensions
        if dimension is not LAYERS
    }
    return ImportanceScores(of_layers, entries, settings)


def check_whole(model: "PreTrainedModel", *, may_be_offloaded: bool = False) -> None:
    """Raise an error unless a model is causal, has a table and finite plain weights, and no subnet is active."""
    check_no_subnet(model)
    check_plain_weights(model, may_be_offloaded=may_be_offloaded)
    weights = weights_of(model)
    for name, _ in model.named_parameters():
        check_finite(name, weights[name])
