"""Model cards, rendered from the files of a student's folder: facts that were measured, and none that is not known."""

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..architectures.dimensions import HEAD_CHANNELS, QUERIES
from ..architectures.registry import get_architecture, is_known
from ..data.documents import STANDARD_LIBRARY
from ..fitness.registry import LABELS
from ..models.portable import oldest_transformers
from ..record.evaluation import TextEvaluation
from ..record.facts import FitnessFacts, SourceFacts
from ..record.files import RECIPE_FILE
from ..record.lineage import Lineage
from ..record.results import Results
from ..record.source import INHERITED
from ..search.result import CANDIDATES_FILE
from ..subnet import SubnetConfig, count
from .student_folder import StudentFolder
from .wording import as_checkpoint, as_code, as_link, as_number, as_title

TEMPLATE = "model_card.md.jinja"
OPENING = "opening.md.jinja"
MARKDOWN: Mapping[str, Callable[..., str]] = {"code": as_code, "checkpoint": as_checkpoint, "link": as_link}
"""Functions that word names and links in Markdown."""
TAGS = ("hf_whittle", "subnetwork", "arxiv:2510.07227")
PICTURES = ("training", "search", "pareto", "architecture")


class SubnetModelCardData(ModelCardData):
    """Metadata of a student for the Hub; those left out are filled in from the facts of the student.

    Args:
        base_model (`str` or `list[str]`, *optional*): repositories of the super-network and of the teacher.
        kwargs: as for `huggingface_hub.ModelCardData`, such as `license`, `language`, `datasets`, `eval_results`.
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
            name (`str`, *optional*): name of the model; the folder's by default.
        """
        return cls.of(StudentFolder.load(folder), name=name)

    @classmethod
    def of(cls, student: StudentFolder, *, name: str | None = None) -> "SubnetModelCardData":
        """Metadata of a student; arguments as for `from_folder`."""
        results = student.lineage.results
        datasets = _datasets(results)
        measured = _eval_results(student, datasets[0] if len(datasets) == 1 else None)
        source = _metadata(results.began_with) or _metadata(results.supernet)
        return cls(
            library_name="peft" if student.is_adapter else "transformers",
            tags=[*TAGS, *(["knowledge-distillation"] if _is_distilled(results) else [])],
            datasets=datasets or None,
            model_name=(name or student.name) if measured else None,
            eval_results=measured or None,
            **_base_model(student),
            **source,
        )

    def completed_by(self, other: ModelCardData) -> "SubnetModelCardData":
        """These metadata, with those of `other` where these have none, and the tags and results of both."""
        tags = list(dict.fromkeys([*(other.tags or ()), *(self.tags or ())]))
        results = [*(other.eval_results or ()), *(self.eval_results or ())]
        values = {name: value for name, value in vars(self).items() if value is not None}
        known = vars(other)
        if self.license is not None:  # these belong to the other license
            known = {name: value for name, value in known.items() if name not in ("license_name", "license_link")}
        merged = {**known, **values, "tags": tags, "eval_results": results or None}
        merged["library_name"] = other.library_name
        if self.base_model is not None and not hasattr(self, "base_model_relation"):
            merged["base_model_relation"] = None
        return SubnetModelCardData(**merged)


def _metadata(source: SourceFacts | None) -> dict[str, Any]:
    """Metadata of a checkpoint that hold for what is made from it."""
    known = {} if source is None else source.to_dict()
    return {name: known[name] for name in INHERITED if name in known}


def _base_model(student: StudentFolder) -> dict[str, Any]:
    """Repositories that a student comes from, and how: the Hub takes two of them for a merge unless that is stated."""
    results = student.lineage.results
    began_with = results.began_with if results.began_with is not None and results.began_with.on_hub else None
    sources = [
        each.name for each in (began_with or results.supernet, results.teacher) if each is not None and each.on_hub
    ]
    names = list(dict.fromkeys([student.adapter_of] if student.is_adapter else sources))
    if not names:
        return {}
    relation = "adapter" if student.is_adapter else "finetune"
    return {"base_model": names[0] if len(names) == 1 else names, "base_model_relation": relation}


