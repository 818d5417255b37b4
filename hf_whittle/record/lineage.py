"""What a student carries with it of its making: attributes of a model, files of a folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError

from ..compat import has_loaded_weights
from ..files.paths import expanded
from ..files.text import read_json, write_json
from ..healing.config import HEALING_FILE, HealingReport
from ..subnet import SUBNET_FILE, SubnetConfig

RESULTS_FILE = "results.json"
MAKING = ("supernet", "search", "healing")
"""Sections of `results.json` that stay true of a student whatever it is trained on."""
SECTIONS = (*MAKING, "data", "teacher", "student", "baseline", "to_match", "environment")
"""What `results.json` holds, at most."""


@dataclass
class Lineage:
    """Where a student comes from.

    Args:
        subnet (`SubnetConfig`, *optional*): what it keeps of its super-network.
        healing (`dict`, *optional*): a `HealingReport` as `to_dict` gives it.
        results (`dict`): facts of its making, by section, as in `results.json`.
    """

    subnet: SubnetConfig | None = None
    healing: dict[str, Any] | None = None
    results: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, student: Any) -> "Lineage":
        """Of a model: what `extract_subnet` and trainers left on it, or what is where it was loaded from."""
        while hasattr(student, "get_base_model"):  # adapters around it
            student = student.get_base_model()
        healing, on_disk = getattr(student, "healing", None), cls()
        origin = None if hasattr(student, "results") else _origin(student)
        if origin is not None:
            on_disk = cls.load(origin)
            # What was measured of it there may not be true any more.
            on_disk.results = {name: facts for name, facts in on_disk.results.items() if name in MAKING}
        lineage = cls(
            getattr(student, "subnet", None) or on_disk.subnet,
            healing.to_dict() if healing is not None else on_disk.healing,
            {**on_disk.results, **getattr(student, "results", {})},
        )
        if lineage.healing is not None:
            lineage.results.setdefault("healing", healing_facts(lineage.healing))
        return lineage

    @classmethod
    def load(cls, folder: str | Path) -> "Lineage":
        """Of a folder; what it has no file of is not known."""
        folder = Path(expanded(folder))
        return cls(
            SubnetConfig.from_pretrained(folder) if (folder / SUBNET_FILE).is_file() else None,
            read_json(folder / HEALING_FILE) if (folder / HEALING_FILE).is_file() else None,
            _known_sections(folder / RESULTS_FILE),
        )

    def attach(self, student: Any) -> None:
        """Leave it on a model, which then knows it also when the folder it was loaded from is gone."""
        if self.subnet is not None:
            student.subnet = self.subnet
        if self.healing is not None:
            student.healing = HealingReport(**self.healing)
        student.results = self.results

    def save(self, folder: str | Path) -> None:
        """Write `subnet.json`, `healing.json` and `results.json`, each if there is something to write."""
        folder = Path(expanded(folder))
        if self.subnet is not None:
            self.subnet.save_pretrained(folder)
            (folder / HEALING_FILE).unlink(missing_ok=True)  # of another student that was there
        if self.healing is not None:
            write_json(folder / HEALING_FILE, self.healing)
        if self.results:
            write_json(folder / RESULTS_FILE, self.results)

    @property
    def carries_components(self) -> bool:
        """Whether the student's stream was healed to carry principal components instead of channels."""
        healing = self.healing
        return healing is not None and healing["is_healed"] and healing["settings"]["basis"] == "principal"


def healing_facts(report: dict[str, Any]) -> dict[str, Any]:
    """What healing did, of a `HealingReport` as `to_dict` gives it."""
    names = ("is_healed", "perplexity_before", "perplexity_after", "tokens", "held_out_tokens")
    return {name: report[name] for name in names}


def _origin(student: Any) -> Path | None:
    """The folder, of the Hub's cache if need be, that a model has weights of and not just the architecture."""
    name = getattr(student, "name_or_path", "")
    if not name or not has_loaded_weights(student):
        return None
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=[SUBNET_FILE, HEALING_FILE, RESULTS_FILE]))
    except (HTTPError, HFValidationError, OSError):  # a folder that is gone, or a Hub that cannot be reached
        return None


def _known_sections(path: Path) -> dict[str, Any]:
    """The sections of a file of ours; nothing of one that another program, or an older version, wrote."""
    values = read_json(path) if path.is_file() else {}
    sections = {name: values[name] for name in SECTIONS if name in values} if isinstance(values, dict) else {}
    if "space" not in sections.get("search", {"space": None}):
        del sections["search"]
    for name in ("supernet", "teacher"):
        if Path(sections.get(name, {}).get("name", "")).is_absolute():
            sections[name]["name"] = Path(sections[name]["name"]).name
    return sections
