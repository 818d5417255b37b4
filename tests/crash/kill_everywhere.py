"""Kill a program at every change of a file, resume it, and compare its files with those of an uninterrupted run.

python kill_everywhere.py PROGRAM [--points N] [--processes 2] [--from-copies]

Each run is a fork of this process, in which everything is imported and nothing was computed. With `--from-copies`, the
program is not run up to each kill: it is resumed from copies of its folder that were made at each change of a file, as
a kill would leave it, and only once from each two that are alike.
"""

import argparse
import contextlib
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.extend([str(Path(__file__).parent), str(Path(__file__).parents[1])])

if "HF_HOME" not in os.environ:  # everything is local
    os.environ.update(HF_HOME=tempfile.mkdtemp(prefix="hf-home-"), HF_HUB_OFFLINE="1")
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}

import killed_programs
import torch
from file_faults import KILLED, FileFaults, FileStates, steady_name
from fixtures_processes import free_port, rank_variables
from killed_programs import PROGRAMS, outcome
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TIMEOUT = 120


def kill_everywhere(program, points=None, processes=1, from_copies=False):
    """Kill a program at `points` moments, evenly spread, or at all of them; returns a report."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        gc.freeze()  # imports are left out of the garbage collection that each training starts with
        _write_inputs(work / "inputs")
        never_stopped, events = _reference(work, program, processes, twice=points is None)
        if from_copies:
            moments = [(0, number, torn) for number, torn in _copied_states(work, program)]
        else:
            moments = [
                (process, number, torn)
                for process, own in enumerate(events)
                for number, (_, _, tearable) in enumerate(own)
                for torn in ((False, True) if tearable else (False,))
            ]
        tried = moments if points is None else [moments[i * len(moments) // points] for i in range(points)]
        started = time.perf_counter()
        failures = []
        for process, number, torn in tried:
            trouble = _kill_and_resume(work, program, processes, (process, number, torn), never_stopped)
            if trouble:
                kind, path, _ = events[process][number]
                where = f"{kind} {steady_name(path)}" + (", half written" if torn else "")
                failures.append({"process": process, "event": number, "at": where, "trouble": trouble})
        return {
            "program": program,
            "processes": processes,
            "events": sum(map(len, events)),
            "kill_points": len(moments),
            "tried": len(tried),
            "survived": len(tried) - len(failures),
            "seconds": round(time.perf_counter() - started, 1),
            "failures": failures,
        }


def _reference(work, program, processes, twice):
    """Outcome of an uninterrupted run, and events of each process; a second run must have the same outcome."""
    outcomes = []
    for _ in range(2 if twice else 1):
        folder = _empty_folder(work)
        codes = _launch(work, program, folder, processes, {})
        assert codes == [0] * processes, _log(work)
        outcomes.append(outcome(folder))
    assert outcomes[0] == outcomes[-1], "the program does not give the same twice"
    return outcomes[0], [json.loads((work / f"events.{process}").read_text()) for process in range(processes)]


def _copied_states(work, program):
    """Run the program once more and copy its folder at each change; returns event and tearing of each state."""
    assert _launch(work, program, _empty_folder(work), 1, {}, copy=True) == [0], _log(work)
    return json.loads((work / "states.json").read_text())


def _kill_and_resume(work, program, processes, kill, never_stopped):
    """Kill a run, or take a copy of what a kill leaves, and resume; returns a description of the trouble or `None`."""
    process, number, torn = kill
    folder = _empty_folder(work)
    copy = FileStates(folder, work / "states").copy_of(number, torn)
    if copy.exists():
        shutil.copytree(copy, folder, symlinks=True, dirs_exist_ok=True)
    else:
        codes = _launch(work, program, folder, processes, {process: (number, torn)})
        if codes[process] != KILLED:
            return f"it was not killed, but ended with {codes}: {_log(work)}"
    newest = max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), default=0)  # all are whole
    if _launch(work, program, folder, processes, {}) != [0] * processes:
        return _log(work)
    resumed = json.loads((work / "resumed").read_text())
    if resumed is not None and resumed != newest:
        return f"it went on from step {resumed}, where there was a whole checkpoint of step {newest}"
    after = outcome(folder)
    different = [name for name in sorted({*after, *never_stopped}) if after.get(name) != never_stopped.get(name)]
    return f"not as if never stopped: {', '.join(map(steady_name, different))}" if different else None


def _empty_folder(work):
    """Make an empty folder; its name is always the same, since runs write it into files."""
    folder = work / "out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _launch(work, program, folder, processes, kills, copy=False):
    """Run the program in forks of this process; returns their exit codes. If one fails, the others are ended soon."""
    port, pids = free_port(), []
    for process in range(processes):
        pid = os.fork()
        if pid == 0:
            if processes > 1:
                os.environ |= rank_variables(process, port, processes)
            kill = kills.get(process, (None, False))
            faults = FileStates(folder, work / "states") if copy else FileFaults(folder, *kill)
            _be_the_program(work, program, folder, process, faults)
        pids.append(pid)
    return _wait(pids)


def _be_the_program(work, program, folder, process, faults):
    """Run the program, then end this process."""
    code = 1
    log = os.open(work / f"log.{process}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        torch.set_num_threads(1)
        faults.arm()
        resumed = PROGRAMS[program](folder, work / "inputs")
        faults.finish()
        (work / f"events.{process}").write_text(json.dumps(faults.events))
        if isinstance(faults, FileStates):
            (work / "states.json").write_text(json.dumps(faults.states))
        (work / "resumed").write_text(json.dumps(resumed))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(pids):
    codes = dict.fromkeys(pids)
    deadline = time.monotonic() + TIMEOUT
    while None in codes.values():
        for pid in [pid for pid, code in codes.items() if code is None]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid]:
                    deadline = min(deadline, time.monotonic() + 2)
        if time.monotonic() > deadline:
            for pid in [pid for pid, code in codes.items() if code is None]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def _log(work):
    """Last lines that each process printed."""
    return " / ".join(path.read_text(errors="replace")[-700:].strip() for path in sorted(work.glob("log.*")))


def _write_inputs(folder):
    """Write a teacher with a tokenizer of single bytes, and texts."""
    from fixtures_distillation import GPTNeoXConfig, GPTNeoXForCausalLM
    from fixtures_run import write_modules

    folder.mkdir()
    write_modules(folder / "texts", number=24)
    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=alphabet[0]).save_pretrained(folder / "teacher")
    torch.manual_seed(0)
    sizes = {"vocab_size": len(alphabet), "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = GPTNeoXConfig(**sizes, intermediate_size=64, max_position_embeddings=64, bos_token_id=0, eos_token_id=0)
    GPTNeoXForCausalLM(config).save_pretrained(folder / "teacher")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=[*killed_programs.PROGRAMS])
    parser.add_argument("--points", type=int, help="number of moments, all by default")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--from-copies", action="store_true", help="resume from copies of the folder, in one process")
    asked = parser.parse_args()
    if asked.from_copies and asked.processes > 1:
        parser.error("--from-copies is for one process")
    print(json.dumps(kill_everywhere(**vars(asked)), indent=1))
