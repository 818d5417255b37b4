"""Try in small, before the first expensive step of a run, everything that it will do hours later.

The student is the smallest subnet of the space, of a layer or so, extracted and healed as the real one will be, or the
student that the recipe gives. It takes one optimizer step on two blocks of at most 32 tokens, is evaluated, saved and
loaded again, and takes another step. Teacher, tokenizer, text, schedule, optimizer, loggers, output folder and format
are those of the run. This costs two passes of the teacher over some tens of tokens and, where the teacher is not the
super-network, loading it once more.
"""

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
)

from ..architectures.dimensions import CHANNELS
from ..compat.sharding import forget_partitioning
from ..distillation.config import DistillationConfig
from ..errors import RecipeError, WhittleError
from ..extraction.checkpoint import Checkpoint
from ..extraction.extraction import extract_subnet
from ..extraction.folder import without_bars
from ..extraction.student import source_in
from ..files.disk import disk_errors
from ..files.tokenizer import save_tokenizer
from ..healing.config import BasisName, HealingConfig
from ..healing.parts import can_change_basis
from ..models.portable import check_generation_config
from ..models.source import Source, source_of
from ..processes import in_first, is_first, num_launched, wait_for_all
from ..recipe.recipe import Recipe
from ..record.lineage import Lineage
from ..space.search_space import SearchSpace
from ..subnet import SubnetConfig
from ..training.checkpoints import last_checkpoint
from ..training.strategies import smallest_subnet
from ..training.streaming import check_streaming
from .batches import own_arguments, shards_models
from .changes import has_begun
from .inputs import Inputs, free_memory, load_config
from .search_inputs import make_bin, make_space
from .stages import save_given
from .text import spread
from .trainers import Trainers, Weights, random_student, save_student, whole_weights
from .vocabularies import check_vocab_sizes, check_vocabularies, in_tokens_of, token_order

_TOKENS = 32  # in a block, unless targets come from a store of logits, which has those of whole blocks alone
_BLOCKS = 8
_FOLDER = "preflight"


def check_teacher(inputs: Inputs) -> None:
    """Find out, from configurations alone, whether the student and the search's probes can learn from the teacher.

    Raises:
        RecipeError: if a model cannot be loaded as the recipe says.
        ArchitectureError: if the teacher is of an architecture without a table.
        VocabularyError: if its vocabulary does not fit the super-network's, and something is to learn from it.
    """
    check_loading(inputs.recipe)
    config = load_config(inputs.recipe.teacher)
    check_vocabularies(inputs, inputs.origin_config, config)
    check_vocab_sizes(inputs)


def check_loading(recipe: Recipe) -> None:
    """Raise `RecipeError` if this machine lacks a quantizer, or the launched processes cannot use the devices named."""
    if num_launched() > 1 and recipe.training.get("use_cpu") and torch.accelerator.is_available():
        raise RecipeError(
            "training.use_cpu: launched processes search and train on the same devices; leave it out, and set "
            "CUDA_VISIBLE_DEVICES to nothing to run all of it on CPUs"
        )
    for section, loading in (
        ("teacher_options", recipe.teacher_options),
        ("supernet_options", recipe.supernet_options),
    ):
        loading.check_quantizer(section)
        if num_launched() > 1 and loading.device_map is not None:
            raise RecipeError(
                f"{section}.device_map: a launcher gives each process a device of its own; leave it out, or start "
                "one process"
            )


def preflight(inputs: Inputs, folder: Path) -> None:
    """Try in small every training of a run that has not begun, and everything it needs.

    Args:
        inputs (`Inputs`): the inputs of the run.
        folder (`Path`): folder of the run.

    Raises:
        RecipeError: if a section does not work; it names the section and the reason.
        OutputError, VocabularyError, StoreError, BinError, CheckpointError and others: as the run itself would.
    """
    trainings = in_first(lambda: _to_begin(inputs, folder))
    if not trainings:
        return
    if inputs.recipe.student is None:
        space = preflight_search(inputs, folder)
    else:
        space = None
        _read_text(inputs)
    small = folder / "stages" / _FOLDER
    with_teacher = in_first(lambda: not has_begun(folder, "teacher"))
    try:
        with disk_errors(folder), without_bars():
            in_first(lambda: _make_empty(small))
            _try_all(inputs, space, trainings, small, with_teacher=with_teacher)
        wait_for_all()
    finally:
        if is_first():
            shutil.rmtree(small, ignore_errors=True)
        forget_partitioning()  # of the models that the search loads
        free_memory()


