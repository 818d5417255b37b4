"""Ledger of a run: the facts of its stages on disk, each written once, and the costs in tokens and FLOPs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedConfig

from ..cost.counts import flops_per_token, training_flops_per_token
from ..files.atomic import remove_folder
from ..files.text import read_json, write_json
from ..healing.cost import healing_flops
from ..processes import in_first
from ..record.facts import Facts, FlopsPerToken
from ..subnet import SubnetConfig
from .inputs import Inputs

F = TypeVar("F", bound=Facts)


@dataclass(frozen=True)
class Ledger:
    """Facts of the stages of a run, in `stages/*.json`; a stage whose facts are there is done.

    Args:
        folder (`Path`): folder of the run.
    """

    folder: Path

    @property
    def stages(self) -> Path:
        """Folder of the stages."""
        return self.folder / "stages"

    def once(self, stage: str, kind: type[F], work: Callable[[], F]) -> F:
        """Facts of a stage, which is done first if it has not been; its checkpoints are removed.

        All processes do the work, and have the facts of the first one.
        """
        path = self.stages / f"{stage}.json"
        found = None if in_first(path.is_file) else work()
        return in_first(lambda: self._note(path, kind, found))

    def _note(self, path: Path, kind: type[F], found: F | None) -> F:
        if found is not None:
            write_json(path, found.to_dict())
        remove_folder(path.with_suffix(""))
        return kind.from_dict(read_json(path))


def calibration_cost(inputs: Inputs) -> dict[str, int]:
    """Tokens and FLOPs of the importance scores: one forward pass, and for `taylor` another one with its backward."""
    criterion, length = inputs.recipe.importance_criterion, inputs.recipe.data.block_size
    if criterion is None:
        return {"tokens": 0, "flops": 0}
    tokens = len(inputs.calibration_blocks) * length
    passes = 4 if criterion == "taylor" else 1
    return {
        "tokens": tokens,
        "flops": passes * tokens * flops_per_token(inputs.origin_config, sequence_length=length),
    }


def healing_cost(inputs: Inputs, subnet: SubnetConfig, report: dict[str, Any]) -> int:
    """FLOPs of healing the student of a subnet, whose `HealingReport` is given as a `dict`."""
    return healing_flops(inputs.origin_config, subnet, report, inputs.recipe.data.block_size)


def training_cost(student: PreTrainedConfig, teacher: PreTrainedConfig | None, sequence_length: int) -> FlopsPerToken:
    """FLOPs of a training for each token: the student's passes, and the teacher's forward pass if there is one."""
    return FlopsPerToken(
        student=training_flops_per_token(student, sequence_length=sequence_length),
        teacher=0 if teacher is None else flops_per_token(teacher, sequence_length=sequence_length),
    )
