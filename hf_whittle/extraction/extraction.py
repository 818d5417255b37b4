"""Cut a student out of a super-network: the weights a subnet keeps, in a model of their own."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from transformers.utils import logging

from ..compat import attention_kernel, uncompiled
from ..cost.counts import num_parameters
from ..errors import DataError, OutputError, SubnetError
from ..evaluation import as_input_ids
from ..files.atomic import atomic_folder
from ..files.disk import disk_errors
from ..files.paths import expanded
from ..files.tokenizer import make_tokenizer_portable
from ..healing.config import HealingConfig, HealingReport
from ..healing.healer import heal_weights
from ..models.architecture import architecture_module
from ..models.generation import check_generation_config
from ..models.padding import padded_shape
from ..models.portable import make_portable
from ..models.slicing import Renamed, as_stored, fill, kept_weights, slice_weights
from ..models.weights import check_plain_weights, full_config, weight_shape
from ..record.lineage import Lineage
from ..record.source import checkpoint_facts
from ..subnet import SubnetConfig
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

Format = Literal["auto", "stock", "whittle", "padded"]
_Healing = tuple[HealingConfig, Any] | None  # how, and the blocks
_HUB = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
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
    dtype: torch.dtype | str | None = None,
    heal: HealingConfig | bool = False,
    calibration_dataset: "Dataset | torch.Tensor | None" = None,
    max_shard_size: int | str = "5GB",
    progress: bool = True,
    **hub: Any,
) -> "PreTrainedModel | Path":
    """Cut a student out of a super-network, or out of another student.

    From a checkpoint, only what the subnet keeps is read, one tensor at a time, and only files that hold some of it
    are downloaded. From memory or from disk, the student is the same bit for bit. Healed, it starts from weights that
    put back what slicing took away, if they are better on held-out text; `student.healing` and `healing.json` say. That
    takes the whole checkpoint, a layer at a time, on a GPU if there is one; a model in memory heals on its own device.

    Args:
        model (`PreTrainedModel`, `str` or `Path`): a super-network, a stock GPT-NeoX or a student, for causal language
            modeling; or a checkpoint of one: a local folder or a name on the Hub, in safetensors.
        subnet (`SubnetConfig`): what to keep of it.
        output_dir (`str` or `Path`, *optional*): folder to write the student to, new or empty: weights,
            configurations, `subnet.json`, `results.json` (what it was cut from), and a checkpoint's tokenizer. It
            appears whole or not at all.
        format (`str`, *optional*, defaults to `"auto"`): `"stock"` for a `GPTNeoXForCausalLM`, `"whittle"` for a
            `WhittleGPTNeoXForCausalLM`, `"auto"` for stock where that can hold the student. `"padded"` for a
            `GPTNeoXForCausalLM` in which all layers get as many heads and neurons as the largest needs, the missing
            ones zero: the logits are the same, also after training, at the cost of the larger size.
        dtype (`torch.dtype` or `str`, *optional*): of all the student's weights; by default `model.dtype`, or what the
            checkpoint's configuration states.
        heal (`HealingConfig` or `bool`, *optional*, defaults to `False`): whether and how to heal the student.
        calibration_dataset (`datasets.Dataset` or `torch.Tensor`, *optional*): token ids to heal it on, `(blocks,
            block_size)`: training text, some of which is held out.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): most bytes of a file in `output_dir`.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar while a checkpoint is read.
        hub: `revision`, `token`, `cache_dir`, `local_files_only` and `subfolder` of a checkpoint, as in
            `PreTrainedModel.from_pretrained`.

    Returns:
        `PreTrainedModel` or `Path`: the student, sharing no memory with the model and in evaluation mode, on the
        model's device; or the folder, if `output_dir` is given.

    Raises:
        SubnetError: if the subnet does not fit the model, or the format or `dtype` cannot hold it.
        ArchitectureError: if the model is of an architecture without a table, or not for causal language modeling.
        TypeError, ValueError: if an argument is not known, or `max_shard_size` is no size.
        CheckpointError: if a checkpoint cannot be found, is damaged, or contradicts its configuration, or if weights
            are not finite.
        WeightsError: if the model's weights are quantized, offloaded or adapted.
        OutputError: if `output_dir` is not empty or cannot be written.
        DataError: if the calibration text is missing or too short; `VocabularyError` if it is of another tokenizer.
        HealingError: if the model computes what is not a number on it.
    """
    if format not in FORMATS:
        raise SubnetError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if not isinstance(subnet, SubnetConfig):
        raise SubnetError(
            f"subnet must be a SubnetConfig, got a {type(subnet).__name__}; make one with SubnetConfig.from_dict or "
            "SubnetConfig.from_pretrained"
        )
    dtype = _as_dtype(dtype)
    settings = HealingConfig() if heal is True else heal or None
    if not isinstance(settings, HealingConfig | None):
        raise TypeError(f"heal must be a HealingConfig, True or False, got {heal!r}")
    if settings is not None and calibration_dataset is None:
        raise DataError("healing needs text: give blocks of tokens as calibration_dataset")
    if settings is None and calibration_dataset is not None:
        raise DataError("calibration_dataset has no effect without heal; give heal=True, or leave it out")
    healing = None if settings is None else (settings, calibration_dataset)
    if output_dir is not None:
        output_dir = expanded(output_dir)
    if not isinstance(model, str | Path):
        if hub:
            raise TypeError(f"{', '.join(hub)} can only be given with a checkpoint, got a {type(model).__name__}")
        if output_dir is None:
            return _cut_from_memory(model, subnet, format, dtype, healing, progress)
        check_generation_config(getattr(model, "generation_config", None))
        with _new_folder(output_dir, max_shard_size) as folder:
            _save(_cut_from_memory(model, subnet, format, dtype, healing, progress), folder, max_shard_size)
        return Path(output_dir)
    unknown = [name for name in hub if name not in _HUB]
    if unknown:
        raise TypeError(f"unknown arguments {', '.join(unknown)}; a checkpoint takes {', '.join(_HUB)}")
    checkpoint = Checkpoint(model, **hub)
    if output_dir is None:
        return _cut_from_disk(checkpoint, subnet, format, dtype, healing, progress)
    check_generation_config(checkpoint.generation_config)
    with _new_folder(output_dir, max_shard_size) as folder:
        _save(_cut_from_disk(checkpoint, subnet, format, dtype, healing, progress), folder, max_shard_size)
        for name, path in checkpoint.tokenizer_files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
        make_tokenizer_portable(folder)
    return Path(output_dir)


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    known = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if known is None or known == "auto":
        return None
    if not isinstance(known, torch.dtype) or not known.is_floating_point:
        raise SubnetError(f"dtype must be a floating-point type such as torch.bfloat16 or 'bfloat16', got {dtype!r}")
    return known


def check_shard_size(size: int | str) -> None:
    """Raise `ValueError` unless `size` is a size of files."""
    if not (re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", size, re.I) if isinstance(size, str) else size > 0):
        raise ValueError(f"max_shard_size must be a number of bytes above 0, or like '5GB', got {size!r}")


def _new_folder(output_dir: str | Path, max_shard_size: int | str) -> contextlib.AbstractContextManager[Path]:
    """A folder that appears whole or not at all, where there is nothing yet."""
    check_shard_size(max_shard_size)
    return atomic_folder(check_new_folder(output_dir))


def check_new_folder(output_dir: str | Path) -> Path:
    """The folder of a student that is to be extracted; `OutputError` unless it can be made there."""
    folder = Path(os.path.realpath(expanded(output_dir)))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(
            f"{output_dir} exists already and is not an empty folder; choose another output_dir, or remove it"
        )
    if folder.is_mount() or folder == Path.cwd():
        raise OutputError(f"{output_dir} cannot be replaced as a whole; give a folder inside it")
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    return folder


def _save(student: "PreTrainedModel", folder: Path, max_shard_size: int | str) -> None:
    with without_bars():
        student.save_pretrained(folder, max_shard_size=max_shard_size)
    Lineage.of(student).save(folder)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars of transformers, which would count the same tensors again."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _cut_from_memory(
    model: "PreTrainedModel",
    subnet: SubnetConfig,
    format: Format,
    dtype: torch.dtype | None,
    healing: _Healing,
    progress: bool,
) -> "PreTrainedModel":
    model = uncompiled(model)
    source = full_config(model)
    check_plain_weights(model)
    generation_config = model.generation_config if model.can_generate() else None
    student = _cut(
        model.state_dict(),
        source,
        subnet,
        format,
        dtype or model.dtype,
        generation_config,
        healing,
        model.device,
        progress and healing is not None,
    )
    student.set_attn_implementation(attention_kernel(source))
    return student.to(model.device)


def _cut_from_disk(
    checkpoint: Checkpoint,
    subnet: SubnetConfig,
    format: Format,
    dtype: torch.dtype | None,
    healing: _Healing,
    progress: bool,
) -> "PreTrainedModel":
    config = checkpoint.config
    subnet.validate(config)
    architecture_module(config, "student").student_config(config, subnet, format)  # before anything is downloaded
    config = as_stored(config, checkpoint)
    weights = Renamed(checkpoint, config)
    needed = kept_weights(config, subnet if healing is None else SubnetConfig.full(config))
    checkpoint.fetch([weights.stored[weight.name.format(layer=layer)] for weight, layer, _ in needed])
    dtype, generation_config = dtype or checkpoint.dtype, checkpoint.generation_config
    device = torch.device("cuda" if torch.cuda.is_available() and healing is not None else "cpu")
    return _cut(weights, config, subnet, format, dtype, generation_config, healing, device, progress).cpu()


def _cut(
    weights: Mapping[str, torch.Tensor],
    source: "PreTrainedConfig",
    subnet: SubnetConfig,
    format: Format,
    dtype: torch.dtype,
    generation_config: "GenerationConfig | None",
    healing: _Healing,
    device: torch.device,
    progress: bool,
) -> Any:
    subnet.validate(source)
    architecture = architecture_module(source, "student")
    config = architecture.student_config(source, subnet, format)
    report = None
    if healing is None:
        state_dict = slice_weights(weights, source, subnet, padded=format == "padded", dtype=dtype, progress=progress)
    else:
        state_dict, report = _healed(weights, source, subnet, format, dtype, *healing, device, progress)
    with without_bars():
        student = architecture.student_class(config).from_pretrained(
            None, config=config, state_dict=state_dict, dtype=dtype
        )
    student.config.name_or_path = student.name_or_path = ""  # not the "None" it was loaded from
    make_portable(student)
    student.subnet, student.healing = subnet, report
    facts = checkpoint_facts(source)
    student.results = {
        **({"supernet": facts} if facts else {}),
        "student": {"parameters": num_parameters(config)},
    }
    if generation_config is not None:
        student.generation_config = type(generation_config).from_dict(generation_config.to_dict())
    return student


def _healed(
    weights: Mapping[str, torch.Tensor],
    config: "PreTrainedConfig",
    subnet: SubnetConfig,
    format: Format,
    dtype: torch.dtype,
    settings: HealingConfig,
    blocks: "Dataset | torch.Tensor",
    device: torch.device,
    progress: bool,
) -> tuple[dict[str, torch.Tensor], HealingReport]:
    state_dict, report = heal_weights(
        weights,
        config,
        subnet,
        slice_weights(weights, config, subnet, dtype=dtype),
        as_input_ids(blocks, config.vocab_size),
        settings,
        dtype=dtype,
        device=device,
        progress=progress,
    )
    target = padded_shape(config, subnet) if format == "padded" else subnet.shape
    return {
        name: fill(state_dict[name], weight_shape(weight, config, target, position), dtype)
        for weight, _, position in kept_weights(config, subnet)
        for name in (weight.name.format(layer=position),)
    }, report
