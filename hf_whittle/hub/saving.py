"""Writing a student into a folder, with everything known of it, pictures and a card."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from ..architectures.registry import has_architecture
from ..cost.counts import num_parameters
from ..files.paths import expanded
from ..files.text import write_text
from ..files.tokenizer import save_tokenizer
from ..models.portable import make_portable
from ..record.facts import TrainingFacts
from ..record.files import CARD_FILE
from ..record.lineage import Lineage
from ..record.results import Results
from ..search.facts import search_facts
from ..search.result import SEARCH_FILE, SearchResult
from ..subnet import SubnetConfig
from ..vocabulary.of_model import check_has_tokens
from .card import SubnetModelCardData, is_as_rendered, render_card
from .student_folder import StudentFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_student(
    student: "PreTrainedModel",
    folder: str | Path,
    *,
    search_result: SearchResult | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a student and everything known of it into a folder, with its card, for `hf-whittle push` to publish.

    Args:
        student (`PreTrainedModel`): a student, or adapters of one.
        folder (`str` or `Path`): the folder.
        search_result (`SearchResult`, *optional*): the search that found it, with its archive and pictures.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): its tokenizer.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): most bytes of a file of weights.

    Raises:
        VocabularyError: if the tokenizer has more tokens than the student; nothing is written then.
    """
    if tokenizer is not None:
        check_has_tokens(student.config.vocab_size, tokenizer, "the tokenizer that is given")
    folder = Path(expanded(folder))
    make_portable(student)
    with using_cache(student.config):
        student.save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / CARD_FILE).unlink(missing_ok=True)  # peft writes its own
    if not hasattr(student, "peft_config"):
        remove_adapters(folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    lineage = Lineage.of(student)
    if search_result is not None:
        lineage = _with_search(lineage, search_result)
        search_result.save(folder)
    if has_architecture(student.config):
        known = replace(lineage.results.student or TrainingFacts(), parameters=num_parameters(student.config))
        lineage = replace(lineage, results=replace(lineage.results, student=known))
    lineage.save(folder)
    describe(folder)


def _with_search(lineage: Lineage, search_result: SearchResult) -> Lineage:
    subnet = lineage.subnet or search_result.best
    results = replace(lineage.results, search=search_facts(search_result, subnet))
    return replace(lineage, subnet=subnet, results=results)


@contextlib.contextmanager
def using_cache(config: Any) -> Iterator[None]:
    """Within it, a configuration has `use_cache`, which a `Trainer` unsets."""
    before = getattr(config, "use_cache", None)
    if before is not None:
        config.use_cache = True
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before


def remove_adapters(folder: Path) -> None:
    """Remove the adapters of a student that were saved before they were merged."""
    for name in (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME):
        (folder / name).unlink(missing_ok=True)


def describe(folder: str | Path, card_data: SubnetModelCardData | None = None) -> None:
    """Draw the pictures of a student's folder, and write its card unless somebody wrote or changed it.

    Args:
        folder (`str` or `Path`): the folder.
        card_data (`SubnetModelCardData`, *optional*): metadata that take precedence over those of the folder.
    """
    folder = Path(expanded(folder))
    student = StudentFolder.load(folder)
    drawn = {*_draw_search(folder, student.lineage.subnet), *_draw_training(folder, student.lineage.results)}
    card = folder / CARD_FILE
    if not card.is_file() or is_as_rendered(card.read_text(encoding="utf-8")):
        write_text(card, render_card(replace(student, files=student.files | drawn), card_data=card_data))


def _draw_search(folder: Path, subnet: SubnetConfig | None) -> list[str]:
    """Draw a search and the subnet of a student; names of the pictures."""
    if not (folder / SEARCH_FILE).is_file():
        return []
    search = SearchResult.load(folder)
    pictures = search.plot(folder)
    if subnet not in (None, search.best):  # another one of its subnets
        from ..plots import plot_architecture

        plot_architecture(subnet, search.settings["space"]["supernet"], folder / "architecture.png")
    return [picture.name for picture in pictures]


def _draw_training(folder: Path, results: Results) -> list[str]:
    """Draw the curves of a training and its baseline; name of the picture."""
    trainings = {"student": results.student, "random initialization": results.baseline}
    curves = {name: facts.points for name, facts in trainings.items() if facts is not None and facts.points}
    if len(curves.get("student", ())) < 2:
        return []
    from ..plots import plot_training  # matplotlib, which a training does not need

    target = None if results.to_match is None else results.to_match.perplexity
    plot_training(curves, folder / "training.png", target)
    return ["training.png"]
