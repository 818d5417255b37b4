"""Script for a launcher: `hf-whittle run RECIPE`, in which something happens to the second process while it trains.

torchrun --nproc-per-node 2 run_in_processes.py RECIPE [killed | interrupted | out of luck]
"""

import os
import signal
import sys

from fixtures_processes import print_at_exit_whether_the_group_was_ended

from hf_whittle.cli import main
from hf_whittle.distillation.trainer import DistillationTrainer


def out_of_luck():
    raise OSError("out of luck")


ENDS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "interrupted": lambda: os.kill(os.getpid(), signal.SIGINT),
    "out of luck": out_of_luck,
}


def end_at_step(step, end):
    """Do something before a step of a training, but not in the trials of one step before a run."""
    train = DistillationTrainer.training_step

    def training_step(trainer, *args, **kwargs):
        if trainer.state.global_step == step:
            end()
        return train(trainer, *args, **kwargs)

    DistillationTrainer.training_step = training_step


if __name__ == "__main__":
    print_at_exit_whether_the_group_was_ended()
    recipe, *happens = sys.argv[1:]
    if happens and os.environ["RANK"] == "1":
        end_at_step(3, ENDS[happens[0]])
    sys.exit(main(["run", recipe]))
