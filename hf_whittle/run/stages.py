"""Stages of a run, in their order: each takes the inputs and gives its facts, from disk if it was done before."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed

from ..cost.counts import num_parameters
from ..distillation.config import DistillationConfig
from ..evaluation import as_input_ids, cross_entropy, perplexity
from ..extraction.extraction import extract_subnet
from ..files.atomic import atomic_folder
from ..files.disk import disk_errors
from ..files.sources import load_checkpoint
from ..files.text import read_json, write_json
from ..fitness.perplexity import Perplexity
from ..healing.config import HEALING_FILE
from ..processes import in_first
from ..record.data import DataFacts, TextFacts, name_of_text
from ..record.facts import HealingFacts, SearchFacts, SourceFacts, TeacherFacts, TrainingFacts, VocabularyFacts
from ..record.lineage import Lineage
from ..record.results import Results
from ..record.source import checkpoint_facts, precision_of
from ..search.facts import search_facts
from ..search.result import SearchResult
from ..search.runner import search_subnets
from ..subnet import SUBNET_FILE, Kept, count
from .changes import record_baseline
from .inputs import Inputs
from .ledger import Ledger, calibration_cost, healing_cost
from .search_inputs import SearchInputs, make_bin
from .trackers import report, search_rows
from .trainers import Trainers, Training, Weights, random_student, save_student
from .vocabularies import bits_per_byte, tokens_per_byte_of


def search(inputs: Inputs, ledger: Ledger, progress: bool = True) -> SearchFacts:
    """Search for the best subnet, and draw the search; facts of it, with the best subnet's perplexity as sliced."""
    return ledger.once("search", SearchFacts, lambda: _search(inputs, ledger, progress))


def _search(inputs: Inputs, ledger: Ledger, progress: bool) -> SearchFacts:
    result, tokens_per_evaluation = _find(inputs, ledger, progress)
    return in_first(lambda: _describe(result, tokens_per_evaluation, inputs, ledger))


def _describe(result: SearchResult, tokens_per_evaluation: int, inputs: Inputs, ledger: Ledger) -> SearchFacts:
    """Draw a search; its facts."""
    result.plot(ledger.folder)
    report(_arguments(inputs), ledger.folder, "search", search_rows(result))
    section, best = inputs.recipe.search, result.best_evaluation
    if section.fitness == Perplexity.name:
        as_sliced = best.fitness
    else:
        blocks = inputs.text_of(result.best.vocab_size).blocks["search"]
        as_sliced = Perplexity(inputs.supernet, blocks, section.batch_size)(result.best)
    calibration, facts = calibration_cost(inputs), search_facts(result)
    return replace(
        facts,
        tokens_per_evaluation=max(tokens_per_evaluation, facts.tokens_per_evaluation),
        tokens=result.tokens + calibration["tokens"],
        flops=result.flops + calibration["flops"],
        perplexity=as_sliced,
    )


def _find(inputs: Inputs, ledger: Ledger, progress: bool) -> tuple[SearchResult, int]:
    """The result of the search, and the tokens of an evaluation; the memory that fitnesses take is freed after it."""
    recipe = inputs.recipe
    search_inputs = SearchInputs(inputs, ledger.stages, progress)
    space, fitness = search_inputs.space, search_inputs.fitness(recipe.search.fitness)
    result = search_subnets(
        inputs.supernet,
        space,
        bin=make_bin(inputs, space),
        fitness=fitness,
        config=recipe.search.algorithm,
        output_dir=ledger.folder,
        progress=progress,
    )
    return result, fitness.tokens()


def supernet_facts(inputs: Inputs, ledger: Ledger) -> SourceFacts:
    """The checkpoint that the student is extracted from."""
    config, chooses_tokens = inputs.origin_config, inputs.recipe.space.vocab_sizes is not None

    def facts() -> SourceFacts:
        return replace(checkpoint_facts(config), vocab_size=config.vocab_size if chooses_tokens else None)

    return ledger.once("supernet", SourceFacts, lambda: in_first(facts))


def data_facts(inputs: Inputs) -> DataFacts:
    """Names of the text; files and folders of this machine by their last name."""
    data = inputs.recipe.data
    if data.sources is None:
        return DataFacts(**name_of_text(data.dataset, data.files), block_size=data.block_size)
    sources = tuple(
        TextFacts(**name_of_text(source.dataset, source.files), weight=source.weight) for source in data.sources
    )
    return DataFacts(sources=sources, block_size=data.block_size)


def take(inputs: Inputs, ledger: Ledger) -> Results:
    """Keep the student that the recipe gives in `stages/initial`; what is known of its making."""
    folder = ledger.stages / "initial"
    if not folder.is_dir():
        with atomic_folder(folder) as temporary:
            save_given(inputs, temporary)
    return Results.load(folder)


def save_given(inputs: Inputs, folder: Path) -> None:
    """Write the student that the recipe gives, in single precision, and what is known of its making."""
    load: Any = AutoModelForCausalLM.from_pretrained
    student = load_checkpoint(load, inputs.recipe.origin, dtype="float32")
    lineage = Lineage.of(student)
    save_student(student, inputs.tokenizer, folder)
    began_with = checkpoint_facts(student.config)
    replace(lineage, results=replace(lineage.results, began_with=began_with)).save(folder)