def _datasets(results: Results) -> list[str]:
    """Names of the data sets on the Hub that a student was trained on."""
    names = [] if results.data is None else results.data.datasets
    return [name for name in dict.fromkeys(names) if name != STANDARD_LIBRARY]


def _is_distilled(results: Results) -> bool:
    arguments = None if results.student is None else results.student.arguments
    return arguments is not None and bool(arguments.beta or arguments.hidden_weight)


def _eval_results(student: StudentFolder, dataset: str | None) -> list[EvalResult]:
    """Final perplexity, if it was measured, evaluations on texts, and on tasks whose examples were all evaluated."""
    results = student.lineage.results
    perplexity = None if results.student is None else results.student.final_perplexity
    measured = []
    if perplexity is not None:
        is_held_out = results.teacher is not None and results.teacher.test_tokens is not None
        text = dataset or ("held-out text" if is_held_out else "evaluation data")
        measured.append(_eval_result(dataset or "text", text, "perplexity", round(perplexity, 4)))
        bits = None if results.student is None else results.student.final_bits_per_byte
        if bits is not None:
            measured.append(_eval_result(dataset or "text", text, "bits_per_byte", round(bits, 6)))
    texts = () if results.evaluation is None else results.evaluation.texts
    measured += [result for text in texts for result in _text_results(text)]
    tasks = [
        _eval_result(task.task, task.title, task.metric, round(task.value, 6))
        for task in student.tasks
        if task.limit is None
    ]
    return [*measured, *tasks]


def _text_results(text: TextEvaluation) -> list[EvalResult]:
    """Figures of an evaluation on a text; metadata put results of one type of data set together, whatever its name."""
    figures = {name: round(getattr(text, name), 6) for name in ("perplexity", "bits_per_byte", "word_perplexity")}
    cut = f"{text.protocol}, windows of {text.block_size:,}"
    return [
        _eval_result(text.in_words, text.in_words, name, value, text.config, text.split, f"{name} ({cut})")
        for name, value in figures.items()
    ]


def _eval_result(
    dataset_type: str,
    dataset_name: str,
    metric: str,
    value: float,
    config: str | None = None,
    split: str | None = None,
    metric_name: str | None = None,
) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=dataset_type,
        dataset_name=dataset_name,
        dataset_config=config,
        dataset_split=split,
        metric_type=metric,
        metric_name=metric_name,
        metric_value=value,
    )


def render_card(
    student: StudentFolder, *, repo_id: str | None = None, card_data: SubnetModelCardData | None = None
) -> str:
    """Render the model card of a student: a function of the files of its folder, without facts that are not known.

    Args:
        student (`StudentFolder`): the student.
        repo_id (`str`, *optional*): its name on the Hub, for the snippet that loads it.
        card_data (`SubnetModelCardData`, *optional*): metadata that take precedence over those of the folder.
    """
    name = repo_id.split("/")[-1] if repo_id else student.name
    data = SubnetModelCardData.of(student, name=name)
    with resources.as_file(resources.files(__package__).joinpath(TEMPLATE)) as path:
        card = ModelCard.from_template(
            data if card_data is None else card_data.completed_by(data),
            template_path=str(path),
            title=as_title(name),
            model=json.dumps(repo_id or ".", ensure_ascii=False),
            repo_id=repo_id,
            opening=opening(student),
            adapter_of=student.adapter_of,
            number=as_number,
            code=as_code,
            checkpoint=as_checkpoint,
            **_about_files(student),
            **_about_making(student.lineage),
        )
    return sealed(str(card))


def opening(student: StudentFolder, words: Mapping[str, Callable[..., str]] = MARKDOWN) -> str:
    """The first sentences of a model card: how a student was made, and what it reached.

    Args:
        student (`StudentFolder`): the student.
        words (`Mapping[str, Callable]`, *optional*): functions that word `code`, a `checkpoint` and a `link` for the
            page, in Markdown by default; all else is escaped for HTML unless they are those.
    """
    text = resources.files(__package__).joinpath(OPENING).read_text(encoding="utf-8")
    template = jinja2.Template(text, autoescape=words is not MARKDOWN)
    about = _about_making(student.lineage)
    return template.render(adapter_of=student.adapter_of, number=as_number, **words, **about)


