"""One row of the benchmark: a student, recovered and judged in a process of its own."""

import json
import math
import multiprocessing
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from hf_whittle import SubnetConfig
from hf_whittle.evaluation import cross_entropy
from hf_whittle.files.text import write_text

from ..measuring import peak_of
from .rivals import RIVALS, Cut
from .texts import Case

TEACHER = "teacher"


@dataclass(frozen=True)
class Job:
    """What a row is measured of.

    Args:
        case (`Case`): teacher and texts.
        name (`str`): name of the row among those of the case.
        rival (`str`): one of `RIVALS`, or `TEACHER`.
        subnet (`SubnetConfig`): the student.
    """

    case: Case
    name: str
    rival: str
    subnet: SubnetConfig


def row_of(job: Job) -> dict[str, Any] | None:
    """The row, measured unless it is known; `None` if that failed, which has been printed."""
    path = job.case.folder / f"{job.name}.json"
    if not path.is_file():
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(job, sender))
        process.start()
        sender.close()  # so that a process that dies ends the wait
        try:
            row = receiver.recv()
        except EOFError:
            return None
        finally:
            process.join()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(row))
        print(job.case.name, job.name, row, flush=True)
    return json.loads(path.read_text())


def _measure(job: Job, sender: Any) -> None:
    torch.set_num_threads(1)
    disable_progress_bar()
    teacher = load(job.case.model)
    started = time.perf_counter()
    if job.rival == TEACHER:
        student, megabytes = teacher, 0.0
    else:
        rival = RIVALS[job.rival]
        cut = Cut(teacher, job.subnet, job.case.calibration, rival.is_robust)
        student, megabytes = peak_of(lambda: rival.recover(cut))
    seconds = time.perf_counter() - started
    loss = cross_entropy(student, job.case.windows, batch_size=1)
    sender.send(
        {
            "perplexity": round(bounded_exp(loss), 3),
            "word_perplexity": round(bounded_exp(loss * job.case.tokens_per_word), 3),
            "seconds": round(seconds, 1),
            "peak_megabytes": round(megabytes),
            "parameters": sum(parameter.numel() for parameter in student.parameters()),
        }
    )


def load(folder: str) -> Any:
    """A model in single precision."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def bounded_exp(value: float) -> float:
    """`exp`, finite for any number."""
    return math.exp(min(value, 700.0))