def preflight_search(inputs: Inputs, folder: Path) -> SearchSpace:
    """Read the text, rank its tokens if the recipe gives sizes of the vocabulary, and set up the search.

    The search is not started; errors as for `preflight`.

    Returns:
        `SearchSpace`: its space, without importance scores, which are expensive.
    """
    _read_text(inputs)
    with _blamed("space", folder):
        space = make_space(inputs, token_order(inputs, folder / "stages"))
    in_first(lambda: _check_search(inputs, space, folder))
    return space


def _read_text(inputs: Inputs) -> None:
    inputs.text.read()
    if inputs.teacher_text is not inputs.text:
        inputs.teacher_text.read()


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)


def _to_begin(inputs: Inputs, folder: Path) -> dict[str, dict[str, Any]]:
    """Overrides of each training that has not begun, by the section of the recipe that asks for it."""
    trainings: dict[str, dict[str, Any]] = {} if has_begun(folder, "student") else {"training": {}}
    if inputs.recipe.baseline and not has_begun(folder, "baseline"):
        trainings["baseline"] = inputs.recipe.baseline_overrides
    return trainings


def _check_search(inputs: Inputs, space: SearchSpace, folder: Path) -> None:
    """Set up the search without starting it."""
    with _blamed("search", folder):
        bin = make_bin(inputs, space)
        space.reachable_pairs(bin)
        inputs.recipe.search.algorithm.algorithm(space, bin)


def _try_all(
    inputs: Inputs,
    space: SearchSpace | None,
    trainings: dict[str, dict[str, Any]],
    folder: Path,
    *,
    with_teacher: bool,
) -> None:
    """Try the student and its trainings; the memory of a teacher that is not the super-network is freed after it."""
    subnet = None if space is None else smallest_subnet(space)
    trainers = Trainers(inputs, None if subnet is None else subnet.vocab_size, keeps_supernet=True)
    in_first(lambda: _try_student(inputs, space, subnet, folder / "initial"))
    if with_teacher:
        with _blamed("teacher_options", folder):
            _ = trainers.teacher  # whose perplexity is reported in any case
    for section, overrides in trainings.items():
        _try_training(trainers, section, folder, overrides)


def _try_student(inputs: Inputs, space: SearchSpace | None, subnet: SubnetConfig | None, folder: Path) -> None:
    """Extract and heal a student, or take the one that is given, and leave it in a folder as a run does."""
    if space is None or subnet is None:
        with _blamed("student", folder):
            save_given(inputs, folder)
        return
    heal = inputs.recipe.heal
    with _blamed("heal", folder):
        source = _source(inputs)
        check_generation_config(source.generation_config)
        student: Any = extract_subnet(
            **inputs.source_of_students(),
            subnet=subnet,
            heal=heal,
            calibration_dataset=_calibration(inputs, subnet) if heal else None,
            progress=False,
        )
        if isinstance(heal, HealingConfig):  # whether or not it helped so small a student
            basis = _basis_of_some_student(source, space, heal)
            student.healing = dataclasses.replace(student.healing, is_healed=True, basis=basis)
        student.save_pretrained(folder)
        save_tokenizer(inputs.tokenizer_of(subnet.vocab_size), folder)
        Lineage.of(student).save(folder)


def _calibration(inputs: Inputs, subnet: SubnetConfig) -> Dataset | torch.Tensor:
    """Short blocks to heal a student on."""
    if inputs.text_of(subnet.vocab_size) is inputs.text:
        return _short(inputs.healing_blocks, _TOKENS)
    blocks = in_tokens_of(inputs, subnet.vocab_size, _short(inputs.healing_blocks, 2 * _TOKENS), _TOKENS)
    return inputs.as_origin(blocks, subnet.vocab_size)


def _source(inputs: Inputs) -> Source:
    """The model that students are extracted from."""
    if inputs.recipe.supernet_loading.is_whole:
        return source_of(inputs.supernet)
    return source_in(Checkpoint(inputs.recipe.origin))


def _basis_of_some_student(source: Source, space: SearchSpace, heal: HealingConfig) -> BasisName:
    """The principal basis, which not every training goes with, if healing may give it to a student of the space."""
    is_free = heal.basis != "channels" and any(can_change_basis(source, size) for size in space.sizes(CHANNELS))
    return "principal" if is_free else "channels"


