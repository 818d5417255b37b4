"""Cut a student out of a super-network: the weights a subnet keeps, in a model of their own."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from tqdm.auto import tqdm

from .architecture import Dimension, Weight, architecture_module, get_architecture, head_dim
from .cost import padded_shape
from .errors import CheckpointError, OutputError, SubnetError
from .files import atomic_folder
from .models.elastic import take
from .models.supernet import axis_rows
from .subnet import Shape, SubnetConfig

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

    from .checkpoint import Checkpoint

Format = Literal["auto", "stock", "whittle", "padded"]
FORMATS = ("auto", "stock", "whittle", "padded")


@overload
def extract_subnet(
    model: "PreTrainedModel | str | Path",
    subnet: SubnetConfig,
    output_dir: None = None,
    *,
    format: Format = "auto",
    **kwargs: Any,
) -> "PreTrainedModel": ...


@overload
def extract_subnet(
    model: "PreTrainedModel | str | Path",
    subnet: SubnetConfig,
    output_dir: str | Path,
    *,
    format: Format = "auto",
    **kwargs: Any,
) -> Path: ...


def extract_subnet(
    model: "PreTrainedModel | str | Path",
    subnet: SubnetConfig,
    output_dir: str | Path | None = None,
    *,
    format: Format = "auto",
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    progress: bool = True,
    **hub: Any,
) -> "PreTrainedModel | Path":
    """Cut a student out of a super-network, or out of another student.

    From a checkpoint, only what the subnet keeps is read, one tensor at a time, and only files that hold some of it
    are downloaded. From memory or from disk, the student is the same bit for bit.

    Args:
        model (`PreTrainedModel`, `str` or `Path`): a super-network, a stock GPT-NeoX or a student, for causal language
            modeling; or a checkpoint of one: a local folder or a name on the Hub, in safetensors.
        subnet (`SubnetConfig`): what to keep of it.
        output_dir (`str` or `Path`, *optional*): folder to write the student to, new or empty: weights,
            configurations, `subnet.json`, and a checkpoint's tokenizer. It appears whole or not at all.
        format (`str`, *optional*, defaults to `"auto"`): `"stock"` for a `GPTNeoXForCausalLM`, `"whittle"` for a
            `WhittleGPTNeoXForCausalLM`, `"auto"` for stock where that can hold the student. `"padded"` for a
            `GPTNeoXForCausalLM` in which all layers get as many heads and neurons as the largest needs, the missing
            ones zero: the logits are the same, also after training, at the cost of the larger size.
        dtype (`torch.dtype`, *optional*): of the student's weights; the model's own by default.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): most bytes of a file in `output_dir`.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar while a checkpoint is read.
        hub: `revision`, `token`, `cache_dir`, `local_files_only` and `subfolder` of a checkpoint, as in
            `PreTrainedModel.from_pretrained`.

    Returns:
        `PreTrainedModel` or `Path`: the student, sharing no memory with the model and in evaluation mode, on the
        model's device; or the folder, if `output_dir` is given.

    Raises:
        SubnetError: if the subnet does not fit the model, or the format cannot hold it.
        ArchitectureError: if the model is of an architecture without a table.
        CheckpointError: if a checkpoint cannot be found, is damaged, or contradicts its configuration.
        OutputError: if `output_dir` is not empty or cannot be written.
    """
    if format not in FORMATS:
        raise SubnetError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if output_dir is not None:
        output_dir = _check_new(output_dir)
    tokenizer_files: list[Path] = []
    if isinstance(model, str | Path):
        from .checkpoint import Checkpoint  # reads config classes of transformers, which memory does not need

        checkpoint = Checkpoint(model, **hub)
        tokenizer_files = checkpoint.tokenizer_files
        student = _cut_from_disk(checkpoint, subnet, format, dtype or checkpoint.dtype, progress)
    elif hub:
        raise TypeError(f"{', '.join(hub)} only apply to a checkpoint, got a {type(model).__name__}")
    else:
        student = _cut_from_memory(model, subnet, format, dtype or model.dtype)
    if output_dir is None:
        return student
    with atomic_folder(output_dir) as folder:
        student.save_pretrained(folder, max_shard_size=max_shard_size)
        subnet.save_pretrained(folder)
        for file in tokenizer_files:
            shutil.copyfile(file, folder / file.name)
    return output_dir


def _cut_from_memory(
    model: "PreTrainedModel", subnet: SubnetConfig, format: Format, dtype: torch.dtype
) -> "PreTrainedModel":
    source = getattr(model, "full_config", model.config)
    generation_config = model.generation_config if model.can_generate() else None
    student = _cut(model.state_dict(), source, subnet, format, dtype, generation_config, progress=False)
    student.set_attn_implementation(source._attn_implementation)
    return student.to(model.device)


def _cut_from_disk(
    checkpoint: "Checkpoint", subnet: SubnetConfig, format: Format, dtype: torch.dtype, progress: bool
) -> "PreTrainedModel":
    config = checkpoint.config
    subnet.validate(config)
    checkpoint.fetch([_stored_name(checkpoint, weight, layer) for weight, layer, _ in _kept_weights(config, subnet)])
    return _cut(checkpoint, config, subnet, format, dtype, checkpoint.generation_config, progress)


def _cut(
    weights: Mapping[str, torch.Tensor],
    source: "PreTrainedConfig",
    subnet: SubnetConfig,
    format: Format,
    dtype: torch.dtype,
    generation_config: "GenerationConfig | None",
    progress: bool,
) -> Any:
    subnet.validate(source)
    architecture = architecture_module(source, "student")
    config = architecture.student_config(source, subnet, format)
    state_dict = slice_weights(weights, source, subnet, padded=format == "padded", dtype=dtype, progress=progress)
    student = architecture.student_class(config).from_pretrained(
        None, config=config, state_dict=state_dict, dtype=dtype
    )
    if generation_config is not None:
        student.generation_config = type(generation_config).from_dict(generation_config.to_dict())
    return student


def slice_weights(
    weights: Mapping[str, torch.Tensor],
    config: "PreTrainedConfig",
    subnet: SubnetConfig,
    *,
    padded: bool = False,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> dict[str, torch.Tensor]:
    """The student's state dict: copies of what the subnet keeps, layers numbered anew.

    Args:
        weights (`Mapping[str, torch.Tensor]`): of the model, under the names of the table or those in old files.
        config (`PreTrainedConfig`): the model's.
        subnet (`SubnetConfig`): what to keep.
        padded (`bool`, *optional*, defaults to `False`): whether to pad heads and neurons to `padded_shape`.
        dtype (`torch.dtype`, *optional*): of the copies; that of each weight by default.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.
    """
    full = Shape.from_config(config)
    target = padded_shape(config, subnet) if padded else subnet.shape
    sliced = {}
    for weight, layer, position in tqdm(_kept_weights(config, subnet), "extract", unit="tensor", disable=not progress):
        name = _stored_name(weights, weight, layer)
        tensor = weights[name].detach()
        expected = _weight_shape(weight, config, full, layer)
        if tensor.shape != expected:
            raise CheckpointError(
                f"{name} has the shape {tuple(tensor.shape)}, the configuration says {expected}; the checkpoint "
                "contradicts its configuration"
            )
        for dim, axis in enumerate(weight.axes):
            tensor = take(tensor, dim, axis_rows(axis, subnet, position, head_dim(config), tensor.device))
        shape = _weight_shape(weight, config, target, position)
        copy = (torch.zeros if padded else torch.empty)(shape, dtype=dtype or tensor.dtype, device=tensor.device)
        copy[tuple(slice(size) for size in tensor.shape)] = tensor
        sliced[weight.name.format(layer=position)] = copy
    return sliced


def _kept_weights(config: "PreTrainedConfig", subnet: SubnetConfig) -> list[tuple[Weight, int, int]]:
    """The weights a student has: each with its layer in the model and its layer in the student, 0 outside layers."""
    kept: list[tuple[Weight, int, int]] = []
    for weight in get_architecture(config).weights:
        if weight.exists(config) and not weight.is_shared(config):
            layers = enumerate(subnet.layers) if weight.in_layer else [(0, 0)]
            kept.extend((weight, layer, position) for position, layer in layers)
    return kept


def _stored_name(weights: Mapping[str, torch.Tensor], weight: Weight, layer: int) -> str:
    names = [name.format(layer=layer) for name in (weight.name, weight.former_name) if name is not None]
    for name in names:
        if name in weights:
            return name
    raise CheckpointError(f"the checkpoint lacks the tensor {' or '.join(names)}; download it again")


def _weight_shape(weight: Weight, config: "PreTrainedConfig", shape: Shape, layer: int) -> tuple[int, ...]:
    """The shape of a weight in a model of these sizes."""
    sizes = {
        Dimension.VOCABULARY: config.vocab_size,
        Dimension.CHANNELS: shape.hidden_size,
        Dimension.HEADS: shape.num_attention_heads[layer],
        Dimension.NEURONS: shape.intermediate_size[layer],
    }
    return tuple(sizes[axis.dimension] * axis.block_size(head_dim(config)) for axis in weight.axes)


def _check_new(output_dir: str | Path) -> Path:
    folder = Path(output_dir)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(
            f"{folder} exists already and is not an empty folder; choose another output_dir, or remove it"
        )
    return folder
