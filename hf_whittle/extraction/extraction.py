"""Extraction of a student from a super-network: the weights that a subnet keeps, in a model of their own."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from ..files.paths import expanded
from ..healing.config import HealingConfig
from ..models.portable import check_generation_config
from ..subnet import SubnetConfig
from .checkpoint import Checkpoint
from .folder import new_folder, save_student
from .student import Extraction, Format, as_dtype, as_healing, extract_from_checkpoint, extract_from_memory
from .tokenizer import write_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

_HUB = ("revision", "token", "cache_dir", "local_files_only", "subfolder")


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
    """Extract a student from a super-network, or from another student.

    From a checkpoint, only weights that the subnet keeps are read, one tensor at a time, and only files that hold some
    of them are downloaded. The student is the same, bit for bit, whether it is extracted from memory or from disk.

    Healing recovers much of what slicing lost; healed weights are used if they are better on held-out text, as
    `student.healing` and `healing.json` say. Healing from a checkpoint reads all of it, a layer at a time, and runs on
    a GPU if there is one. A model in memory is healed on its own device; weights that `device_map` offloaded are loaded
    one at a time.

    Args:
        model (`PreTrainedModel`, `str` or `Path`): a super-network, a stock model of an architecture with a table or a
            student, for causal language modeling; or a checkpoint of one in safetensors: a local folder or a name on
            the Hub.
        subnet (`SubnetConfig`): the part of the model to keep.
        output_dir (`str` or `Path`, *optional*): new or empty folder to write the student to: weights, configurations,
            `subnet.json`, `results.json` (which says what the student was extracted from) and, from a checkpoint, its
            tokenizer, with the tokens that are kept. The folder appears whole or not at all.
        format (`str`, *optional*, defaults to `"auto"`): `"stock"` for the stock class, `"whittle"` for a class of
            ours, whose layers may differ, `"auto"` for stock where that can hold the student. `"padded"` for the stock
            class, in which all layers get as many heads and neurons as the largest needs, the missing
            ones zero: the logits are the same, also after training, at the cost of the larger size.
        dtype (`torch.dtype` or `str`, *optional*): precision of the student's weights; by default `model.dtype`, or the
            dtype in the checkpoint's configuration.
        heal (`HealingConfig` or `bool`, *optional*, defaults to `False`): whether and how to heal the student.
        calibration_dataset (`datasets.Dataset` or `torch.Tensor`, *optional*): token ids to heal it on, `(blocks,
            block_size)`: training text, a part of which is held out. They are ids of the model, also where the student
            leaves out tokens: encode text with the student's tokenizer, and map its ids to the tokens it keeps.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): maximum size of a file in `output_dir`.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar while a checkpoint is read or
            a student is healed.
        hub: `revision`, `token`, `cache_dir`, `local_files_only` and `subfolder` of a checkpoint, as in
            `PreTrainedModel.from_pretrained`.

    Returns:
        `PreTrainedModel` or `Path`: the student, in evaluation mode, on the model's device and with memory of its own;
        or `output_dir`, if that is given.

    Raises:
        SubnetError: if the subnet does not fit the model, or the format or `dtype` cannot hold it.
        ArchitectureError: if the model's architecture has no table, or the model is not for causal language modeling.
        TypeError, ValueError: if an argument is unknown, or `max_shard_size` is not a size.
        CheckpointError: if a checkpoint cannot be found, is damaged or contradicts its configuration, or if weights
            contain NaN or Inf.
        WeightsError: if the model's weights are quantized or adapted.
        OutputError: if `output_dir` is not empty or cannot be written.
        DataError: if the calibration text is missing or too short; `VocabularyError` if it is of another tokenizer, or
            has tokens that the student does not keep.
        VocabularyError: if the kept tokens do not make a tokenizer, as `prune_tokenizer` says.
        HealingError: if hidden states on the calibration text contain NaN or Inf.
    """
    extraction = Extraction(subnet, format, as_dtype(dtype), as_healing(heal), calibration_dataset, progress)
    if output_dir is not None:
        output_dir = Path(expanded(output_dir))
    if isinstance(model, str | Path):
        return _from_checkpoint(_open(model, hub), extraction, output_dir, max_shard_size)
    if hub:
        raise TypeError(f"{', '.join(hub)} can only be given with a checkpoint, got a {type(model).__name__}")
    return _from_memory(model, extraction, output_dir, max_shard_size)


def _from_memory(
    model: "PreTrainedModel", extraction: Extraction, output_dir: Path | None, max_shard_size: int | str
) -> "PreTrainedModel | Path":
    if output_dir is None:
        return extract_from_memory(model, extraction)
    check_generation_config(getattr(model, "generation_config", None))
    with new_folder(output_dir, max_shard_size) as folder:
        save_student(extract_from_memory(model, extraction), folder, max_shard_size)
    return output_dir


def _open(source: str | Path, hub: dict[str, Any]) -> Checkpoint:
    unknown = [name for name in hub if name not in _HUB]
    if unknown:
        raise TypeError(f"unknown arguments {', '.join(unknown)}; a checkpoint takes {', '.join(_HUB)}")
    return Checkpoint(source, **hub)


def _from_checkpoint(
    checkpoint: Checkpoint, extraction: Extraction, output_dir: Path | None, max_shard_size: int | str
) -> "PreTrainedModel | Path":
    if output_dir is None:
        return extract_from_checkpoint(checkpoint, extraction)
    check_generation_config(checkpoint.generation_config)
    with new_folder(output_dir, max_shard_size) as folder:
        write_tokenizer(checkpoint, extraction.subnet, folder)
        save_student(extract_from_checkpoint(checkpoint, extraction), folder, max_shard_size)
    return output_dir
