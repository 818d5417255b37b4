"""Blocks of text that a recipe uses: as many as it asks for, or as many as its text has."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import RecipeError
from ..subnet import Kept

if TYPE_CHECKING:
    from ..distillation.config import DistillationConfig
    from ..recipe.recipe import Recipe
    from ..run.inputs import Inputs

_STEPS_OF_TEXT = (
    "training.num_train_epochs makes the number of steps depend on the text: give training.max_steps, or --read-text "
    "(read_text=True), which tokenizes the text, as the run will"
)


@dataclass(frozen=True)
class Blocks:
    """Numbers of blocks of a recipe.

    Args:
        size (`int`): tokens of a block.
        search (`int`): blocks that candidates are evaluated on.
        test (`int`): blocks that an evaluation of the student reads.
        of_teacher (`int`): blocks that the evaluation of the teacher reads.
        healing (`int`): blocks that healing fits to.
        train (`int`, *optional*): blocks of the training text; unknown unless the text was read.
    """

    size: int
    search: int
    test: int
    of_teacher: int
    healing: int
    train: int | None = None

    @classmethod
    def of(cls, recipe: "Recipe") -> "Blocks":
        """The blocks of a recipe whose text is not read, and taken to be long enough."""
        data = recipe.data
        search, test = data.held_out["search"], data.held_out["test"]
        return cls(data.block_size, search, test, test, max(2, data.calibration_tokens // data.block_size))

    @classmethod
    def read(cls, inputs: "Inputs", kept: Kept | None) -> "Blocks":
        """The blocks of a recipe's text, which is read in the tokens of each model.

        Args:
            inputs (`Inputs`): the inputs.
            kept (`int` or `tuple[int, ...]`, *optional*): tokens that the student keeps; all if `None`.
        """
        data, own = inputs.recipe.data, inputs.text_of(kept).blocks
        return cls(
            size=data.block_size,
            search=len(inputs.blocks["search"]),
            test=len(own["test"]),
            of_teacher=len(inputs.teacher_text.blocks["test"]),
            healing=len(inputs.healing_blocks_of(kept)),
            train=None if data.streaming else len(own["train"]),  # a stream never ends
        )

    def steps(self, args: "DistillationConfig") -> int:
        """Optimizer steps of a training.

        Raises:
            RecipeError: if they depend on text that was not read.
        """
        if args.max_steps < 0 and self.train is None:
            raise RecipeError(_STEPS_OF_TEXT)
        return args.number_of_steps(self.train or 0)

    def trained(self, steps: int, batch: int) -> int:
        """Blocks that a training reads in so many steps; the last step of an epoch reads what is left."""
        if self.train is None:
            return steps * batch
        in_epoch = math.ceil(self.train / batch)
        epochs, rest = divmod(steps, in_epoch)
        return epochs * self.train + min(self.train, rest * batch)
