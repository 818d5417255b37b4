"""Bytes on disk of the stages of a recipe, without downloads and the cache of tokenized text."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..healing.moments_cost import feature_widths
from .blocks import Blocks
from .facts import StagePlan
from .students import Students
from .training_memory import optimizer_bytes, text_of

if TYPE_CHECKING:
    from ..distillation.config import DistillationConfig


@dataclass(frozen=True)
class Disk:
    """Bytes on disk.

    Args:
        students (`Students`): students of the recipe.
        blocks (`Blocks`): numbers of blocks.
    """

    students: Students
    blocks: Blocks

    @property
    def weights(self) -> int:
        """Weights of a student."""
        return 4 * self.students.parameters

    @property
    def _tokens(self) -> int:
        return self.blocks.healing * self.blocks.size

    def search(self, is_healed: bool) -> int:
        """A temporary file of all hidden states of the calibration text, where candidates are healed."""
        config = self.students.config
        return 2 * self._tokens * config.hidden_size * (config.num_hidden_layers + 1) if is_healed else 0

    def healing(self) -> int:
        """Temporary files of hidden states and features, and the healed student."""
        config = self.students.config
        return 4 * self._tokens * (2 * config.hidden_size + max(feature_widths(config))) + self.weights

    def training(self, args: "DistillationConfig", steps: int) -> int:
        """Checkpoints; a new one is written before an old one is removed."""
        strategy = text_of(args.save_strategy)
        every = args.save_steps if args.save_steps >= 1 else max(1, steps * args.save_steps)
        saved = {"no": 0, "steps": int(steps // every) + 1}.get(strategy, int(args.num_train_epochs) + 1)
        kept = saved if args.save_total_limit is None else min(saved, args.save_total_limit + 1)
        return kept * (self.weights + optimizer_bytes(args, self.students.parameters))

    def most(self, stages: tuple[StagePlan, ...]) -> int:
        """Most bytes at the same time: students and a store stay."""
        store = sum(stage.disk for stage in stages if stage.name == "store")
        students = {"student": 2, "baseline": 2}  # as extracted, and as trained
        of_stages = (s.disk + students.get(s.name, 0) * self.weights for s in stages if s.name != "store")
        return store + max(of_stages)
