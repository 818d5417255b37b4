"""What weights must be for a slice of them to be a model: plain, at hand, finite, and those the configuration says."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..compat import SHARD_ATTRIBUTES, execution_device, has_tied_weights, uncompiled, whole_shape
from ..errors import ArchitectureError, CheckpointError, SubnetError, WeightsError
from ..subnet import Shape
from .architecture import Dimension, Weight, get_architecture, head_dim

_WHAT_TO_DO = (
    "what is run in slices, scored, sorted or cut needs plain floating-point weights: load the model without "
    "quantization, and merge adapters into it (merge_and_unload)"
)
_OFFLOADED = (
    "is not in memory but offloaded; load the model without a device_map that offloads layers. extract_subnet also "
    "takes a checkpoint's folder or name, and reads one tensor at a time"
)


def check_plain_weights(model: Any) -> None:
    """Raise an error unless slices of a model can be taken: its weights are those of the table, plain and here.

    Args:
        model (`PreTrainedModel`): a super-network, a stock model or a student.

    Raises:
        WeightsError: if some are quantized, offloaded, adapted, of another shape than the configuration says, or not
            known to the table.
        ArchitectureError: if some are missing, or there is no table.
    """
    model = uncompiled(model)
    config = full_config(model)
    table, shape = get_architecture(config), Shape.from_config(config)
    if getattr(model, "is_quantized", False):
        raise WeightsError(f"this {type(model).__name__} is quantized; {_WHAT_TO_DO}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    expected = {weight.name.format(layer=layer): (weight, layer) for weight, layer in all_weights(config)}
    missing = next((name for name in expected if name not in parameters), None)
    others = sorted((name for name in parameters if name not in expected), key=lambda name: ".base_layer." not in name)
    if others and (missing is None or ".base_layer." in others[0]):
        raise WeightsError(f"this {type(model).__name__} has {others[0]}, which no slice would have; {_WHAT_TO_DO}")
    if missing is not None:
        raise ArchitectureError(
            f"a {type(model).__name__} has no {missing}; give a model for causal language modeling, unwrapped"
        )
    for name, (weight, layer) in expected.items():
        check_plain(name, parameters[name])
        size, stated = whole_shape(parameters[name]), weight_shape(weight, config, shape, layer or 0)
        if size != stated:
            raise WeightsError(
                f"{name} has the shape {size}, the configuration says {stated}; change sizes of the vocabulary with "
                "resize_token_embeddings, or load the model anew"
            )
    _check_sharing(config, table.weights, parameters)


def full_config(model: Any) -> Any:
    """The configuration of a whole model, of a super-network whatever subnet is active in it."""
    return getattr(model, "full_config", model.config)


def is_sharded(model: Any) -> bool:
    """Whether the parameters of a model are spread over processes, so that all must run it together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def check_no_subnet(model: Any) -> None:
    """Raise `SubnetError` if a model is a super-network in which a subnet is active."""
    if full_config(model) is not model.config:
        raise SubnetError("a subnet is active: leave the active_subnet block first")


def check_plain(name: str, parameter: torch.Tensor) -> None:
    """Raise `WeightsError` unless a parameter is a plain floating-point tensor, or a shard of one, that is here."""
    plain = type(parameter.detach()) is torch.Tensor or hasattr(parameter, "full_tensor")
    if not plain or not parameter.is_floating_point() or parameter.element_size() < 2:
        kind = f"{type(parameter).__name__} of {str(parameter.dtype).removeprefix('torch.')}"
        raise WeightsError(f"{name} is a {kind}; {_WHAT_TO_DO}")
    if parameter.is_meta:
        raise WeightsError(f"{name} {_OFFLOADED}")


def check_not_offloaded(model: nn.Module) -> None:
    """Raise `WeightsError` if some layers of a model that is to be trained were offloaded by accelerate."""
    from accelerate.utils import has_offloaded_params

    name = next((name for name, module in model.named_modules() if has_offloaded_params(module)), None)
    if name is not None:
        raise WeightsError(f"{name} {_OFFLOADED}")


