"""Model cards made of the files of a student's folder: what was measured, and nothing that is not known."""

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from ..data.documents import STANDARD_LIBRARY
from ..errors import CheckpointError
from ..files.paths import expanded
from ..files.text import read_json, write_text
from ..fitness.registry import LABELS
from ..models.portable import oldest_transformers
from ..record.files import RECIPE_FILE
from ..record.lineage import SECTIONS, Lineage
from ..record.source import CARD_FILE, INHERITED
from ..record.training import final_perplexity
from ..search.result import CANDIDATES_FILE
from ..subnet import SubnetConfig, count
from .lm_eval import LM_EVAL_FILE, LMEvalTask, read_lm_eval
from .wording import as_checkpoint, as_code, as_number, as_title

TEMPLATE = "model_card.md.jinja"
TAGS = ("hf_whittle", "subnetwork", "arxiv:2510.07227")
PICTURES = ("training", "search", "pareto", "architecture")


class SubnetModelCardData(ModelCardData):
    """Metadata of a whittled student, as the Hub reads it; what is left out is filled in from the student's facts.

    Args:
        base_model (`str` or `list[str]`, *optional*): repositories of the super-network and of the teacher.
        kwargs: as for `huggingface_hub.ModelCardData`: `license`, `language`, `datasets`, `tags`, `eval_results` ...
    """

    def __init__(self, *, base_model: str | list[str] | None = None, **kwargs: Any):
        kwargs.setdefault("library_name", "transformers")
        kwargs.setdefault("pipeline_tag", "text-generation")
        kwargs.setdefault("tags", [*TAGS])
        super().__init__(base_model=base_model, **kwargs)

    @classmethod
    def from_folder(cls, folder: str | Path, *, name: str | None = None) -> "SubnetModelCardData":
        """Metadata of the student in a folder.

        Args:
            folder (`str` or `Path`): the folder.
            name (`str`, *optional*): of the model; the folder's by default.
        """
        folder = Path(expanded(folder)).resolve()
        results, is_adapter = Lineage.load(folder).results, (folder / ADAPTER_CONFIG_NAME).is_file()
        source, data, student = (results.get(section, {}) for section in ("supernet", "data", "student"))
        base_model = [each["name"] for each in (source, results.get("teacher", {})) if "on_hub" in each]
        if is_adapter:
            base_model = [read_json(folder / ADAPTER_CONFIG_NAME)["base_model_name_or_path"]]
        base_model = list(dict.fromkeys(base_model))
        dataset = data.get("dataset") if data.get("dataset") != STANDARD_LIBRARY else None
        tags = [*TAGS]
        if any(student.get("arguments", {}).get(weight) for weight in ("beta", "hidden_weight")):
            tags.append("knowledge-distillation")
        measured = _measured_perplexity(results, dataset) + [
            EvalResult(
                task_type="text-generation",
                dataset_type=task.task,
                dataset_name=task.title,
                metric_type=task.metric,
                metric_value=round(task.value, 6),
            )
            for task in _lm_eval(folder)
        ]
        values = {name: source[name] for name in INHERITED if name in source}
        if base_model:
            values["base_model"] = base_model[0] if len(base_model) == 1 else base_model
            # The Hub takes two base models for a merge unless it is told.
            values["base_model_relation"] = "adapter" if is_adapter else "finetune"
        return cls(
            library_name="peft" if is_adapter else "transformers",
            tags=tags,
            datasets=[dataset] if dataset else None,
            model_name=(name or folder.name) if measured else None,
            eval_results=measured or None,
            **values,
        )

    def completed_by(self, other: ModelCardData) -> "SubnetModelCardData":
        """These metadata, with those of `other` where there are none; tags and results of both."""
        tags = list(dict.fromkeys([*(other.tags or ()), *(self.tags or ())]))
        results = [*(other.eval_results or ()), *(self.eval_results or ())]
        values = {name: value for name, value in vars(self).items() if value is not None}
        known = vars(other)
        if self.license is not None:  # of another license, these would be
            known = {name: value for name, value in known.items() if name not in ("license_name", "license_link")}
        merged = {**known, **values, "tags": tags, "eval_results": results or None}
        merged["library_name"] = other.library_name
        if self.base_model is not None and not hasattr(self, "base_model_relation"):
            merged["base_model_relation"] = None
        return SubnetModelCardData(**merged)


