"""Build a student from the weights that a subnet keeps of a model in memory or of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from ..compat.torch import uncompiled
from ..compat.transformers import attention_kernel
from ..cost.counts import num_parameters
from ..errors import DataError, SubnetError
from ..evaluation import as_input_ids
from ..healing.config import HealingConfig, HealingReport
from ..healing.healer import heal_weights
from ..models.checkpoint_names import Renamed, as_stored
from ..models.padding import padded_shape
from ..models.placement import accelerator_or_cpu
from ..models.portable import make_portable
from ..models.slicing import fill, slice_weights
from ..models.source import Source, source_of
from ..models.student import student_class, student_config
from ..models.token_ids import renumbered
from ..models.weights import check_plain_weights, kept_weights, weight_factors
from ..record.facts import SourceFacts, TrainingFacts
from ..record.lineage import Lineage
from ..record.results import Results
from ..record.source import checkpoint_facts
from ..subnet import Shape, SubnetConfig
from .checkpoint import Checkpoint
from .folder import without_bars

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

Format = Literal["auto", "stock", "whittle", "padded"]
FORMATS = get_args(Format)


@dataclass(frozen=True)
class Extraction:
    """Settings of an extraction, checked before anything is read.

    Args:
        subnet (`SubnetConfig`): the subnet.
        format (`str`): one of `FORMATS`.
        dtype (`torch.dtype`, *optional*): precision of the weights; that of the source by default.
        healing (`HealingConfig`, *optional*): how to heal the student.
        calibration (`datasets.Dataset` or `torch.Tensor`, *optional*): token ids to heal it on.
        progress (`bool`): whether to show a progress bar.

    Raises:
        SubnetError: if the format is unknown, or the subnet is not a `SubnetConfig`.
        DataError: if one of `healing` and `calibration` is given without the other.
    """

    subnet: SubnetConfig
    format: Format
    dtype: torch.dtype | None
    healing: HealingConfig | None
    calibration: "Dataset | torch.Tensor | None"
    progress: bool

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise SubnetError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if not isinstance(self.subnet, SubnetConfig):
            raise SubnetError(
                f"subnet must be a SubnetConfig, got a {type(self.subnet).__name__}; make one with "
                "SubnetConfig.from_dict or SubnetConfig.from_pretrained"
            )
        if self.healing is not None and self.calibration is None:
            raise DataError("healing needs text: give blocks of tokens as calibration_dataset")
        if self.healing is None and self.calibration is not None:
            raise DataError("calibration_dataset has no effect without heal; give heal=True, or leave it out")


def as_healing(heal: HealingConfig | bool) -> HealingConfig | None:
    """Settings of healing for the argument `heal` of `extract_subnet`; `None` without healing."""
    settings = HealingConfig() if heal is True else heal or None
    if not isinstance(settings, HealingConfig | None):
        raise TypeError(f"heal must be a HealingConfig, True or False, got {heal!r}")
    return settings


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Precision by its name or type; `None` for the default.

    Raises:
        SubnetError: if it is not a floating-point type.
    """
    known = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if known is None or known == "auto":
        return None
    if not isinstance(known, torch.dtype) or not known.is_floating_point:
        raise SubnetError(f"dtype must be a floating-point type such as torch.bfloat16 or 'bfloat16', got {dtype!r}")
    return known


def extract_from_memory(model: "PreTrainedModel", extraction: Extraction) -> "PreTrainedModel":
    """Extract a student from a model, on the model's device."""
    model = uncompiled(model)
    check_plain_weights(model, may_be_offloaded=True)
    source = source_of(model)
    student = _extract(source, extraction, progress=extraction.progress and extraction.healing is not None)
    student.set_attn_implementation(attention_kernel(source.config))
    return student.to(source.device)


def extract_from_checkpoint(checkpoint: Checkpoint, extraction: Extraction) -> "PreTrainedModel":
    """Extract a student from a checkpoint, reading a tensor at a time; healing runs on a GPU if there is one."""
    config, subnet, is_healed = checkpoint.config, extraction.subnet, extraction.healing is not None
    subnet.validate(config)
    student_config(config, subnet, extraction.format)  # fails before a download
    source = source_in(checkpoint)
    stored: Any = source.weights
    needed = kept_weights(source.config, SubnetConfig.full(config) if is_healed else subnet)
    checkpoint.fetch([stored.stored[weight.name.format(layer=layer)] for weight, layer, _ in needed])
    device = accelerator_or_cpu() if is_healed else torch.device("cpu")
    dtype = extraction.dtype or checkpoint.dtype  # in this order: the latter may read a tensor of any file
    source = replace(source, device=device, dtype=dtype)
    return _extract(source, extraction, progress=extraction.progress).cpu()


def source_in(checkpoint: Checkpoint) -> Source:
    """The weights and the configuration of a checkpoint; each access reads a tensor."""
    config = as_stored(checkpoint.config, checkpoint)
    generation_config = checkpoint.generation_config
    return Source(Renamed(checkpoint, config), config, torch.device("cpu"), generation_config=generation_config)


def _extract(source: Source, extraction: Extraction, progress: bool) -> Any:
    subnet, dtype = extraction.subnet, extraction.dtype or source.dtype
    subnet.validate(source.config)
    config = student_config(source.config, subnet, extraction.format)
    state_dict, report = _student_weights(source, extraction, dtype, progress)
    with without_bars():
        student = student_class(config).from_pretrained(None, config=config, state_dict=state_dict, dtype=dtype)
    student.config.name_or_path = student.name_or_path = ""  # instead of "None", the checkpoint given above
    make_portable(student)
    facts = checkpoint_facts(source.config)
    if subnet.vocab_size is not None:
        facts = replace(facts, vocab_size=source.config.vocab_size)
    results = Results(
        supernet=None if facts == SourceFacts() else facts, student=TrainingFacts(parameters=num_parameters(config))
    )
    Lineage(subnet, report, results).attach(student)
    if source.generation_config is not None:
        settings = source.generation_config.to_dict()
        settings |= renumbered(settings, subnet.vocab_size, source.config.vocab_size)
        student.generation_config = type(source.generation_config).from_dict(settings)
    return student


def _student_weights(
    source: Source, extraction: Extraction, dtype: torch.dtype, progress: bool
) -> tuple[dict[str, torch.Tensor], HealingReport | None]:
    """Slice and, if asked, heal: the student's state dict, and the report on healing."""
    config, subnet, is_padded = source.config, extraction.subnet, extraction.format == "padded"
    if extraction.healing is None:
        return slice_weights(source.weights, config, subnet, padded=is_padded, dtype=dtype, progress=progress), None
    assert extraction.calibration is not None
    input_ids = as_input_ids(extraction.calibration, config.vocab_size)
    weights, report = heal_weights(
        source,
        subnet,
        slice_weights(source.weights, config, subnet, dtype=dtype),  # no name here: it is freed once healed
        extraction.healing,
        input_ids,
        progress,
    )
    return _filled(weights, source, extraction, dtype), report


def _filled(
    state_dict: Mapping[str, torch.Tensor], source: Source, extraction: Extraction, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Convert healed weights to the student's precision, and pad them if its format asks for that."""
    config, subnet = source.config, extraction.subnet
    kept = subnet.shape.filled(Shape.from_config(config))
    target = padded_shape(config, subnet) if extraction.format == "padded" else kept
    filled = {}
    for weight, _, position in kept_weights(config, subnet):
        name = weight.name.format(layer=position)
        held, shape = (weight_factors(weight, config, sizes, position) for sizes in (kept, target))
        filled[name] = fill(state_dict[name], held, shape, dtype)
    return filled
