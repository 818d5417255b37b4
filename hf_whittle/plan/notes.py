"""Notes of a plan: what it assumes, and what it does not know."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .advice import in_words
from .blocks import Blocks
from .loaded import Loaded
from .memory import Memories
from .students import Students
from .vocabularies import Vocabularies

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe


def notes_of(
    recipe: "Recipe",
    students: Students,
    blocks: Blocks,
    memories: Memories,
    vocabularies: Vocabularies,
    hours: Mapping[str, float],
    *,
    has_store: bool,
    has_read_text: bool,
    processes: int,
) -> list[str]:
    """The notes of a plan.

    Args:
        recipe (`Recipe`): the recipe.
        students (`Students`): its students.
        blocks (`Blocks`): its text.
        memories (`Memories`): memory of its stages.
        vocabularies (`Vocabularies`): vocabularies of its students.
        hours (`Mapping[str, float]`): hours of each stage by name.
        has_store (`bool`): whether the store that the recipe names, if any, was written.
        has_read_text (`bool`): whether the text was read and counted.
        processes (`int`): processes that work together.
    """
    notes = []
    if processes > 1:
        notes.append("Memory is that of each process; hours leave out what processes send to one another.")
    if not students.is_known:
        notes.append("The student is planned as the costliest of its bin; --subnet plans a known one.")
    if recipe.data.streaming:
        notes.append(_on_stream(recipe, blocks))
    elif not has_read_text:
        notes.append("The text is taken to be long enough for every split; --read-text counts it.")
    if recipe.space.vocab_sizes is not None:
        notes.append(vocabularies.note(students.student_config))
    models = {} if recipe.student else {"super-network": memories.loaded_supernet}
    if not recipe.is_one_model:
        models["teacher"] = memories.loaded_teacher
    notes += [note for name, model in models.items() for note in _on_model(name, model)]
    if recipe.teacher_store is not None and not has_store:
        notes.append("The store does not exist; hf-whittle store-logits writes it before the run.")
    if hours.get("search", 0) > hours["student"]:
        notes.append(
            "The search takes longer than the training: fewer data.search_tokens or generations, or a smaller "
            "search.score_share, shorten it."
        )
    return notes


def _on_stream(recipe: "Recipe", blocks: Blocks) -> str:
    data = recipe.data
    tokens = max(number * blocks.size / data.fractions[name] for name, number in data.held_out.items())
    return (
        "The text is streamed: a training reads the tokens above, from the start again where the text is shorter, "
        f"and each start of the run first reads about {tokens:,.0f} tokens of text to find the held-out blocks."
    )


def _on_model(name: str, model: Loaded) -> Iterator[str]:
    """What a plan does not know about a loaded model."""
    if not model.is_known:
        yield f"The bits of the {name}'s quantizer are not known; it is planned as if it were not quantized."
    if not model.on_device:
        yield f"The {name} lies and runs on the CPU; the hours are those of the device."
    if model.offloaded:
        yield (
            f"{in_words(model.offloaded)} of the {name} do not lie on the device and are copied there in each forward "
            "pass; the hours leave that out."
        )
