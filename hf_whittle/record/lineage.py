"""Origin of a student: an attribute of a model, files of a folder."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError

from ..compat.transformers import has_loaded_weights
from ..files.paths import expanded
from ..files.text import read_json, write_json
from ..healing.config import HEALING_FILE, HealingReport
from ..subnet import SUBNET_FILE, SubnetConfig
from .facts import HealingFacts
from .files import RESULTS_FILE
from .results import Results


@dataclass(frozen=True)
class Lineage:
    """Origin of a student.

    Args:
        subnet (`SubnetConfig`, *optional*): the subnet that it was extracted as.
        healing (`HealingReport`, *optional*): the report on its healing.
        results (`Results`): facts of its making.
    """

    subnet: SubnetConfig | None = None
    healing: HealingReport | None = None
    results: Results = field(default_factory=Results)

    @classmethod
    def of(cls, student: Any) -> "Lineage":
        """The lineage of a model: attached by `extract_subnet` or a trainer, or in the folder it was loaded from.

        From a folder, only facts of its making count: its weights may have changed since anything was measured there.
        """
        while hasattr(student, "get_base_model"):  # adapters around it
            student = student.get_base_model()
        lineage = getattr(student, "lineage", None)
        if lineage is None:
            origin = _origin(student)
            lineage = cls() if origin is None else cls.load(origin)
            lineage = replace(lineage, results=lineage.results.of_making)
        subnet, healing = (getattr(student, name, None) for name in ("subnet", "healing"))
        return replace(lineage, subnet=subnet or lineage.subnet, healing=healing or lineage.healing)._completed()

    @classmethod
    def load(cls, folder: str | Path) -> "Lineage":
        """Read the lineage in a folder; parts without a file are unknown."""
        folder = Path(expanded(folder))
        return cls(
            SubnetConfig.from_pretrained(folder) if (folder / SUBNET_FILE).is_file() else None,
            _healing_report(folder / HEALING_FILE) if (folder / HEALING_FILE).is_file() else None,
            Results.load(folder),
        )

    def attach(self, student: Any) -> None:
        """Attach it to a model as `lineage`, with `subnet` and `healing` as shortcuts.

        The model then knows it even when the folder it was loaded from is gone.
        """
        student.lineage, student.subnet, student.healing = self, self.subnet, self.healing

    def save(self, folder: str | Path) -> None:
        """Write `subnet.json`, `healing.json` and `results.json`, each if there is something to write."""
        folder = Path(expanded(folder))
        if self.subnet is not None:
            self.subnet.save_pretrained(folder)
            (folder / HEALING_FILE).unlink(missing_ok=True)  # of another student that was there
        if self.healing is not None:
            write_json(folder / HEALING_FILE, self.healing.to_dict())
        if self.results != Results():
            self.results.save(folder)

    @property
    def carries_components(self) -> bool:
        """Whether the student was healed so that its hidden states are principal components instead of channels."""
        healing = self.healing
        return healing is not None and healing.is_healed and (healing.basis or healing.settings["basis"]) == "principal"

    def _completed(self) -> "Lineage":
        """The lineage with the facts of healing, which a student just extracted lacks."""
        if self.healing is None or self.results.healing is not None:
            return self
        facts = HealingFacts.from_dict(self.healing.to_dict())
        return replace(self, results=replace(self.results, healing=facts))


def _healing_report(path: Path) -> HealingReport:
    values = read_json(path)
    return HealingReport(**{field.name: values[field.name] for field in fields(HealingReport) if field.name in values})


def _origin(student: Any) -> Path | None:
    """The folder that a model's weights were loaded from, perhaps of the Hub's cache; `None` if there is none."""
    name = getattr(student, "name_or_path", "")
    if not name or not has_loaded_weights(student):
        return None
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=[SUBNET_FILE, HEALING_FILE, RESULTS_FILE]))
    except (HTTPError, HFValidationError, OSError):  # a folder that is gone, or a Hub that cannot be reached
        return None
