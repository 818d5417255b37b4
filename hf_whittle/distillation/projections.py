"""Projections of hidden states, trained beside the student and kept in its checkpoints."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer

from ..errors import CheckpointError, SubnetError
from ..loss.hidden import HiddenStateLoss
from ..record.lineage import Lineage
from ..subnet import SubnetConfig

PROJECTIONS_FILE = "hidden_projections.safetensors"


def hidden_loss_of(student: Any, teacher: Any, subnet: SubnetConfig | None, kind: str) -> HiddenStateLoss:
    """Make the loss between the hidden states of a student and of its teacher.

    Args:
        student (`PreTrainedModel`): the student, with the channels of the teacher it was extracted from.
        teacher (`PreTrainedModel`): the teacher.
        subnet (`SubnetConfig`, *optional*): layers and channels of the teacher in the student; known for students
            from `extract_subnet`.
        kind (`str`): a name in `HIDDEN_LOSSES`.

    Raises:
        SubnetError: if the subnet is unknown, does not fit the teacher, or the student carries principal components.
    """
    lineage = Lineage.of(student)
    subnet = subnet or lineage.subnet
    if subnet is None:
        raise SubnetError(
            "hidden_weight > 0 needs the layers of the teacher that the student keeps; give subnet=..., or a student "
            "from extract_subnet"
        )
    if lineage.carries_components:
        raise SubnetError(
            "hidden_weight > 0 compares the student's channels with those of the teacher, but this student was healed "
            "to carry principal components instead; heal it with HealingConfig(basis='channels')"
        )
    subnet.validate(teacher.config)
    return HiddenStateLoss(subnet, (student.config.hidden_size, teacher.config.hidden_size), kind)


class TrainsProjections(Trainer):
    """A `Trainer` that also trains the projections of a `HiddenStateLoss`, if it has one."""

    _hidden: HiddenStateLoss | None = None
    _starts_step = True

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does."""
        self._starts_step = True
        return super().train(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run a step of `Trainer`, and clear and average gradients of the projections as it does the model's."""
        if self._hidden is None:
            return super().training_step(*args, **kwargs)
        if self._starts_step:
            self._hidden.zero_grad()
        loss = super().training_step(*args, **kwargs)
        self._starts_step = self.accelerator.sync_gradients
        if self._starts_step and self.accelerator.num_processes > 1:
            for parameter in self._hidden.parameters():
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        return loss

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the optimizer of `Trainer`, with the projections as a group without weight decay."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self._hidden is not None:
            optimizer.add_param_group({"params": list(self._hidden.parameters()), "weight_decay": 0.0})
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._hidden is not None and self.args.should_save:
            save_file(self._hidden.state_dict(), Path(output_dir) / PROJECTIONS_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._hidden is not None and checkpoint is not None:
            path = Path(checkpoint) / PROJECTIONS_FILE
            if not path.is_file():
                raise CheckpointError(
                    f"{path} is missing: the checkpoint is from a training with hidden_weight=0; go on with that, or "
                    "train from the start"
                )
            self._hidden.load_state_dict(load_file(path))
        super()._load_optimizer_and_scheduler(checkpoint)
