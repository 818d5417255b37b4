"""Inputs of a run: everything that a recipe names, loaded when it is first asked for."""

import contextlib
import gc
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..architectures.registry import check_model_type
from ..distillation.teacher import load_teacher
from ..errors import CheckpointError, DataError
from ..evaluation import as_input_ids
from ..extraction.checkpoint import Checkpoint
from ..files.sources import load_checkpoint, load_tokenizer, read_config
from ..kept import is_part
from ..models.checkpoint_names import as_stored
from ..models.placement import is_placed
from ..models.supernet import SuperNetModel
from ..models.supernets import AutoSuperNetForCausalLM
from ..models.token_ids import origin_ids
from ..recipe.recipe import Recipe
from ..recipe.sections import BITS_PER_BYTE
from ..subnet import Kept, count
from ..vocabulary import VocabularyMap, prune_tokenizer
from ..vocabulary.of_model import check_has_tokens
from .batches import shards_models
from .text import Text


@dataclass(frozen=True)
class Inputs:
    """Inputs of a recipe, each loaded when it is first asked for and then kept, except a separate teacher.

    Args:
        recipe (`Recipe`): the recipe; nothing is written into its `output_dir`.
    """

    recipe: Recipe
    _of_students: dict[Kept, Text] = field(default_factory=dict, init=False, repr=False, compare=False)
    _vocabularies: dict[Kept | None, VocabularyMap] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the super-network, or of the student that is given."""
        return load_tokenizer(self.recipe.origin)

    @cached_property
    def teacher_tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the teacher."""
        if self.recipe.origin == self.recipe.teacher:
            return self.tokenizer
        return load_tokenizer(self.recipe.teacher)

    def vocabulary_of(self, kept: Kept | None = None) -> VocabularyMap:
        """The map to the teacher's tokens from those of a student, which keeps a part of the super-network's or all.

        Raises:
            VocabularyError: if they are not the teacher's, nor a part that `prune_tokenizer` made a tokenizer of.
        """
        if kept not in self._vocabularies:
            tokenizer = self.tokenizer if kept is None else self.tokenizer_of(kept)
            self._vocabularies[kept] = VocabularyMap.between(tokenizer, self.teacher_tokenizer)
        return self._vocabularies[kept]

    @cached_property
    def text(self) -> Text:
        """The text in tokens of the super-network, or of the student that is given."""
        name = self.recipe.origin
        return Text(self.recipe.data, lambda: self.tokenizer, lambda: int(load_config(name).vocab_size))

    @cached_property
    def teacher_text(self) -> Text:
        """The text in the teacher's tokens."""
        if self.teacher_tokenizer.get_vocab() == self.tokenizer.get_vocab():
            return self.text
        return Text(self.recipe.data, lambda: self.teacher_tokenizer, lambda: int(self.teacher_config.vocab_size))

    def text_of(self, kept: Kept | None) -> Text:
        """The text in tokens of a student that keeps a part of the super-network's vocabulary; all for `None`."""
        if not is_part(kept, self.origin_config.vocab_size):
            return self.text
        if kept not in self._of_students:
            tokenizer, size = prune_tokenizer(self.tokenizer, kept), count(kept)
            self._of_students[kept] = Text(self.recipe.data, lambda: tokenizer, lambda: size)
        return self._of_students[kept]

    def tokenizer_of(self, kept: Kept | None) -> PreTrainedTokenizerBase:
        """The tokenizer of a student that keeps a part of the super-network's vocabulary; all for `None`."""
        return self.text_of(kept).tokenizer()

    @property
    def counts_bytes(self) -> bool:
        """Whether models are compared in bits per byte: vocabularies differ, or the search minimizes these."""
        return self.recipe.search.fitness == BITS_PER_BYTE or self.teacher_text is not self.text

    @property
    def blocks(self) -> dict[str, Any]:
        """Packed blocks of the splits `train`, `search` and `test`; streamed ones to train on are a `BlockStream`."""
        return self.text.blocks

    def training_blocks(self, number: int) -> Dataset:
        """At most `number` training blocks; see `Text.training_blocks`."""
        return self.text.training_blocks(number)

    @cached_property
    def search_documents(self) -> list[str]:
        """Held-out documents of a search, of about as many tokens as the blocks of one; they are read once."""
        return self.text.documents("search", self.recipe.data.search_tokens)

    @property
    def healing_blocks(self) -> Dataset:
        """Training blocks that healing fits to."""
        return self._healing_blocks(self.text)

    def healing_blocks_of(self, kept: Kept | None) -> Dataset | torch.Tensor:
        """Training blocks that the healing of a student fits to: its tokens, by their ids in the super-network."""
        text = self.text_of(kept)
        return self._healing_blocks(text) if text is self.text else self.as_origin(self._healing_blocks(text), kept)

    def as_origin(self, blocks: Dataset, kept: Kept | None) -> torch.Tensor:
        """Map blocks of a student's tokens to their ids in the super-network, `(blocks, block_size)`."""
        own = as_input_ids(blocks, self.origin_config.vocab_size if kept is None else count(kept))
        return origin_ids(own, kept)

    def _healing_blocks(self, text: Text) -> Dataset:
        data = self.recipe.data
        return text.training_blocks(max(2, data.calibration_tokens // data.block_size))

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
        check_has_tokens(config.vocab_size, self.tokenizer, f"the tokenizer of {name}")
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
