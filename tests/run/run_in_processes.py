"""Script for a launcher: `hf-whittle run RECIPE`, in which something happens to the second process while it trains.

torchrun --nproc-per-node 2 run_in_processes.py RECIPE [killed | interrupted | sharded]
"""

import os
import signal
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from fixtures_processes import print_at_exit_whether_the_group_was_ended

from hf_whittle.cli import main
from hf_whittle.distillation.trainer import DistillationTrainer

ENDS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "interrupted": lambda: os.kill(os.getpid(), signal.SIGINT),
}


def end_at_step(step, end):
    """Do something before a step of a training, but not in the trials of one step before a run."""
    train = DistillationTrainer.training_step

    def training_step(trainer, *args, **kwargs):
        if trainer.state.global_step == step:
            end()
        return train(trainer, *args, **kwargs)

    DistillationTrainer.training_step = training_step


def shard_on_cpus():
    """Let accelerate take these processes for those of GPUs, as it ignores FSDP on CPUs."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


if __name__ == "__main__":
    print_at_exit_whether_the_group_was_ended()
    recipe, *happens = sys.argv[1:]
    if happens == ["sharded"]:
        shard_on_cpus()
    elif happens and os.environ["RANK"] == "1":
        end_at_step(3, ENDS[happens[0]])
    sys.exit(main(["run", recipe]))