def _about_files(student: StudentFolder) -> dict[str, Any]:
    config = {} if student.is_adapter else dict(student.config)
    model_type = config.get("model_type")
    return {
        "is_stock": "auto_map" not in config,
        "stock": get_architecture(model_type).causal_class if model_type and is_known(model_type) else None,
        "oldest_transformers": oldest_transformers(config),
        "pictures": {picture for picture in PICTURES if f"{picture}.png" in student.files},
        "has_recipe": RECIPE_FILE in student.files,
        "has_archive": CANDIDATES_FILE in student.files,
        "tasks": student.tasks,
    }


def _about_making(lineage: Lineage) -> dict[str, Any]:
    results, subnet = lineage.results, lineage.subnet
    trained = results.student is not None and bool(results.student.steps)
    weights = results.student.arguments if results.student is not None and trained else None
    return {
        **vars(results),
        "trained": trained,
        "weights": weights,
        "distilled": weights is not None and bool(weights.beta or weights.hidden_weight),
        "adapters": results.student.adapters if results.student is not None and trained else None,
        "is_extracted": results.supernet is not None or results.search is not None or subnet is not None,
        "final": None if results.student is None else results.student.final_perplexity,
        "layers": None if subnet is None else _layer_rows(subnet),
        "of_layers": [] if subnet is None else [dimension.label for dimension in subnet.shape.per_layer],
        "channels": None if subnet is None else count(subnet.hidden_size),
        "of_heads": [] if subnet is None else _of_heads(subnet),
        "carries_components": lineage.carries_components,
        "minimized": None if results.search is None else _minimized(results.search.fitness),
        "is_best": _is_best(lineage),
        "texts": () if results.evaluation is None else results.evaluation.texts,
    }


def _is_best(lineage: Lineage) -> bool:
    """Whether the student is the best subnet of its search, as far as that is known."""
    search, subnet = lineage.results.search, lineage.subnet
    if search is None or subnet is None:
        return True
    return search.fitness.of_student is None and search.subnet == json.loads(subnet.to_json())


def sealed(page: str) -> str:
    """The page with a comment at its end that shows whether somebody changed it."""
    return f"{page}\n{_seal(page)}\n"


def is_as_rendered(card: str) -> bool:
    """Whether nobody changed a card since it was rendered."""
    page, _, last = card.rstrip("\n").rpartition("\n")
    return last == _seal(page)


def _seal(page: str) -> str:
    """The comment that belongs to this page alone."""
    return f"<!-- made by hf_whittle, {hashlib.sha256(page.encode()).hexdigest()[:12]} -->"


def _layer_rows(subnet: SubnetConfig) -> list[tuple[int, ...]]:
    """For each layer of the student: its number, the layer it was extracted from, what it keeps of each dimension."""
    sizes = [map(count, subnet.kept(dimension)) for dimension in subnet.shape.per_layer]
    return list(zip(range(len(subnet.layers)), subnet.layers, *sizes, strict=True))


_OF_HEADS = {
    QUERIES: ("query of each key-value head", "queries of each key-value head"),
    HEAD_CHANNELS: ("channel of each head", "channels of each head"),
}
"""Singular and plural of what heads keep."""


def _of_heads(subnet: SubnetConfig) -> list[str]:
    """What heads keep, in words, of dimensions that a subnet names though it need not."""
    numbers = {dimension: count(subnet.kept(dimension)) for dimension in _OF_HEADS if dimension in subnet.dimensions}
    return [f"{number} {_OF_HEADS[dimension][number > 1]}" for dimension, number in numbers.items()]


def _minimized(fitness: FitnessFacts) -> str:
    """The fitness that a search minimized, in words; one of the user's by its name."""
    if fitness.name not in LABELS:
        return as_code(fitness.name)
    return LABELS[fitness.name].format(steps=fitness.steps or "some", criterion=fitness.criterion or "measured")
