"""Recovery of cut models without training, ours and published ones: perplexity, seconds, memory and parameters.

A real model on the test text of WikiText-2, and the demo's teacher on held-out modules of the standard library, each
cut by shares of its parameters, in depth, in width, in both and in channels. Every rival recovers the same students on
the same calibration text. Perplexity is that of the whole text, tokenized at once, in windows without overlap; the
first token of a window is not predicted. Word perplexity is the exponential of the mean loss of a token times the
tokens for each word. All in single precision on one thread; every row is kept in `runs/`, so that an interrupted
benchmark goes on.

The real model is measured where environment variables name it and its texts:

- `HF_WHITTLE_REAL_MODEL`: folder of a checkpoint, such as one of SmolLM2-135M;
- `HF_WHITTLE_CALIBRATION`: files of calibration text, or patterns of them, separated like the folders of `PATH`;
- `HF_WHITTLE_WIKITEXT`: the file of the test text, a row of the data set in each line;
- `HF_WHITTLE_CALIBRATION_TOKENS`: tokens of calibration text (default: 32,768);
- `HF_WHITTLE_WINDOWS`: number of windows to read, evenly over the text (default: all);
- `HF_WHITTLE_CUTS`: per cent of the parameters to cut (default: 10,20,30,50).
"""

import json
import os
from typing import Any

import torch

from hf_whittle import HealingConfig, SubnetConfig
from hf_whittle.cost import num_parameters
from hf_whittle.files.text import write_text

from .published import PUBLISHED
from .rivals import KINDS, RIVALS
from .rows import TEACHER, Job, load, row_of
from .students import Chooser, angular_distances, score
from .texts import Case, demo_case, real_case

CUTS = "HF_WHITTLE_CUTS"
CRITERIA = ("importance", "magnitude")


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    cuts = [int(cut) for cut in os.environ.get(CUTS, "10,20,30,50").split(",")]
    cases = [case for case in (real_case(), demo_case()) if case is not None]
    tables = {case.name: table_of(case, cuts) for case in cases}
    failed = [name for table in tables.values() for name in table.pop("failed")]
    if failed:
        raise SystemExit(f"{len(failed)} rows failed, run again for them: {', '.join(failed)}")
    return {"healing": repr(HealingConfig()), "published": PUBLISHED, "models": tables}


def table_of(case: Case, cuts: list[int]) -> dict[str, Any]:
    """All rows of a teacher, by kind of cut, share and rival; `None` where a rival does nothing."""
    teacher = row_of(Job(case, TEACHER, TEACHER, SubnetConfig.full(load(case.model).config)))
    table: dict[str, Any] = {"texts": case.facts, "teacher": teacher, "students": {}, "rows": {}, "failed": []}
    students = students_of(case, cuts)
    for kind in KINDS:
        for cut in cuts:
            own = students[f"{kind} {cut}"]
            table["students"][f"{cut}% {kind}"] = {name: chosen["facts"] for name, chosen in own.items()}
            rows = table["rows"].setdefault(kind, {}).setdefault(f"{cut}%", {})
            for name, rival in RIVALS.items():
                subnet = SubnetConfig.from_dict(own[rival.criterion]["subnet"])
                job = Job(case, f"{cut} {kind} {name}", name, subnet)
                rows[name] = row_of(job) if kind in rival.kinds else None
                if kind in rival.kinds and rows[name] is None:
                    table["failed"].append(f"{case.name} {job.name}")
    return table


def students_of(case: Case, cuts: list[int]) -> dict[str, Any]:
    """The students of every kind and share by each criterion, which are kept in `runs/`."""
    path = case.folder / "students.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    missing = [(kind, cut) for kind in KINDS for cut in cuts if f"{kind} {cut}" not in known]
    if missing:
        teacher = load(case.model)
        distances = angular_distances(teacher, case.calibration)
        choosers = {
            criterion: Chooser(
                teacher.config,
                score(teacher, case.calibration, criterion, case.folder),
                distances if criterion == "importance" else None,
            )
            for criterion in CRITERIA
        }
        for kind, cut in missing:
            subnets = {criterion: choose(kind, cut / 100) for criterion, choose in choosers.items()}
            known[f"{kind} {cut}"] = {
                criterion: {"facts": facts_of(teacher.config, subnet), "subnet": subnet.to_dict()}
                for criterion, subnet in subnets.items()
            }
        write_text(path, json.dumps(known))
    return known


def facts_of(config: Any, subnet: SubnetConfig) -> dict[str, Any]:
    """What identifies a student: the removed layers, how many of everything else each layer keeps, and a digest."""
    removed = " ".join(str(layer) for layer in range(config.num_hidden_layers) if layer not in subnet.layers)
    sizes = {dimension.name: subnet.shape.size(dimension) for dimension in subnet.shape.dimensions}
    return {
        "parameters": num_parameters(config, subnet),
        "removed_layers": removed,
        **sizes,
        "digest": subnet.digest,
    }
