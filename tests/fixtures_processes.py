"""Run a script on two processes: under `torchrun`, or as two machines would, with a launcher or without."""

import atexit
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parent
ENDED, LEFT = "the process group was ended", "a process group was left"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def rank_variables(rank, port, processes=2):
    """Environment variables that a launcher sets for a process."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    return {name: str(value) for name, value in variables.items()} | {"MASTER_ADDR": "127.0.0.1"}


def environment_of_scripts(**changes):
    """Environment with one thread, in which the package and helpers of the tests can be imported."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **changes}


def torchrun(script, *arguments, **environment):
    """Run a script on two processes; returns the finished launcher."""
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [sys.executable, "-m", *launcher, str(script), *map(str, arguments)]
    environment = environment_of_scripts(**environment)
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


def on_two_processes(script, *arguments, **environment):
    """Run a script on two processes, neither of which fails; returns the output of both."""
    done = torchrun(script, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def on_two_machines(script, *arguments):
    """Run a script in two processes, each the first of its machine, neither of which fails; returns both outputs.

    No launcher ends one process when the other fails.
    """
    port = free_port()
    variables = [rank_variables(rank, port) | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} for rank in range(2)]
    return side_by_side([[sys.executable, str(script), *map(str, arguments)]] * 2, variables)


def accelerate_on_two_machines(script, *arguments):
    """Run a script by `accelerate launch` as on two machines, with a process on each; returns both outputs."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"]
    launch += ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    commands = [[*launch, "--machine_rank", str(rank), str(script), *map(str, arguments)] for rank in range(2)]
    return side_by_side(commands, [{}, {}])


def side_by_side(commands, variables):
    """Run commands at the same time, each with its environment variables; none fails. Returns their outputs."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(command, env=environment_of_scripts(**changes), **output)
        for command, changes in zip(commands, variables, strict=True)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [stdout for stdout, _ in outputs]


def print_at_exit_whether_the_group_was_ended():
    """Print `ENDED` or `LEFT` when this process exits; registered first, this runs after the library's own handler."""
    atexit.register(lambda: print(LEFT if torch.distributed.is_initialized() else ENDED))
