"""Training steps of two threads while another program of two threads computes, by how long idle threads spin.

Steps of a GPT-NeoX of the demo's size. `GOMP_SPINCOUNT` is what commands set; GNU's default is 300,000. It pays where
threads outnumber cores.
"""

import os
import subprocess
import sys
from typing import Any

from hf_whittle.cli import SPINS

STEPS = """
import sys, time, torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
torch.manual_seed(0)
sizes = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512}
model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=2048, **sizes))
blocks = torch.randint(2048, (16, 128))
while True:
    started = time.perf_counter()
    model(input_ids=blocks, labels=blocks).loss.backward()
    print(time.perf_counter() - started, flush=True)
"""
WAYS = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two threads, GNU's default": {"OMP_NUM_THREADS": "2"},
    f"two threads, {int(SPINS):,} turns": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": SPINS},
}
ROUNDS, TIMED = 3, 20


def measure() -> dict[str, Any]:
    seconds: dict[str, dict[str, list[float]]] = {way: {"alone": [], "against its like": []} for way in WAYS}
    for _ in range(ROUNDS):
        for way, setting in WAYS.items():
            seconds[way]["alone"].append(_seconds(setting, rivals=0))
            seconds[way]["against its like"].append(_seconds(setting, rivals=1))
    return {
        way: {name: {"milliseconds_a_step": [round(1e3 * s, 1) for s in found]} for name, found in of_way.items()}
        for way, of_way in seconds.items()
    }


def _seconds(setting: dict[str, str], rivals: int) -> float:
    """Mean seconds of a step, after the first ones, beside `rivals` processes that do the same."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", STEPS]
    processes = [
        subprocess.Popen(command, env={**inherited, **setting}, stdout=subprocess.PIPE, text=True)
        for _ in range(1 + rivals)
    ]
    try:
        for process in processes:
            next(_steps(process))  # all are at work
        first = _steps(processes[0])
        return sum(next(first) for _ in range(TIMED)) / TIMED
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _steps(process: subprocess.Popen) -> Any:
    assert process.stdout is not None
    yield from map(float, process.stdout)
