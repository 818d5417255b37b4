"""Scores of the importance of a model's layers, heads, neurons and channels."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..compat import uncompiled
from ..errors import CheckpointError, SubnetError
from ..evaluation import as_input_ids
from ..files.atomic import atomic_path
from ..files.paths import expanded
from ..fingerprints import fingerprint, model_fingerprint
from ..models.architecture import Dimension
from ..models.supernet import SuperNetModel
from ..models.weights import check_finite, check_no_subnet, check_plain_weights
from ..subnet import Shape
from .criteria import Arrays, activations, key_of, magnitudes, removal, taylor

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

Criterion = Literal["magnitude", "activation", "taylor"]
LayerCriterion = Literal["magnitude", "cosine", "taylor", "removal"]
CRITERIA = get_args(Criterion)
LAYER_CRITERIA = get_args(LayerCriterion)


@dataclass(frozen=True, eq=False)
class ImportanceScores:
    """Scores of every layer, head, neuron and channel of a model; the higher, the more important.

    Scores compare only within one dimension and layer.

    Args:
        layers (`np.ndarray`): `(layers,)`.
        heads (`tuple[np.ndarray, ...]`): `(heads,)` for each layer.
        neurons (`tuple[np.ndarray, ...]`): `(neurons,)` for each layer.
        channels (`np.ndarray`): `(channels,)`.
        settings (`dict`): criteria, text and model of the measurement.
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
            raise SubnetError(f"these scores are for a model with {scored}, got one with {shape}; score this model")
        if not all(np.isfinite(scores).all() for scores in (self.layers, self.channels, *self.heads, *self.neurons)):
            raise SubnetError("some of these scores are NaN or Inf; score the model in float32")

    def save(self, path: str | Path) -> None:
        """Write the scores as safetensors."""
        arrays = {"layers": self.layers, "channels": self.channels}
        for layer, (heads, neurons) in enumerate(zip(self.heads, self.neurons, strict=True)):
            arrays |= {f"heads.{layer}": heads, f"neurons.{layer}": neurons}
        with atomic_path(path) as temporary:
            contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            content = save(contiguous, {"settings": json.dumps(self.settings)})
            temporary.write_bytes(content)  # `save_file` leaves a file of its own if killed

    @classmethod
    def load(cls, path: str | Path) -> "ImportanceScores":
        """Read scores from a file that `save` wrote.

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
    """Score layers, heads, neurons and channels in one pass over some text.

    `taylor` and `removal` take passes of their own.

    Args:
        model (`PreTrainedModel`): a super-network, a stock GPT-NeoX or a student; it is not changed.
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids, `(blocks, block_size)`.
        criterion (`str`, *optional*, defaults to `"activation"`): criterion of heads, neurons and channels.
        layer_criterion (`str`, *optional*, defaults to `"cosine"`): criterion of layers; `"removal"` needs a
            super-network.
        batch_size (`int`, *optional*, defaults to 16): blocks at a time; `taylor` squares after each batch.
        cache_dir (`str` or `Path`, *optional*): folder of scores, from which those of the same model, text and settings
            are read.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Raises:
        ValueError: if a criterion is unknown, or `batch_size` is below 1.
        ArchitectureError: if the model has no table, or is not for causal language modeling.
        WeightsError: if its weights are quantized, offloaded or adapted.
        CheckpointError: if its weights contain NaN or Inf.
        SubnetError: if `removal` is asked of a model that is no super-network, or a subnet is active.
        DataError, VocabularyError: if the blocks are empty or not in the model's vocabulary.
    """
    _check_settings(criterion, layer_criterion, batch_size)
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


def _check_settings(criterion: str, layer_criterion: str, batch_size: int) -> None:
    chosen = (("criterion", criterion, CRITERIA), ("layer_criterion", layer_criterion, LAYER_CRITERIA))
    for name, value, known in chosen:
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def _score(
    model: "PreTrainedModel", input_ids: torch.Tensor, settings: dict[str, Any], progress: bool
) -> ImportanceScores:
    how = (model, input_ids, settings["batch_size"], progress)
    wanted = {settings["criterion"], settings["layer_criterion"]}
    found: dict[str, Arrays] = {}
    if "magnitude" in wanted:
        found["magnitude"] = magnitudes(model)
    if wanted & {"activation", "cosine"}:
        found["activation"] = found["cosine"] = activations(*how)
    if "taylor" in wanted:
        found["taylor"] = taylor(*how)
    layers = range(model.config.num_hidden_layers)
    widths = found[settings["criterion"]]
    if settings["layer_criterion"] == "removal":
        of_layers = removal(*how)
    else:
        of_layers = np.stack([found[settings["layer_criterion"]][f"layer.{layer}"] for layer in layers])
    return ImportanceScores(
        layers=of_layers,
        heads=tuple(widths[key_of(Dimension.HEADS, layer)] for layer in layers),
        neurons=tuple(widths[key_of(Dimension.NEURONS, layer)] for layer in layers),
        channels=widths[key_of(Dimension.CHANNELS, None)],
        settings=settings,
    )


def check_whole(model: "PreTrainedModel") -> None:
    """Raise an error unless a model is causal, has a table and finite plain weights, and no subnet is active."""
    check_no_subnet(model)
    check_plain_weights(model)
    for name, parameter in model.named_parameters():
        check_finite(name, parameter)