def _try_training(trainers: Trainers, section: str, folder: Path, overrides: dict[str, Any]) -> None:
    """Take one step, save the student, load it again and take another step from the checkpoint."""
    inputs, final = trainers.inputs, folder / f"{section}-final"
    student: Any = AutoModelForCausalLM.from_pretrained(folder / "initial")
    if section == "baseline":
        student = random_student(student.config)
    blocks = _blocks(trainers)
    with _blamed(section, folder):
        args = _small_steps(inputs, folder / section, overrides)
        trainer = trainers.make(student, args, blocks, [_OneStep()])
        _without_loggers(trainer).train()
        weights, trained = whole_weights(trainer), trainer.accelerator.unwrap_model(trainer.model)
        in_first(lambda: _save(trained, trainers, final, weights))
        if shards_models(args):  # DeepSpeed's arguments make one accelerator, and its models take one engine
            args, trainers = _small_steps(inputs, folder / section, overrides), Trainers(inputs, trainers.kept)
        again = trainers.make(AutoModelForCausalLM.from_pretrained(final), args, blocks, [_OneStep()])
        _without_loggers(again).train_from(in_first(lambda: last_checkpoint(folder / section)))


def _blocks(trainers: Trainers) -> dict[str, Dataset]:
    """A few blocks of each split; only those of all tokens are packed already, so that others are made of them."""
    inputs = trainers.inputs
    splits = {"train": inputs.training_blocks(_BLOCKS), "test": inputs.blocks["test"]}
    if trainers.text is not inputs.text:
        long = {name: _short(blocks, 2 * _TOKENS) for name, blocks in splits.items()}
        return {name: in_tokens_of(inputs, trainers.kept, blocks, _TOKENS) for name, blocks in long.items()}
    length = _TOKENS if inputs.recipe.teacher_store is None else None
    return {name: _short(blocks, length) for name, blocks in splits.items()}


def _save(student: PreTrainedModel, trainers: Trainers, folder: Path, weights: Weights) -> None:
    """Leave a trained student in a folder as a run does, and read its tokenizer again."""
    save_student(student, trainers.tokenizer, folder, weights)
    Lineage.of(student).save(folder)
    AutoTokenizer.from_pretrained(folder)


def _short(blocks: Dataset, length: int | None) -> Dataset:
    """The beginnings of a few blocks, spread over all of them."""
    rows = spread(blocks, _BLOCKS)
    return Dataset.from_dict({name: [value[:length] for value in rows[name]] for name in rows.column_names})


def _small_steps(inputs: Inputs, folder: Path, overrides: dict[str, Any]) -> DistillationConfig:
    """The arguments of a training with batches of one block, of which each process takes two in a step at most."""
    real, is_streamed = own_arguments(inputs.recipe, folder, **overrides), inputs.recipe.data.streaming
    if is_streamed:
        check_streaming(real)
    steps = real.number_of_steps(0 if is_streamed else len(inputs.blocks["train"]))
    often = {name: getattr(real, name) for name in ("eval_steps", "logging_steps", "save_steps")}
    small = {
        **{name: math.ceil(share * steps) for name, share in often.items() if share is not None and 0 < share < 1},
        "max_steps": steps,
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": min(2, real.gradient_accumulation_steps) * num_launched(),
        "save_total_limit": None,
        "disable_tqdm": True,
    }
    return own_arguments(inputs.recipe, folder, **{**overrides, **small})


class _OneStep(TrainerCallback):
    """Ends a training after the first step it takes, with everything that happens after steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = control.should_save = control.should_training_stop = True
        control.should_evaluate = args.eval_strategy != "no"


def _without_loggers(trainer: Any) -> Any:
    """The trainer without the loggers it found installed, where nobody wants to see this training."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__module__.startswith("transformers.integrations") or isinstance(callback, PrinterCallback):
            trainer.remove_callback(callback)
    return trainer


@contextlib.contextmanager
def _blamed(section: str, folder: Path) -> Iterator[None]:
    """Name the section of the recipe that does not work in any error inside the block."""
    try:
        with disk_errors(folder):
            yield
    except (WhittleError, OSError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise RecipeError(
            f"{section}: a trial in small, before anything expensive, failed: {reason} ({type(error).__name__}). "
            "Nothing is lost: change the recipe and run it again"
        ) from error
