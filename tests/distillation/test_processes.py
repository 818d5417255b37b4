"""Two processes train to the weights of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from uneven_training import CASES, logged_numbers, make_trainer, projections

SCRIPT = Path(__file__).with_name("uneven_training.py")


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory):
    """A folder with the weights and numbers of every case."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the process group was ended") == 2  # maybe in one line
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_weights_and_logs_of_one(on_two_processes, case, tmp_path):
    one = make_trainer(tmp_path, hidden_weight=CASES[case].get("hidden_weight", 0.0))
    one.train()
    two = torch.load(on_two_processes / f"{case}.pt")
    torch.testing.assert_close(two.pop("logs"), logged_numbers(one), rtol=1e-4, atol=1e-4)
    assert two.pop("eval_loss").item() == pytest.approx(one.evaluate()["eval_loss"], rel=1e-5)
    torch.testing.assert_close(two, {**one.model.state_dict(), **projections(one)}, rtol=0, atol=1e-5)
