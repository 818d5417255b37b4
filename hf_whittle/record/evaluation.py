"""Facts of evaluations after a student was made: on texts, and on tasks of lm-evaluation-harness."""

from dataclasses import dataclass
from typing import Any

from .data import NamedText
from .facts import Environment, Facts


@dataclass(frozen=True, kw_only=True)
class TextEvaluation(NamedText):
    """An evaluation on a text.

    Args:
        config, split (`str`, *optional*): configuration and split of a data set.
        protocol (`str`): how the text was cut; see `hf_whittle.evaluation.measure_texts`.
        block_size (`int`): most tokens of a window.
        tokens (`int`): predicted tokens.
        bytes (`int`): bytes of the text.
        perplexity (`float`): perplexity of a token.
        bits_per_byte (`float`): bits per byte.
        word_perplexity (`float`): perplexity of a word.
        precision (`str`, *optional*): precision of the weights, if not single.
    """

    config: str | None = None
    split: str | None = None
    protocol: str
    block_size: int
    tokens: int
    bytes: int
    perplexity: float
    bits_per_byte: float
    word_perplexity: float
    precision: str | None = None

    @property
    def of(self) -> tuple[Any, ...]:
        """What it is an evaluation of: another one of the same replaces it.

        Files of other folders can have the same last names, so the number of bytes tells texts apart.
        """
        text = self.in_words, self.config, self.split, self.bytes
        return *text, self.protocol, self.block_size, self.precision


@dataclass(frozen=True, kw_only=True)
class TaskEvaluation(Facts):
    """A metric of a task of lm-evaluation-harness.

    Args:
        task (`str`): the task's name.
        title (`str`): the task's name for people.
        shots (`int`, *optional*): examples in the prompt.
        metric (`str`): the metric.
        value (`float`): its value.
        error (`float`, *optional*): its standard error.
        limit (`float`, *optional*): examples that were evaluated, or the share of them if below 1, if not all.
        precision (`str`, *optional*): precision of the weights, if not single.
    """

    task: str
    title: str
    shots: int | None = None
    metric: str
    value: float
    error: float | None = None
    limit: float | None = None
    precision: str | None = None

    @property
    def of(self) -> tuple[Any, ...]:
        """What it is an evaluation of, likewise."""
        return self.task, self.metric, self.shots, self.limit, self.precision


@dataclass(frozen=True, kw_only=True)
class EvaluationFacts(Facts):
    """Evaluations of a student.

    Args:
        texts (`tuple[TextEvaluation, ...]`, *optional*): those on texts.
        tasks (`tuple[TaskEvaluation, ...]`, *optional*): those on tasks.
        environment (`Environment`, *optional*): versions and hardware of the last one.
    """

    texts: tuple[TextEvaluation, ...] = ()
    tasks: tuple[TaskEvaluation, ...] = ()
    environment: Environment | None = None

    def updated_by(self, other: "EvaluationFacts") -> "EvaluationFacts":
        """These, with those of `other`, which replace any of the same text or task."""
        texts = {each.of: each for each in (*self.texts, *other.texts)}
        tasks = {each.of: each for each in (*self.tasks, *other.tasks)}
        return EvaluationFacts(
            texts=tuple(texts.values()), tasks=tuple(tasks.values()), environment=other.environment or self.environment
        )


def task_evaluations(results: dict[str, Any], **known: Any) -> tuple[TaskEvaluation, ...]:
    """Every metric of every task in the results of lm-evaluation-harness.

    Args:
        results (`dict`): results as `lm_eval` returns or writes them.
        known: other fields of `TaskEvaluation`, the same for all.
    """
    shots = results.get("n-shot", {})
    return tuple(
        TaskEvaluation(**row, shots=shots.get(task), **known)
        for task, metrics in results["results"].items()
        for row in _rows(task, metrics)
    )


def _rows(task: str, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    title = str(metrics.get("alias", task)).strip(" -")
    rows = []
    for key, value in metrics.items():
        name, _, filtered = key.partition(",")
        if isinstance(value, bool) or not isinstance(value, int | float) or name.endswith("_stderr") or not filtered:
            continue
        error = metrics.get(f"{name}_stderr,{filtered}")
        metric = name if filtered == "none" else f"{name} ({filtered})"
        known = float(error) if isinstance(error, int | float) else None
        rows.append({"task": task, "title": title, "metric": metric, "value": float(value), "error": known})
    return rows
