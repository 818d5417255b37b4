"""Inputs of a run: everything that a recipe names, loaded when it is first asked for."""

import contextlib
import gc
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..architectures.registry import check_model_type
from ..distillation.teacher import load_teacher
from ..errors import CheckpointError, DataError, VocabularyError
from ..extraction.checkpoint import Checkpoint
from ..files.sources import load_checkpoint, load_tokenizer, read_config
from ..models.checkpoint_names import as_stored
from ..models.placement import is_placed
from ..models.supernet import SuperNetModel
from ..models.supernets import AutoSuperNetForCausalLM
from ..recipe.recipe import Recipe
from ..vocabulary.vocabulary_map import check_same_tokens
from .batches import shards_models
from .text import Text


@dataclass(frozen=True)
class Inputs:
    """Inputs of a recipe, each loaded when it is first asked for and then kept, except a separate teacher.

    Args:
        recipe (`Recipe`): the recipe; nothing is written into its `output_dir`.
    """

    recipe: Recipe

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the super-network, or of the student that is given.

        Raises:
            VocabularyError: if the teacher has another one.
        """
        tokenizer = load_tokenizer(self.recipe.origin)
        if self.recipe.origin != self.recipe.teacher:
            check_same_tokens(tokenizer, load_checkpoint(AutoTokenizer.from_pretrained, self.recipe.teacher))
        return tokenizer

    @cached_property
    def text(self) -> Text:
        """The text."""
        name = self.recipe.origin
        return Text(self.recipe.data, lambda: self.tokenizer, lambda: int(load_config(name).vocab_size))

    @property
    def blocks(self) -> dict[str, Any]:
        """Packed blocks of the splits `train`, `search` and `test`; streamed ones to train on are a `BlockStream`."""
        return self.text.blocks

    def training_blocks(self, number: int) -> Dataset:
        """At most `number` training blocks; see `Text.training_blocks`."""
        return self.text.training_blocks(number)

    @property
    def healing_blocks(self) -> Dataset:
        """Training blocks that healing fits to."""
        data = self.recipe.data
        return self.training_blocks(max(2, data.calibration_tokens // data.block_size))

    @property
    def calibration_blocks(self) -> Dataset:
        """Training blocks to score importance on: as many as a candidate is evaluated on."""
        return self.training_blocks(len(self.blocks["search"]))

    @cached_property
    def device(self) -> torch.device:
        """The device of the trainings."""
        return self.recipe.training_arguments(self.recipe.output_dir).device

    @cached_property
    def origin_config(self) -> PreTrainedConfig:
        """Configuration of the super-network, or of the student that is given, as the loaded model has it.

        Raises:
            VocabularyError: if its tokenizer has more tokens than it has embeddings.
            DataError: if it has fewer positions than a block has tokens.
        """
        name, block_size = self.recipe.origin, self.recipe.data.block_size
        config = load_config(name)
        with contextlib.suppress(CheckpointError):  # weights that are not in safetensors are as the configuration says
            config = as_stored(config, Checkpoint(name))
        if len(self.tokenizer) > config.vocab_size:
            raise VocabularyError(
                f"the tokenizer of {name} has {len(self.tokenizer)} tokens, the model only "
                f"{config.vocab_size} embeddings; use the model's own tokenizer"
            )
        longest = config.max_position_embeddings
        if block_size > longest:
            raise DataError(f"block_size {block_size} exceeds the {longest} positions of {name}; use smaller blocks")
        return config

    @cached_property
    def teacher_config(self) -> PreTrainedConfig:
        """Configuration of the teacher."""
        return load_config(self.recipe.teacher) if self.recipe.origin != self.recipe.teacher else self.origin_config

    @cached_property
    def supernet(self) -> SuperNetModel:
        """The super-network, loaded as the recipe says."""
        _ = self.origin_config  # raises before weights are loaded
        arguments = self.recipe.supernet_loading.arguments
        supernet = load_checkpoint(AutoSuperNetForCausalLM.from_pretrained, self.recipe.origin, **arguments)
        return supernet if is_placed(supernet) else supernet.to(self.device)

    def free_supernet(self) -> None:
        """Free the memory of the super-network; it is loaded again where it is needed."""
        self.__dict__.pop("supernet", None)
        free_memory()

    def source_of_students(self) -> dict[str, Any]:
        """Arguments of `extract_subnet` that say what a student is extracted from, in single precision.

        A super-network that is not in memory in single precision is freed, and students are extracted from its files.
        """
        if self.recipe.supernet_loading.is_whole:
            return {"model": self.supernet}
        self.free_supernet()
        return {"model": self.recipe.origin, "dtype": torch.float32}

    @property
    def is_one_model(self) -> bool:
        """Whether the super-network is the teacher, too; one that trainings shard is not, which stays whole."""
        args = self.recipe.training_arguments(self.recipe.output_dir)
        return self.recipe.is_one_model and not shards_models(args)

    def load_teacher(self) -> PreTrainedModel:
        """Return the super-network if it is the teacher, or else load the teacher, whose memory the caller frees."""
        if self.is_one_model:
            return self.supernet
        teacher = load_checkpoint(load_teacher, self.recipe.teacher, options=self.recipe.teacher_loading.arguments)
        return teacher if is_placed(teacher) else teacher.to(self.device)


def free_memory() -> None:
    """Give memory of objects that nothing refers to back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_config(name: str) -> PreTrainedConfig:
    """Load the configuration of a checkpoint.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
        ArchitectureError: if it is of an architecture without a table.
    """
    config: PreTrainedConfig = read_config(name)
    check_model_type(config.model_type, name, getattr(config, "text_config", None))
    return config
