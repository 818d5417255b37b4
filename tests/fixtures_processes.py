"""Run a script on two processes: warm, under `torchrun`, or as two machines would, with a launcher or without."""

import atexit
import contextlib
import socket
import subprocess
import sys
import tempfile
import time

import torch
import warm
from warm import environment_of_scripts

ENDED, LEFT = "the process group was ended", "a process group was left"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def rank_variables(rank, port, processes=2):
    """Environment variables that a launcher sets for a process."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    return {name: str(value) for name, value in variables.items()} | {"MASTER_ADDR": "127.0.0.1"}


def torchrun(script, *arguments, **environment):
    """Run a script on two processes; returns the finished launcher."""
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [sys.executable, "-m", *launcher, str(script), *map(str, arguments)]
    environment = environment_of_scripts(**environment)
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


def launched(script, *arguments, **environment):
    """Run a script on two warm processes with the variables of `torchrun`; one that fails ends the other."""
    port, command = free_port(), [sys.executable, script, *arguments]
    variables = [rank_variables(rank, port) | {"LOCAL_WORLD_SIZE": "2"} | environment for rank in range(2)]
    with contextlib.ExitStack() as opened:
        streams = [opened.enter_context(tempfile.TemporaryFile("w+")) for _ in ("stdout", "stderr")]
        processes = _all_started([command] * 2, variables, opened, stdout=streams[0], stderr=streams[1])
        deadline = time.monotonic() + 300
        while None in (codes := [process.poll() for process in processes]) and time.monotonic() < deadline:
            if any(codes):
                deadline = min(deadline, time.monotonic() + 2)  # in which the other may find the reason, too
            time.sleep(0.02)
        code = next(filter(None, [process.kill() or process.wait() for process in processes]), 0)
        return subprocess.CompletedProcess(command, code, *[stream.seek(0) or stream.read() for stream in streams])


def on_two_processes(script, *arguments, **environment):
    """Run a script on two processes, neither of which fails; returns the output of both."""
    done = launched(script, *arguments, **environment)
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
    with contextlib.ExitStack() as opened:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = _all_started(commands, variables, opened, **pipes)
        outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [stdout for stdout, _ in outputs]


def _all_started(commands, variables, opened, **options):
    """Start commands, which end with a context."""
    processes = []
    for command, changes in zip(commands, variables, strict=True):
        processes.append(warm.Popen(command, env=environment_of_scripts(**changes), **options))
        opened.callback(processes[-1].wait)
        opened.callback(processes[-1].kill)
    return processes


def print_at_exit_whether_the_group_was_ended():
    """Print `ENDED` or `LEFT` when this process exits; registered first, this runs after the library's own handler."""
    atexit.register(lambda: print(LEFT if torch.distributed.is_initialized() else ENDED))
