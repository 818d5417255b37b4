"""Small stores of teacher targets; as a script, one that is killed again and again, and one of two processes.

python fixtures_stores.py FOLDER
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from fixtures_distillation import make_model
from fixtures_processes import free_port, rank_variables

from hf_whittle.distillation.store.writer import store_targets

VOCABULARY, LENGTH, BLOCKS, PER_SHARD = 50, 12, 40, 3
SHARDS = -(-BLOCKS // PER_SHARD)


def make_teacher():
    return make_model(seed=2, layers=3)


def make_blocks(number=BLOCKS, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return Dataset.from_dict({"input_ids": torch.randint(VOCABULARY, (number, LENGTH), generator=generator).tolist()})


def store(folder, **changes):
    settings = {"batch_size": 2, "blocks_per_shard": PER_SHARD, "progress": False, **changes}
    teacher = settings.pop("teacher", None) or make_teacher()
    blocks = settings.pop("blocks", None)
    return store_targets(teacher, make_blocks() if blocks is None else blocks, folder, **settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def started(folder, **environment):
    """Start storing in a child process; returns its id."""
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        store(folder)
        os._exit(0)
    return child


def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_again_and_again(folder, kills=5):
    """Store, kill it some time after the next shard, repeat; at last let it finish."""
    rng = random.Random(0)
    for kill in range(kills + 1):
        enough = len(list(folder.glob("shard-*"))) + rng.randint(1, 2)
        child = started(folder)
        if kill < kills:
            while len(list(folder.glob("shard-*"))) < enough:
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
        status = status_of(child)
        print(len(list(folder.glob("shard-*"))), status)


def on_two_processes(folder):
    """Store in two processes with the environment of a launcher."""
    port = free_port()
    children = [started(folder, **rank_variables(rank, port)) for rank in range(2)]
    assert [status_of(child) for child in children] == [0, 0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    killed_again_and_again(Path(sys.argv[1]) / "killed")
    on_two_processes(Path(sys.argv[1]) / "two")
