"""Stages of a run."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    set_seed,
)

from ..cost.counts import flops_per_token, num_parameters, training_flops_per_token
from ..data.documents import load_documents, split_documents
from ..data.packing import pack_documents
from ..distillation.config import DistillationConfig
from ..distillation.store.reader import LogitStore
from ..distillation.teacher import check_same_tokens, load_teacher
from ..distillation.trainer import DistillationTrainer
from ..errors import DataError, VocabularyError
from ..evaluation import as_input_ids, cross_entropy, perplexity
from ..experimental.proxies import GradientNorm, JacobianCovariance, RetainedImportance, Snip, Synflow, WeightMagnitude
from ..extraction.extraction import extract_subnet
from ..files.atomic import atomic_folder, remove_folder, remove_leftovers
from ..files.disk import disk_errors
from ..files.paths import is_local
from ..files.text import read_json, write_json
from ..files.tokenizer import save_tokenizer
from ..fitness.base import Fitness
from ..fitness.divergence import KLDivergence
from ..fitness.healed import HealedPerplexity
from ..fitness.perplexity import Perplexity
from ..fitness.probe import Probe, ProbeConfig
from ..fitness.staged import StagedFitness
from ..healing.config import HEALING_FILE
from ..healing.cost import healing_flops
from ..hub.saving import describe
from ..importance.scores import ImportanceScores, score_importance
from ..models.architecture import architecture_module, check_model_type
from ..models.gpt_neox.supernet import GPTNeoXSuperNetForCausalLM
from ..recipe.recipe import Recipe
from ..recipe.sections import STAGES
from ..record.facts import HealingFacts
from ..record.files import RECIPE_FILE
from ..record.match import to_match
from ..record.results import Results
from ..record.source import checkpoint_facts
from ..record.training import training_facts
from ..search.facts import search_facts
from ..search.result import SearchResult
from ..search.runner import search_subnets
from ..space.search_space import SearchSpace
from ..training.checkpoints import last_checkpoint
from ..training.interruption import SaveOnInterrupt
from ..training.progress import TrainingBar
from .changes import DEPENDS_ON, check_changes, has_begun, record_baseline
from .fingerprints import check_inputs, input_fingerprints
from .inputs import _load, _spread, load_tokenizer
from .preflight import preflight


@dataclass
class Run:
    """The stages of a recipe; each returns its facts, from disk if it was done before."""

    recipe: Recipe
    progress: bool = True

    def __post_init__(self) -> None:
        self.folder = Path(self.recipe.output_dir)
        self._interrupted = False
        check_changes(self.folder, self.recipe)
        self.recipe.save(self.folder / RECIPE_FILE)

    # Inputs

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = load_tokenizer(self.recipe.supernet or self.recipe.teacher)
        if self.recipe.supernet:
            check_same_tokens(tokenizer, _load(AutoTokenizer.from_pretrained, self.recipe.teacher))
        return tokenizer

    @cached_property
    def documents(self) -> Dataset:
        data = self.recipe.data
        return load_documents(data.dataset, data.files, data.dataset_config, data.split, text_column=data.text_column)

    @cached_property
    def blocks(self) -> dict[str, Dataset]:
        """Packed blocks of the splits `train`, `search` and `test`."""
        data, documents = self.recipe.data, self.documents
        fractions = {"search": data.search_fraction, "test": data.test_fraction}
        splits = split_documents(documents, fractions, key=data.document_column or data.text_column)
        blocks = {}
        for name, split in splits.items():
            blocks[name] = pack_documents(
                split, self.tokenizer, data.block_size, text_column=data.text_column, num_proc=data.num_proc
            )
        for name, tokens in (("search", data.search_tokens), ("test", data.test_tokens)):
            blocks[name] = _spread(blocks[name], max(1, tokens // data.block_size))
        return blocks

    @cached_property
    def supernet(self) -> GPTNeoXSuperNetForCausalLM:
        name = self.recipe.supernet or self.recipe.teacher
        supernet = _load(GPTNeoXSuperNetForCausalLM.from_pretrained, name, dtype=torch.float32)
        if len(self.tokenizer) > supernet.config.vocab_size:
            raise VocabularyError(
                f"the tokenizer of {name} has {len(self.tokenizer)} tokens, the model only "
                f"{supernet.config.vocab_size} embeddings; use the model's own tokenizer"
            )
        longest = supernet.config.max_position_embeddings
        if self.recipe.data.block_size > longest:
            raise DataError(f"block_size {self.recipe.data.block_size} exceeds the {longest} positions of {name}")
        return supernet.to(self.device)

    @cached_property
    def device(self) -> torch.device:
        return self.recipe.training_arguments(self.folder).device

    @cached_property
    def teacher(self) -> PreTrainedModel:
        if not self.recipe.supernet:
            return self.supernet
        return _load(load_teacher, self.recipe.teacher, options={"dtype": torch.float32}).to(self.device)

    # Stages

    def search(self) -> SearchResult:
        space, section = self.recipe.space, self.recipe.search
        search_space = SearchSpace.from_config(
            self.supernet.config,
            space.granularity,
            space.layer_wise,
            space.stock_only,
            importance=self._importance if space.importance else None,
            temperature=space.temperature,
            **space.ranges(),
        )
        return search_subnets(
            self.supernet,
            search_space,
            bin=self.recipe.bin.to_bin(self.recipe.data.block_size),
            fitness=self._fitness,
            config=section.algorithm,
            output_dir=self.folder,
            progress=self.progress,
        )

    @cached_property
    def _importance(self) -> ImportanceScores:
        return score_importance(
            self.supernet,
            self._calibration_blocks,
            criterion=self._criterion or "activation",
            cache_dir=self.folder / "stages",
            progress=self.progress,
        )

    @property
    def _criterion(self) -> Any:
        """The criterion of importance that the space or the fitness uses, if any."""
        by_fitness = "activation" if self.recipe.search.fitness == RetainedImportance.name else None
        return self.recipe.space.importance or by_fitness

    @cached_property
    def _fitness(self) -> Fitness:
        return self._make_fitness(self.recipe.search.fitness)

    def _make_fitness(self, name: str) -> Fitness:
        supernet, blocks, batch_size = self.supernet, self.blocks["search"], self.recipe.search.batch_size
        on_text = (Perplexity, GradientNorm, Snip, JacobianCovariance)
        made: dict[str, Callable[[], Fitness]] = {
            KLDivergence.name: lambda: KLDivergence(supernet, blocks, batch_size, self.teacher),
            HealedPerplexity.name: lambda: self._healed_perplexity,
            Probe.name: self._make_probe,
            StagedFitness.name: self._make_staged,
            RetainedImportance.name: lambda: RetainedImportance(self._importance),
            WeightMagnitude.name: lambda: WeightMagnitude(supernet),
            Synflow.name: lambda: Synflow(supernet),
        }
        if name in made:
            return made[name]()
        return {fitness.name: fitness for fitness in on_text}[name](supernet, blocks, batch_size)

    def _make_probe(self) -> Probe:
        config = self._probe_config
        blocks = _spread(self.blocks["train"], config.steps * config.batch_size)
        healing = self._healed_perplexity if self.recipe.heal else None
        return Probe(self.supernet, blocks, self.blocks["search"], config, teacher=self.teacher, healing=healing)

    @cached_property
    def _healed_perplexity(self) -> HealedPerplexity:
        batch_size = self.recipe.search.batch_size
        return HealedPerplexity(
            self.supernet, self.blocks["search"], self._healing_blocks, batch_size, progress=self.progress
        )

    @property
    def _probe_config(self) -> ProbeConfig:
        """The recipe's, with weights, temperature and learning rate of its training where it says nothing else."""
        training = self.recipe.training_arguments(self.folder)
        names = ("alpha", "beta", "temperature", "learning_rate")
        return ProbeConfig(**{**{name: getattr(training, name) for name in names}, **self.recipe.search.probe})

    def _make_staged(self) -> StagedFitness:
        algorithm: Any = self.recipe.search.algorithm
        return StagedFitness(dict(zip(algorithm.shares, map(self._make_fitness, STAGES), strict=True)))

    @property
    def _healing_blocks(self) -> Dataset:
        """Training text to heal on."""
        data = self.recipe.data
        return _spread(self.blocks["train"], max(2, data.calibration_tokens // data.block_size))

    @property
    def _calibration_blocks(self) -> Dataset:
        """Training text to score importance on: as much as a candidate is evaluated on."""
        return _spread(self.blocks["train"], len(self.blocks["search"]))

    def _calibration_cost(self) -> dict[str, int]:
        """Tokens and FLOPs of the importance scores: layers by one forward pass, `taylor` by a backward pass too."""
        if not self._criterion:
            return {"tokens": 0, "flops": 0}
        length = self.recipe.data.block_size
        tokens = len(self._calibration_blocks) * length
        passes = 4 if self._criterion == "taylor" else 1
        return {
            "tokens": tokens,
            "flops": passes * tokens * flops_per_token(self.supernet.config, sequence_length=length),
        }

    def search_facts(self) -> dict[str, Any]:
        """What the search cost and found."""
        return self._stage("search", self._search_facts)

    def _search_facts(self) -> dict[str, Any]:
        result = self.search()
        result.plot(self.folder)
        best = result.best_evaluation
        calibration = self._calibration_cost()
        by_perplexity = self.recipe.search.fitness == Perplexity.name
        perplexity_of = Perplexity(self.supernet, self.blocks["search"], self.recipe.search.batch_size)
        tokens_per_evaluation = self._fitness.tokens()
        for name in ("_fitness", "_healed_perplexity"):  # training needs the memory they take
            self.__dict__.pop(name, None)
        return {
            **search_facts(result).to_dict(),
            "tokens_per_evaluation": tokens_per_evaluation,
            "tokens": result.tokens + calibration["tokens"],
            "flops": result.flops + calibration["flops"],
            "perplexity": best.fitness if by_perplexity else perplexity_of(result.best),
        }

    def initial_student(self) -> PreTrainedModel:
        """The extracted student before training, healed if the recipe says so."""
        return AutoModelForCausalLM.from_pretrained(self._initial_folder())

    def _initial_folder(self) -> Path:
        """`stages/initial`, which keeps that student."""
        folder = self.folder / "stages" / "initial"
        if not folder.is_dir():
            self.search_facts()
            heal = self.recipe.heal
            student: Any = extract_subnet(
                self.supernet,
                SearchResult.load(self.folder).best,
                heal=heal,
                calibration_dataset=self._healing_blocks if heal else None,
                progress=self.progress,
            )
            with atomic_folder(folder) as temporary:
                self._save(student, temporary)
                if heal:
                    write_json(temporary / HEALING_FILE, student.healing.to_dict())
        return folder

    def healing_facts(self) -> dict[str, Any]:
        """What healing the student did and cost."""
        report = read_json(self._initial_folder() / HEALING_FILE)
        subnet = SearchResult.load(self.folder).best
        flops = healing_flops(self.supernet.config, subnet, report, self.recipe.data.block_size)
        return {**HealingFacts.from_dict(report).to_dict(), "flops": flops}

    def train_student(self) -> dict[str, Any]:
        """Pretrain the student with distillation; it is saved in the output folder."""
        return self._stage("student", lambda: self._train("student", self.initial_student()))

    def train_baseline(self) -> dict[str, Any]:
        """Pretrain the student's architecture from random initialization, on the same tokens."""

        def train() -> dict[str, Any]:
            record_baseline(self.folder, self.recipe)
            config = self.initial_student().config
            set_seed(self.recipe.training_arguments(self.folder).seed)
            student = architecture_module(config, "student").student_class(config)(config)
            return self._train("baseline", student, **self.baseline_overrides)

        return self._stage("baseline", train)

    @property
    def baseline_overrides(self) -> dict[str, Any]:
        """The arguments in which the training of the baseline differs from the student's."""
        own = self.recipe.baseline if isinstance(self.recipe.baseline, dict) else {}
        return {**own, "beta": 0.0, "hidden_weight": 0.0}

    def _train(self, name: str, model: PreTrainedModel, **overrides: Any) -> dict[str, Any]:
        stage = self.folder / "stages" / name
        checkpoint = last_checkpoint(stage)
        if checkpoint is not None:
            overrides["eval_on_start"] = False  # it was evaluated before the interruption
        args = self.recipe.training_arguments(stage, disable_tqdm=True, **overrides)  # `TrainingBar` stands in
        interruption = SaveOnInterrupt()
        callbacks = [interruption, *([TrainingBar(name)] if self.progress else [])]
        trainer = self.trainer(model, args, self.blocks, callbacks)
        trainer.remove_callback(PrinterCallback)
        try:
            with disk_errors(stage):
                trainer.train_from(checkpoint)
        finally:
            interruption.restore()
        self._interrupted = interruption.interrupted
        if interruption.interrupted and trainer.state.global_step < trainer.state.max_steps:
            raise KeyboardInterrupt
        if not any(
            "eval_loss" in row and row["step"] == trainer.state.global_step for row in trainer.state.log_history
        ):
            trainer.evaluate()
        length = self.recipe.data.block_size
        if name == "student":
            with atomic_folder(self.folder / "stages" / "final", replace=True) as temporary:
                self._save(trainer.accelerator.unwrap_model(trainer.model), temporary)
        student_flops = training_flops_per_token(model.config, sequence_length=length)
        teacher_flops = flops_per_token(self.teacher.config, sequence_length=length) if args.has_teacher else 0
        return {
            "parameters": model.num_parameters(),
            **training_facts(args, trainer.state, is_whole=checkpoint is None).to_dict(),
            **({"targets": trainer.teacher.in_words} if isinstance(trainer.teacher, LogitStore) else {}),
            "flops_per_token": {"student": student_flops, "teacher": teacher_flops},
        }

    def trainer(
        self, model: PreTrainedModel, args: DistillationConfig, blocks: dict[str, Dataset], callbacks: list[Any]
    ) -> DistillationTrainer:
        """The trainer of a model on some blocks."""
        return DistillationTrainer(
            model=model,
            teacher_model=self._targets() if args.has_teacher else None,
            args=args,
            train_dataset=blocks["train"],
            eval_dataset=blocks["test"],
            processing_class=self.tokenizer,
            callbacks=callbacks,
        )

    def _targets(self) -> "PreTrainedModel | LogitStore":
        """What the student learns from: the teacher, or what it said before."""
        return self.teacher if self.recipe.teacher_store is None else self._store

    @cached_property
    def _store(self) -> LogitStore:
        store = LogitStore(str(self.recipe.teacher_store))
        store.check(teacher=self.teacher)  # which reads all of its weights
        return store

    def save(self, student: PreTrainedModel, folder: Path) -> None:
        """Write a model and its tokenizer."""
        student.config.use_cache = True  # the Trainer unsets it
        student.save_pretrained(folder)
        save_tokenizer(self.tokenizer, folder)

    def _save(self, student: PreTrainedModel, folder: Path) -> None:
        self.save(student, folder)
        SearchResult.load(self.folder).best.save_pretrained(folder)
        report = self.folder / "stages" / "initial" / HEALING_FILE
        if report.is_file():
            shutil.copyfile(report, folder / HEALING_FILE)

    def _stage(self, name: str, work: Any) -> dict[str, Any]:
        path = self.folder / "stages" / f"{name}.json"
        if not path.is_file():
            write_json(path, work())
            if self._interrupted:
                remove_folder(path.with_suffix(""))
                raise KeyboardInterrupt
        remove_folder(path.with_suffix(""))  # checkpoints of the stage
        return read_json(path)

    # Report

    def results(self) -> dict[str, Any]:
        """Do every stage that is not done yet, and write `results.json`, the pictures and the model card."""
        for folder in (self.folder, self.folder / "stages"):
            remove_leftovers(folder)
        self.check_teacher()
        self.check_inputs()
        preflight(self)
        stages = {"search": self.search_facts, "supernet": self.supernet_facts, "data": self.data_facts}
        if self.recipe.heal:
            stages["healing"] = self.healing_facts
        stages |= {"teacher": self.teacher_facts, "student": self.train_student}
        if self.recipe.baseline:
            stages["baseline"] = self.train_baseline
        results = {name: work() for name, work in stages.items()}
        results["environment"] = results["student"]["environment"]
        match = to_match(Results.from_dict(results))
        if match is not None:
            results["to_match"] = match.to_dict()
        self._publish_student()
        Results.from_dict(results).save(self.folder)
        describe(self.folder)
        return results

    def check_teacher(self) -> None:
        """Find out before the search whether the student will be able to learn from the teacher."""
        config = _load(AutoConfig.from_pretrained, self.recipe.teacher)
        check_model_type(config.model_type, self.recipe.teacher)
        size, beta = self.supernet.config.vocab_size, self.recipe.training_arguments(self.folder).beta
        if self.recipe.search.fitness in (Probe.name, StagedFitness.name):
            beta = max(beta, self._probe_config.beta)
        if config.vocab_size != size and beta > 0:
            raise VocabularyError(
                f"the vocabulary of the teacher {self.recipe.teacher} has {config.vocab_size} entries, that of the "
                f"super-network {size}; use a teacher with the same vocabulary, or beta: 0"
            )

    def check_inputs(self) -> None:
        """See that the text and the checkpoints are those that what is done was made from."""
        now = input_fingerprints(self.recipe, lambda: self.documents, self.tokenizer)
        check_inputs(self.folder, now, is_begun=any(has_begun(self.folder, stage) for stage in DEPENDS_ON))

    def supernet_facts(self) -> dict[str, Any]:
        """What the student is cut from."""
        return self._stage("supernet", lambda: checkpoint_facts(self.supernet.config).to_dict())

    def data_facts(self) -> dict[str, Any]:
        """What the text is; folders of this machine by their last name."""
        data = self.recipe.data
        if data.files:
            return {"files": [Path(pattern).name for pattern in data.files], "block_size": data.block_size}
        name = str(data.dataset)
        source = {"folder": Path(name).resolve().name} if is_local(name) else {"dataset": name}
        return {**source, "block_size": data.block_size}

    def teacher_facts(self) -> dict[str, Any]:
        """Size and perplexity of the teacher."""
        return self._stage("teacher", self._teacher_facts)

    def _teacher_facts(self) -> dict[str, Any]:
        config = self.teacher.config
        input_ids = as_input_ids(self.blocks["test"], config.vocab_size)
        return {
            **checkpoint_facts(config).to_dict(),
            "parameters": num_parameters(config),
            "perplexity": perplexity(cross_entropy(self.teacher, input_ids)),
            "test_tokens": input_ids.numel(),
        }

    def _publish_student(self) -> None:
        """Put the files of the trained student into the output folder itself."""
        final = self.folder / "stages" / "final"
        with disk_errors(self.folder):
            for file in sorted(final.glob("*")):
                file.replace(self.folder / file.name)
