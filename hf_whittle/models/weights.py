"""Weights of a model by its table: names, shapes, and checks that slices of them can be taken."""

import math
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..architectures.dimensions import VOCABULARY
from ..architectures.registry import get_architecture
from ..architectures.table import Weight
from ..compat.sharding import whole_shape
from ..compat.torch import uncompiled
from ..compat.transformers import tied_weights
from ..errors import ArchitectureError, CheckpointError, SubnetError, WeightsError
from ..subnet import Shape, SubnetConfig
from .placement import OFFLOADED, is_offloaded, is_shard, weights_of
from .rows import unsliced_sizes

Factors = tuple[tuple[int, ...], ...]
"""Of each axis of a weight, the sizes of its factors."""

_WHAT_TO_DO = (
    "slices can be taken of plain floating-point weights only: load the model without quantization, and merge adapters "
    "into it (merge_and_unload)"
)


def check_plain_weights(model: Any, *, may_be_offloaded: bool = False) -> None:
    """Raise an error unless slices of a model can be taken: its weights are those of the table, and plain.

    Args:
        model (`PreTrainedModel`): a super-network, a stock model or a student.
        may_be_offloaded (`bool`, *optional*, defaults to `False`): whether weights need not be in memory.

    Raises:
        WeightsError: if a weight is quantized, adapted, not in the table, of another shape than the configuration says,
            or offloaded where it must not be.
        ArchitectureError: if a weight is missing, or the architecture has no table.
    """
    model = uncompiled(model)
    config = full_config(model)
    table, shape = get_architecture(config), Shape.from_config(config)
    if getattr(model, "is_quantized", False):
        raise WeightsError(f"this {type(model).__name__} is quantized; {_WHAT_TO_DO}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    expected = {weight.name.format(layer=layer): (weight, layer) for weight, layer in all_weights(config)}
    _check_names(type(model).__name__, parameters.keys(), expected.keys())
    for name, (weight, layer) in expected.items():
        check_plain(name, parameters[name], _module_of(model, name) if may_be_offloaded else None)
        size = whole_shape(parameters[name])
        stated = weight_shape(weight, config, shape, layer or 0)
        if size != stated:
            raise WeightsError(
                f"{name} has the shape {size}, the configuration says {stated}; change sizes of the vocabulary with "
                "resize_token_embeddings, or load the model again"
            )
    _check_sharing(config, table.weights, parameters, weights_of(model))


def _check_names(model: str, names: Set[str], expected: Set[str]) -> None:
    missing = next((name for name in expected if name not in names), None)
    others = sorted((name for name in names if name not in expected), key=lambda name: ".base_layer." not in name)
    if others and (missing is None or ".base_layer." in others[0]):
        raise WeightsError(f"this {model} has {others[0]}, which no slice would have; {_WHAT_TO_DO}")
    if missing is not None:
        raise ArchitectureError(f"a {model} has no {missing}; give a model for causal language modeling, unwrapped")


def full_config(model: Any) -> Any:
    """The configuration of the whole model, also while a subnet is active in it."""
    return getattr(model, "full_config", model.config)


def check_no_subnet(model: Any) -> None:
    """Raise `SubnetError` if a subnet is active in a model."""
    if full_config(model) is not model.config:
        raise SubnetError("a subnet is active: leave the active_subnet block first")


def check_plain(name: str, parameter: torch.Tensor, module: Any = None) -> None:
    """Raise `WeightsError` unless a parameter is a plain floating-point tensor in memory, or a shard of one.

    Args:
        name (`str`): its name, for an error.
        parameter (`torch.Tensor`): the parameter.
        module (`torch.nn.Module`, *optional*): its module, if it need not be in memory where that is offloaded.
    """
    plain = type(parameter.detach()) is torch.Tensor or is_shard(parameter)
    if not plain or not parameter.is_floating_point() or parameter.element_size() < 2:
        kind = f"{type(parameter).__name__} of {str(parameter.dtype).removeprefix('torch.')}"
        raise WeightsError(f"{name} is a {kind}; {_WHAT_TO_DO}")
    if parameter.is_meta and module is None:
        raise WeightsError(f"{name} {OFFLOADED}")
    if parameter.is_meta and not is_offloaded(module):
        raise WeightsError(
            f"{name} is not in memory, and its module does not load it; load the model with device_map='auto', or with "
            "a device_map in which no module is part of another"
        )


def _module_of(model: Any, name: str) -> Any:
    return model.get_submodule(name.rpartition(".")[0])


def _check_sharing(
    config: PreTrainedConfig,
    weights: tuple[Weight, ...],
    parameters: Mapping[str, torch.Tensor],
    loaded: Mapping[str, torch.Tensor],
) -> None:
    for weight in weights:
        if weight.is_shared(config):
            names = weight.name, embedding(config).name
            own, shared = (parameters[name] for name in names)
            if own is not shared and not is_shard(own) and not _equal(*(loaded[name] for name in names)):
                raise WeightsError(
                    f"the configuration says {weight.shared_if}, and {weight.name} is another matrix than "
                    f"{embedding(config).name}; set model.config.{weight.shared_if} = False"
                )


def _equal(own: torch.Tensor, shared: torch.Tensor) -> bool:
    return torch.equal(own, shared.to(own.device))


def all_weights(config: PreTrainedConfig) -> Iterator[tuple[Weight, int | None]]:
    """Every weight of a model, tied ones included, with its layer; `None` outside of layers."""
    for weight in get_architecture(config).weights:
        if weight.exists(config):
            for layer in range(config.num_hidden_layers) if weight.in_layer else (None,):
                yield weight, layer


def kept_weights(config: PreTrainedConfig, subnet: SubnetConfig) -> list[tuple[Weight, int, int]]:
    """The weights of a student, each with its layer in the model and in the student; 0 and 0 outside of layers."""
    kept: list[tuple[Weight, int, int]] = []
    for weight in get_architecture(config).weights:
        if weight.exists(config) and not weight.is_shared(config):
            layers = enumerate(subnet.layers) if weight.in_layer else [(0, 0)]
            kept.extend((weight, layer, position) for position, layer in layers)
    return kept


def embedding(config: PreTrainedConfig) -> Weight:
    """The token embedding, which tied weights share."""
    weights = get_architecture(config).weights
    return next(weight for weight in weights if not weight.is_matmul and weight.runs_along(VOCABULARY))


def weight_shape(weight: Weight, config: PreTrainedConfig, shape: Shape, layer: int) -> tuple[int, ...]:
    """The shape of a weight in a model with the sizes `shape`, optional ones included."""
    return tuple(math.prod(factors) for factors in weight_factors(weight, config, shape, layer))


def weight_factors(weight: Weight, config: PreTrainedConfig, shape: Shape, layer: int) -> Factors:
    """The sizes of the factors of each axis of a weight, likewise."""
    sizes = {**unsliced_sizes(config), **shape.of_layer(layer)}
    return tuple(axis.factor_sizes(sizes) for axis in weight.axes)


def local_part(tensor: Any) -> torch.Tensor:
    """The part of a tensor that this process holds, where FSDP2 shards it."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raise `CheckpointError` if a tensor contains NaN or Inf; quantized tensors are not checked."""
    tensor = local_part(tensor).detach()
    if type(tensor) is not torch.Tensor or not tensor.is_floating_point() or tensor.element_size() < 2:
        return
    if tensor.is_meta or tensor.numel() == 0:
        return
    if not all(extreme.isfinite() for extreme in tensor.aminmax()):
        raise CheckpointError(
            f"{name} contains NaN or Inf; the checkpoint is damaged or its training diverged: use another or an "
            "earlier one"
        )


def load_whole(load: Callable[..., Any], source: Any, *args: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load a model and check that its checkpoint has all of its weights.

    transformers only warns where weights are missing, and draws them at random. Where a configuration ties two matrices
    and the checkpoint has two different ones, transformers warns and unties them; the loaded model's configuration
    then says so.

    Args:
        load (`Callable`): `from_pretrained` of a model's class.
        source (*optional*): folder or name of the checkpoint.
        *args: other arguments of `load`.
        **options: other arguments of `load`.

    Returns:
        `tuple`: the model, and the loading info of `from_pretrained(output_loading_info=True)`.

    Raises:
        CheckpointError: if a weight is missing, contains NaN or Inf or, without `ignore_mismatched_sizes`, has another
            shape than the configuration says.
    """
    where = f"the checkpoint {str(source)!r}" if source else "the state dict"
    any_size = options.pop("ignore_mismatched_sizes", False)
    try:
        model, info = load(source, *args, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except NotImplementedError as error:  # two tied matrices of different shapes were compared
        if "equal" not in str(error):
            raise
        raise CheckpointError(
            f"the configuration of {where} says tie_word_embeddings, and the output matrix there has another shape "
            "than the embedding; the checkpoint contradicts its configuration"
        ) from error
    _check_complete(info, where, any_size)
    for name, parameter in model.named_parameters():
        check_finite(name, parameter)
    if getattr(model.config, "tie_word_embeddings", False) and not tied_weights(model):
        head, tokens = model.get_output_embeddings(), model.get_input_embeddings()
        if head is not None and head.weight is not tokens.weight:
            model.config.tie_word_embeddings = False
    return model, info


def _check_complete(info: dict[str, Any], where: str, any_size: bool) -> None:
    if info["missing_keys"]:
        raise CheckpointError(
            f"{where} lacks {in_words(info['missing_keys'])}, which its configuration says it has; download it again, "
            "or correct the configuration. A model without a head for causal language modeling cannot be used"
        )
    if info["mismatched_keys"] and not any_size:
        name, found, stated = min(info["mismatched_keys"])
        raise CheckpointError(
            f"{name} of {where} has the shape {tuple(found)}, the configuration says {tuple(stated)}; the checkpoint "
            "contradicts its configuration"
        )


def in_words(names: Any) -> str:
    """The first three names, in order, and the number of the others."""
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
