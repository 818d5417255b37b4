"""Changes of a recipe that make a stage fit on a device."""

import math
from typing import TYPE_CHECKING

from ..healing.config import HealingConfig, held_out_blocks
from ..run.batches import shards_models
from .blocks import Blocks
from .facts import Problem, StagePlan
from .training_memory import text_of

if TYPE_CHECKING:
    from ..distillation.config import DistillationConfig
    from ..recipe.recipe import Recipe


_FULL = (None, "float32")
"""Precisions of a model in a recipe that 16 bits would halve."""


def problem_of(
    stage: StagePlan, available: int, recipe: "Recipe", blocks: Blocks, args: "DistillationConfig | None" = None
) -> Problem | None:
    """The problem of a stage that does not fit, with what to change; `None` if it fits.

    Args:
        stage (`StagePlan`): the stage.
        available (`int`): bytes of the device.
        recipe (`Recipe`): the recipe.
        blocks (`Blocks`): numbers of its blocks; a batch has no more.
        args (`DistillationConfig`, *optional*): arguments, if the stage is a training.
    """
    if stage.memory.peak <= available:
        return None
    if args is not None:
        changes = _of_training(stage, available, recipe, args)
    else:
        of_stage = {"search": _of_search, "healing": _of_healing}.get(stage.name, _of_others)
        changes = of_stage(stage, available, recipe, blocks)
    return Problem(stage.name, stage.memory.peak, available, tuple(changes))


def _fitting(batch: int, of_batch: int, room: int) -> int:
    """Largest batch that takes at most `room` bytes, where `batch` takes `of_batch`; 0 if none does."""
    return min(batch - 1, math.floor(batch * room / max(1, of_batch)))


def _of_training(stage: StagePlan, available: int, recipe: "Recipe", args: "DistillationConfig") -> list[str]:
    section = "baseline" if stage.name == "baseline" and isinstance(recipe.baseline, dict) else "training"
    memory, changes = stage.memory, []
    fixed = memory.weights + memory.optimizer
    evaluated = _fitting(args.per_device_eval_batch_size, memory.evaluation, available - fixed)
    if fixed + memory.evaluation > available and evaluated > 0:
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


def _smaller(parts: list[tuple[int, int, int]]) -> int:
    """Largest batch with which every part fits; 0 if none does, or if each fits as it is.

    Args:
        parts (`list`): of each part of the memory, the blocks in a batch, its bytes, and those that it may take.
    """
    return max(0, min((_fitting(*part) for part in parts if part[1] > part[2]), default=0))


def _of_search(stage: StagePlan, available: int, recipe: "Recipe", blocks: Blocks) -> list[str]:
    memory, changes, most = stage.memory, [], recipe.search.batch_size
    room = available - memory.weights - memory.moments
    if memory.moments:  # which are gathered before logits are made
        gathered = (min(most, blocks.healing), memory.activations, room)
        batch = _smaller([gathered, (min(most, blocks.search), memory.logits, room)])
    else:
        batch = _smaller([(min(most, blocks.search), memory.logits, room - memory.activations)])
    if batch > 0:
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


def _of_healing(stage: StagePlan, available: int, recipe: "Recipe", blocks: Blocks) -> list[str]:
    memory, room = stage.memory, available - stage.memory.weights
    assert isinstance(recipe.heal, HealingConfig)
    most, held_out = recipe.heal.batch_size, held_out_blocks(blocks.healing, recipe.heal.held_out)
    fitted = (min(most, blocks.healing), memory.activations, room - memory.moments)
    batch = _smaller([fitted, (min(most, held_out), memory.logits, room)])
    changes = [f"heal.batch_size: {batch}"] if batch > 0 else []
    if memory.weights < available:
        changes.append("heal: false")
    if recipe.supernet_loading.is_whole:
        changes.append("supernet_options.dtype: bfloat16: the student is then made from files, a layer at a time")
    return [*changes, "a smaller super-network, or a device with more memory"]


def _of_others(stage: StagePlan, available: int, recipe: "Recipe", blocks: Blocks) -> list[str]:
    changes = _of_teacher(recipe) if stage.memory.weights > available // 2 else []
    if stage.name == "teacher" and stage.memory.weights < available:
        changes.insert(0, "training.per_device_eval_batch_size: a smaller one")
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
