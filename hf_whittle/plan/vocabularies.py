"""Vocabularies of a recipe before it is run: its space and bin, and tokens that its search reads."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from transformers import PreTrainedConfig

from ..cost.bins import Bin
from ..errors import RecipeError
from ..run.inputs import Inputs
from ..run.search_inputs import make_bin, make_space_of
from ..run.vocabularies import check_vocab_sizes, token_order, tokens_per_byte
from ..space.search_space import SearchSpace
from ..vocabulary import rank_tokens

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe


@dataclass(frozen=True)
class Vocabularies:
    """Vocabularies of a recipe's students.

    Args:
        recipe (`Recipe`): the recipe.
        origin (`PreTrainedConfig`): the super-network's configuration.
        read_text (`bool`): whether to read the text, which decides on the tokens that are kept, and on their number.
    """

    recipe: "Recipe"
    origin: PreTrainedConfig
    read_text: bool

    @cached_property
    def inputs(self) -> Inputs:
        """Inputs of the run, of which the tokenizer is loaded, and the text if it is to be read."""
        return Inputs(self.recipe)

    @cached_property
    def space(self) -> SearchSpace:
        """The search space; tokens are in the order of merges if the text is not read, as a plan counts them alone."""
        if self.recipe.space.vocab_sizes is None:
            return make_space_of(self.origin, self.recipe.space)
        check_vocab_sizes(self.inputs)
        order = token_order(self.inputs) if self.read_text else rank_tokens(self.inputs.tokenizer)
        return make_space_of(self.origin, self.recipe.space, order)

    @property
    def bin(self) -> Bin:
        """The bin.

        Raises:
            RecipeError: if its cost is one of a text that is not read.
        """
        if self.recipe.needs_tokens_per_byte and not self.read_text:
            assert self.recipe.bin is not None
            raise RecipeError(
                f"bin.cost: {self.recipe.bin.cost} of a byte of text depend on how many tokens each of "
                "space.vocab_sizes has for it: plan with --read-text (read_text=True), which counts them as the run "
                "will, or bound parameters or weight_bytes"
            )
        return make_bin(self.inputs, self.space)

    @cached_property
    def stretch(self) -> float:
        """How many times the tokens of the whole vocabulary a search reads in its smallest; 1 if that is not known."""
        if self.recipe.space.vocab_sizes is None or not self.read_text:
            return 1.0
        whole = make_space_of(self.origin, self.recipe.space)
        most, of_whole = (max(tokens_per_byte(self.inputs, space).values()) for space in (self.space, whole))
        return most / of_whole

    def note(self, student: PreTrainedConfig, is_known: bool) -> str:
        """The assumption about the vocabulary of the student that is planned, which is known or the costliest."""
        which = "the one planned" if is_known else "the one planned, as the costliest of the bin,"
        note = (
            f"Trainings read tokens of the student's own: {which} has {student.vocab_size:,} of "
            f"{self.origin.vocab_size:,}."
        )
        if self.read_text:
            longest = "" if is_known else " Blocks of text are counted in the smallest vocabulary of the bin."
            return note + longest
        return f"{note} The search is counted in tokens of the whole vocabulary; --read-text counts each one's."