def extract(inputs: Inputs, ledger: Ledger, progress: bool = True) -> Path:
    """Extract the student, heal it if the recipe says so, and keep it in `stages/initial`."""
    folder, heal = ledger.stages / "initial", inputs.recipe.heal
    if folder.is_dir():
        return folder
    subnet = SearchResult.load(ledger.folder).best
    student: Any = extract_subnet(
        **inputs.source_of_students(),
        subnet=subnet,
        heal=heal,
        calibration_dataset=inputs.healing_blocks_of(subnet.vocab_size) if heal else None,
        progress=progress,
    )
    with atomic_folder(folder) as temporary:
        save_student(student, inputs.tokenizer_of(subnet.vocab_size), temporary)
        subnet.save_pretrained(temporary)
        if heal:
            write_json(temporary / HEALING_FILE, student.healing.to_dict())
    if heal:
        figures = HealingFacts.from_dict(student.healing.to_dict())
        rows = enumerate([figures.perplexity_before, figures.perplexity_after])
        named = ((step, {"healing_perplexity": value}) for step, value in rows)
        report(_arguments(inputs), ledger.folder, "healing", named)
    return folder


def _arguments(inputs: Inputs) -> DistillationConfig:
    """Arguments of a training, for what stages that are none share with it."""
    return inputs.recipe.training_arguments(inputs.recipe.output_dir)


def healing(inputs: Inputs, ledger: Ledger) -> HealingFacts:
    """Effect and cost of healing the student."""
    report = read_json(ledger.stages / "initial" / HEALING_FILE)
    subnet = SearchResult.load(ledger.folder).best
    return replace(HealingFacts.from_dict(report), flops=healing_cost(inputs, subnet, report))


def teacher(trainers: Trainers, ledger: Ledger, progress: bool = True) -> TeacherFacts:
    """Size and perplexity of the teacher."""
    return ledger.once("teacher", TeacherFacts, lambda: _teacher(trainers, progress))


def _teacher(trainers: Trainers, progress: bool) -> TeacherFacts:
    inputs, model = trainers.inputs, trainers.teacher
    input_ids = as_input_ids(inputs.teacher_text.blocks["test"], model.config.vocab_size)
    how: dict[str, Any] = {"is_spread": True, "progress": "teacher" if progress else None}
    nats = cross_entropy(model, input_ids, **how)
    return TeacherFacts(
        **checkpoint_facts(model.config).to_dict(),
        parameters=num_parameters(model.config),
        perplexity=perplexity(nats),
        test_tokens=input_ids.numel(),
        precision=precision_of(model),
        bits_per_byte=bits_per_byte(nats, input_ids, inputs.teacher_tokenizer) if inputs.counts_bytes else None,
    )


def kept_tokens(ledger: Ledger) -> Kept | None:
    """The part of the super-network's vocabulary that the subnet found by the search keeps; `None` for all of it."""
    return SearchResult.load(ledger.folder).best.vocab_size


def vocabulary(trainers: Trainers, ledger: Ledger) -> VocabularyFacts:
    """The vocabularies of student and teacher, measured on the test text."""
    trainers.text.read()
    return ledger.once("vocabulary", VocabularyFacts, lambda: in_first(lambda: _vocabulary(trainers)))


def _vocabulary(trainers: Trainers) -> VocabularyFacts:
    inputs = trainers.inputs
    whole = inputs.origin_config.vocab_size
    return VocabularyFacts(
        size=whole if trainers.kept is None else count(trainers.kept),
        teacher_size=inputs.teacher_config.vocab_size,
        tokens_per_byte=tokens_per_byte_of(trainers.text.blocks["test"], trainers.tokenizer),
        teacher_tokens_per_byte=tokens_per_byte_of(inputs.teacher_text.blocks["test"], inputs.teacher_tokenizer),
    )


def train_student(trainers: Trainers, ledger: Ledger, progress: bool = True) -> TrainingFacts:
    """Pretrain the extracted student with distillation, and keep it in `stages/final`."""

    def keep(student: PreTrainedModel, weights: Weights) -> None:
        with atomic_folder(ledger.stages / "final", replace=True) as temporary:
            save_student(student, trainers.tokenizer, temporary, weights)
            _copy_origin(ledger.stages / "initial", temporary)

    training = Training("student", trainers, ledger, progress)
    return training.facts(lambda: _initial_student(ledger), {}, keep)


def train_baseline(trainers: Trainers, ledger: Ledger, progress: bool = True) -> TrainingFacts:
    """Pretrain the student's architecture from random initialization, on the same text in the same tokens."""
    recipe = trainers.inputs.recipe

    def make() -> PreTrainedModel:
        in_first(lambda: record_baseline(ledger.folder, recipe))
        config = _initial_student(ledger).config
        set_seed(recipe.training_arguments(ledger.folder).seed)
        return random_student(config)

    return Training("baseline", trainers, ledger, progress).facts(make, recipe.baseline_overrides)


def _initial_student(ledger: Ledger) -> PreTrainedModel:
    student: PreTrainedModel = AutoModelForCausalLM.from_pretrained(ledger.stages / "initial")
    return student


def _copy_origin(source: Path, target: Path) -> None:
    """Copy the files about a student's subnet and its healing."""
    for name in (SUBNET_FILE, HEALING_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def publish(ledger: Ledger) -> None:
    """Move the files of the trained student into the folder of the run, unless they are there."""
    files, before = sorted((ledger.stages / "final").glob("*")), Results.load(ledger.folder)
    with disk_errors(ledger.folder):
        if files and before.evaluation is not None:  # of other weights
            replace(before, evaluation=None).save(ledger.folder)
        for file in files:
            file.replace(ledger.folder / file.name)