def _measured_perplexity(results: dict[str, Any], dataset: str | None) -> list[EvalResult]:
    perplexity = final_perplexity(results.get("student", {}))
    if perplexity is None:
        return []
    text = "held-out text" if "test_tokens" in results.get("teacher", {}) else "evaluation data"
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or "text",
            dataset_name=dataset or text,
            metric_type="perplexity",
            metric_value=round(perplexity, 4),
        )
    ]


def _lm_eval(folder: Path) -> list[LMEvalTask]:
    path = folder / LM_EVAL_FILE
    return read_lm_eval(path) if path.is_file() else []


def render_card(folder: str | Path, *, repo_id: str | None = None, card_data: SubnetModelCardData | None = None) -> str:
    """The model card of the student in a folder.

    It is a function of the folder's files: `config.json`, `subnet.json`, `results.json`, `healing.json`, `recipe.yaml`,
    `lm_eval.json` and pictures, of which any but the first may be missing; what they do not say is left out.

    Args:
        folder (`str` or `Path`): the folder.
        repo_id (`str`, *optional*): its name on the Hub, for the snippet that loads it.
        card_data (`SubnetModelCardData`, *optional*): metadata that count more than those of the folder.

    Raises:
        CheckpointError: if the folder holds no student.
    """
    folder = Path(expanded(folder)).resolve()
    is_adapter = (folder / ADAPTER_CONFIG_NAME).is_file()
    if not is_adapter and not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"{folder} holds no student: {CONFIG_NAME} is missing")
    name = repo_id.split("/")[-1] if repo_id else folder.name
    derived = SubnetModelCardData.from_folder(folder, name=name)
    lineage = Lineage.load(folder)
    results, subnet = lineage.results, lineage.subnet
    config = {} if is_adapter else read_json(folder / CONFIG_NAME)
    context: dict[str, Any] = {section: results.get(section) for section in SECTIONS}
    context |= {
        "title": as_title(name),
        "model": json.dumps(repo_id or ".", ensure_ascii=False),
        "repo_id": repo_id,
        "adapter_of": derived.base_model if is_adapter else None,
        "is_stock": "auto_map" not in config,
        "oldest_transformers": oldest_transformers(config),
        "is_gpt_neox": config.get("model_type") == "gpt_neox",
        "pictures": {picture for picture in PICTURES if (folder / f"{picture}.png").is_file()},
        "has_recipe": (folder / RECIPE_FILE).is_file(),
        "has_archive": (folder / CANDIDATES_FILE).is_file(),
        "final": final_perplexity(results.get("student", {})),
        "layers": None if subnet is None else _layer_rows(subnet),
        "channels": None if subnet is None else count(subnet.hidden_size),
        "carries_components": lineage.carries_components,
        "minimised": _minimised(results.get("search")),
        "tasks": _lm_eval(folder),
        "number": as_number,
        "code": as_code,
        "checkpoint": as_checkpoint,
    }
    with resources.as_file(resources.files(__package__).joinpath(TEMPLATE)) as path:
        data = derived if card_data is None else card_data.completed_by(derived)
        card = ModelCard.from_template(data, template_path=str(path), **context)
    return sealed(str(card))


def sealed(page: str) -> str:
    """A page with a comment at its end that tells whether somebody changed it."""
    return f"{page}\n{_seal(page)}\n"


def is_as_rendered(card: str) -> bool:
    """Whether a card is as it was rendered: nobody changed it."""
    page, _, last = card.rstrip("\n").rpartition("\n")
    return last == _seal(page)


def _seal(page: str) -> str:
    """A comment that belongs to this page alone."""
    return f"<!-- made by hf_whittle, {hashlib.sha256(page.encode()).hexdigest()[:12]} -->"


def write_card(folder: str | Path, **options: Any) -> None:
    """Write `README.md` into the folder of a student; options as for `render_card`."""
    write_text(Path(folder) / CARD_FILE, render_card(folder, **options))


def _layer_rows(subnet: SubnetConfig) -> list[tuple[int, int, int, int]]:
    """For each layer of the student: its number, the layer it was cut from, heads, neurons."""
    sizes = zip(subnet.layers, subnet.num_attention_heads, subnet.intermediate_size, strict=True)
    return [(i, layer, count(heads), count(neurons)) for i, (layer, heads, neurons) in enumerate(sizes)]


def _minimised(search: dict[str, Any] | None) -> str:
    """What the search minimised, in words; nothing for perplexity and for what is not known."""
    if search is None:
        return ""
    fitness = search["fitness"]
    return LABELS.get(fitness["name"], "").format_map({"steps": "some", "criterion": "measured", **fitness})
