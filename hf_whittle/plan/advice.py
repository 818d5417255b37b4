"""Changes of a recipe that make a stage fit on a device."""

import copy
import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..healing.config import HealingConfig
from ..run.batches import shards_models
from .facts import Problem, StagePlan
from .fitnesses import Fitnesses
from .memory import Memories
from .training_memory import text_of

if TYPE_CHECKING:
    from ..distillation.config import DistillationConfig
    from ..recipe.recipe import Recipe


_FULL = (None, "float32")
"""Precisions of a model in a recipe that 16 bits would halve."""


def problem_of(
    stage: StagePlan, memories: Memories, fitnesses: Fitnesses | None, args: "DistillationConfig | None" = None
) -> Problem | None:
    """The problem of a stage that does not fit, with what to change; `None` if it fits.

    Args:
        stage (`StagePlan`): the stage.
        memories (`Memories`): memory of all stages, by which changes are tried.
        fitnesses (`Fitnesses`, *optional*): costs of fitnesses, if there is a search.
        args (`DistillationConfig`, *optional*): arguments, if the stage is a training.
    """
    if stage.memory.peak <= memories.available:
        return None
    if args is not None:
        changes = _of_training(stage, memories, args)
    elif stage.name == "search":
        assert fitnesses is not None
        changes = _of_search(stage, memories, fitnesses)
    else:
        changes = (_of_healing if stage.name == "healing" else _of_others)(stage, memories)
    return Problem(stage.name, stage.memory.peak, memories.available, tuple(changes))


def _largest(below: int, fits: Callable[[int], bool]) -> int:
    """Largest batch below a number that fits; 0 if none does."""
    return bisect_left(range(1, below), True, key=lambda batch: not fits(batch))


def _fitting(batch: int, of_batch: int, room: int) -> int:
    """Largest batch that takes at most `room` bytes, where `batch` takes `of_batch`; 0 if none does."""
    return min(batch - 1, math.floor(batch * room / max(1, of_batch)))


def _of_training(stage: StagePlan, memories: Memories, args: "DistillationConfig") -> list[str]:
    recipe, available = memories.recipe, memories.available
    section = "baseline" if stage.name == "baseline" and isinstance(recipe.baseline, dict) else "training"
    memory, changes = stage.memory, []
    fixed = memory.weights + memory.optimizer
    if fixed + memory.evaluation > available and (evaluated := _evaluated(memories, args, available - fixed)):
        changes.append(f"{section}.per_device_eval_batch_size: {evaluated}")
    room = available - fixed - memory.gradients
    if memory.activations + memory.logits > room > 0:
        rows = args.per_device_train_batch_size * recipe.data.block_size
        in_chunks = rows > args.chunk_size(on_cpu=False)
        changes += _of_step(section, stage, room, args, in_chunks)
    if "adamw" in (name := text_of(args.optim)) and "bit" not in name:
        saved = memory.optimizer - memory.optimizer // 4
        changes.append(f"{section}.optim: adamw_bnb_8bit, which takes {in_words(saved)} less")
    if args.has_teacher and recipe.teacher_store is None:
        changes += _of_teacher(recipe)
        if not recipe.data.streaming and recipe.space.vocab_sizes is None:  # else there is no store
            changes.append("teacher_store, by hf-whittle store-logits: the teacher does not run beside the student")
    if stage.processes > 1 and not shards_models(args):
        changes.append(f"{section}.fsdp: true, which spreads weights, gradients and optimizer over the processes")
    alone = "" if room > 0 else f": weights, optimizer and gradients alone take {in_words(available - room)}"
    return [*changes, f"a smaller {'student' if recipe.student else 'bin'}, or a device with more memory{alone}"]


def _evaluated(memories: Memories, args: "DistillationConfig", room: int) -> int:
    """Largest batch whose evaluation takes at most `room` bytes; 0 if none does."""
    changed = copy.copy(args)

    def fits(batch: int) -> bool:
        changed.per_device_eval_batch_size = batch
        return memories.evaluation(changed) <= room

    return _largest(args.per_device_eval_batch_size, fits)