def _check_sharing(
    config: PreTrainedConfig, weights: tuple[Weight, ...], parameters: Mapping[str, torch.Tensor]
) -> None:
    for weight in weights:
        if weight.is_shared(config):
            own, shared = parameters[weight.name], parameters[embedding(config).name]
            spread = any(hasattr(own, name) for name in SHARD_ATTRIBUTES)
            if own is not shared and not spread and not torch.equal(own, shared):
                raise WeightsError(
                    f"the configuration says {weight.shared_if}, and {weight.name} is another matrix than "
                    f"{embedding(config).name}; set model.config.{weight.shared_if} = False"
                )


def all_weights(config: PreTrainedConfig) -> Iterator[tuple[Weight, int | None]]:
    """Every weight of a model, with its layer; the shared ones, too."""
    for weight in get_architecture(config).weights:
        if weight.exists(config):
            for layer in range(config.num_hidden_layers) if weight.in_layer else (None,):
                yield weight, layer


def embedding(config: PreTrainedConfig) -> Weight:
    """What tokens are looked up in; a weight that is shared is this one."""
    weights = get_architecture(config).weights
    return next(w for w in weights if not w.is_matmul and w.axes[0].dimension is Dimension.VOCABULARY)


def weight_shape(weight: Weight, config: PreTrainedConfig, shape: Shape, layer: int) -> tuple[int, ...]:
    """The shape of a weight in a model of these sizes."""
    sizes = {
        Dimension.VOCABULARY: config.vocab_size,
        Dimension.CHANNELS: shape.hidden_size,
        Dimension.HEADS: shape.num_attention_heads[layer],
        Dimension.NEURONS: shape.intermediate_size[layer],
    }
    return tuple(sizes[axis.dimension] * axis.block_size(head_dim(config)) for axis in weight.axes)


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raise `CheckpointError` if a plain tensor contains NaN or infinite values."""
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    tensor = tensor.detach()
    if type(tensor) is not torch.Tensor or not tensor.is_floating_point() or tensor.element_size() < 2:  # quantized
        return
    if tensor.is_meta or tensor.numel() == 0:
        return
    if not all(extreme.isfinite() for extreme in tensor.aminmax()):
        raise CheckpointError(
            f"{name} contains NaN or infinite values; the checkpoint is damaged or of a training that diverged: use "
            "another, or an earlier one"
        )


def load_whole(load: Callable[..., Any], source: Any, *args: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load a model all of whose weights come from its checkpoint.

    transformers draws missing weights at random, with a warning. Where a configuration ties two matrices and the
    checkpoint holds different ones, it leaves them untied, with a warning; the model's configuration then says so.

    Args:
        load (`Callable`): `from_pretrained` of a model.
        source (*optional*): what it loads.
        *args: other arguments.
        **options: other arguments.

    Returns:
        `tuple`: the model, and what `from_pretrained(output_loading_info=True)` tells.

    Raises:
        CheckpointError: if weights are missing or not finite, or, without `ignore_mismatched_sizes`, of another shape
            than the configuration says.
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
    for name, parameter in model.named_parameters():
        check_finite(name, parameter)
    if getattr(model.config, "tie_word_embeddings", False) and not has_tied_weights(model):
        head, tokens = model.get_output_embeddings(), model.get_input_embeddings()
        if head is not None and head.weight is not tokens.weight:
            model.config.tie_word_embeddings = False
    return model, info


def in_words(names: Any, most: int = 3) -> str:
    """Some names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def input_device(model: Any) -> torch.device:
    """Where a model reads its tokens: of an offloaded embedding, where it is run."""
    embedding = model.get_input_embeddings()
    if not embedding.weight.is_meta:
        return embedding.weight.device
    return torch.device(execution_device(embedding))


@contextlib.contextmanager
def at_hand(model: Any, name: str, tensor: Any) -> Iterator[torch.Tensor]:
    """A tensor of a model's state dict, whole inside the block if it is of a shard or was offloaded by accelerate."""
    from accelerate.utils import align_module_device

    with contextlib.ExitStack() as stack:
        if tensor.is_meta:
            module, _, attribute = name.rpartition(".")
            stack.enter_context(align_module_device(model.get_submodule(module)))
            tensor = getattr(model.get_submodule(module), attribute)
        yield tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