def _of_step(section: str, stage: StagePlan, room: int, args: "DistillationConfig", in_chunks: bool) -> list[str]:
    """Changes that make the activations of a step smaller; accumulated gradients are held beside them.

    Logits of a smaller batch take less, unless they are computed in chunks.
    """
    changes, batch, memory = [], args.per_device_train_batch_size, stage.memory
    if in_chunks:
        fitting = _fitting(batch, memory.activations, room - memory.logits)
    else:
        fitting = _fitting(batch, memory.activations + memory.logits, room)
    if fitting > 0:
        fitting = max(size for size in range(1, fitting + 1) if batch % size == 0)
        times = args.gradient_accumulation_steps * batch // fitting * stage.processes
        changes.append(f"{section}.per_device_train_batch_size: {fitting} with gradient_accumulation_steps: {times}")
    if not args.activation_checkpointing:
        changes.append(f"{section}.activation_checkpointing: true, which runs each layer twice")
    if not (args.bf16 or args.fp16):
        changes.append(f"{section}.bf16: true, which halves most activations")
    return changes


def _of_search(stage: StagePlan, memories: Memories, fitnesses: Fitnesses) -> list[str]:
    recipe, memory, changes = memories.recipe, stage.memory, []

    def fits(batch: int) -> bool:
        changed = replace(recipe, search=replace(recipe.search, batch_size=batch))
        return replace(memories, recipe=changed).search(fitnesses).peak <= memories.available

    blocks = memories.blocks
    if batch := _largest(min(memories.in_search, max(blocks.search, blocks.healing)), fits):
        changes.append(f"search.batch_size: {batch}")
    if recipe.search.fitness == "kl":
        changes.append("data.search_tokens: fewer, or search.fitness: perplexity, which keeps no targets")
    elif memory.moments:
        changes.append(
            f"search.fitness: perplexity, which takes no moments ({in_words(memory.moments)}), or in Python "
            "HealedPerplexity(memory=...)"
        )
    if recipe.supernet_loading.dtype in _FULL:
        changes.append("supernet_options.dtype: bfloat16, which halves the super-network")
    if recipe.supernet_loading.device_map is None:
        changes.append("supernet_options.device_map: auto, which keeps on the CPU what does not fit")
    return [*changes, "a smaller super-network, or a device with more memory"]


def _of_healing(stage: StagePlan, memories: Memories) -> list[str]:
    recipe, settings = memories.recipe, memories.recipe.heal
    assert isinstance(settings, HealingConfig)

    def fits(batch: int) -> bool:
        return memories.healing(replace(settings, batch_size=batch)).peak <= memories.available

    batch = _largest(memories.in_healing(settings), fits)
    changes = [f"heal.batch_size: {batch}"] if batch else []
    if stage.memory.weights < memories.available:
        changes.append("heal: false")
    if recipe.supernet_loading.is_whole:
        changes.append("supernet_options.dtype: bfloat16: the student is then made from files, a layer at a time")
    return [*changes, "a smaller super-network, or a device with more memory"]


def _of_others(stage: StagePlan, memories: Memories) -> list[str]:
    changes = _of_teacher(memories.recipe) if stage.memory.weights > memories.available // 2 else []
    return [*changes, "data.block_size: a smaller one", "a smaller teacher, or a device with more memory"]


def _of_teacher(recipe: "Recipe") -> list[str]:
    """Changes that make the teacher smaller."""
    if recipe.teacher_loading.dtype in _FULL:
        return ["teacher_options.dtype: bfloat16, which halves the teacher"]
    if recipe.teacher_loading.quantization_config is None:
        own = "" if recipe.student else ", with supernet_options of its own"
        return [f"teacher_options.quantization_config: {{load_in_4bit: true}}{own}"]
    return []


def in_words(size: float) -> str:
    """A number of bytes in words."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
