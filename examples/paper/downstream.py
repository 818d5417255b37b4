"""Experiment 7: does the perplexity of a slice tell what training makes of it, in perplexity and on tasks?

Subnets across the whole range of sizes, trained as slices with distillation. Two tasks of lm-evaluation-harness, made
from test text: the word that comes next, one of four that occur before it, and how a text goes on, one of four
continuations. Learning rates are bracketed on the first subnet that is drawn in each third of the range.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import yaml
from transformers import AutoTokenizer

from hf_whittle import ParameterBin
from hf_whittle.cost import num_parameters
from hf_whittle.demo import TEACHER
from hf_whittle.evaluation.harness import load_tasks, run_tasks
from hf_whittle.files.text import write_text

from .cache import RUNS
from .lab import Lab
from .text import LENGTH, Text, spread
from .training import CODE, Training
from .tuning import Tuner

LEAST, MOST = 0.25, 0.95
"""Shares of the teacher's parameters that the subnets lie between."""
SHOWN, CONTINUED = LENGTH // 4, 24
"""Tokens of a question, and of a continuation."""
CHOICES = 4
WORD = re.compile(r"[A-Za-z_]{4,}")


def run(lab: Lab) -> Iterator[dict[str, Any]]:
    """Yield the results after each subnet."""
    tasks, tuner, steps = Questions(lab.text, lab.size.questions), Tuner(lab), lab.size.ways_steps
    results: dict[str, Any] = {"tasks": tasks.sizes, "subnets": []}
    results["teacher"] = lab.cache.once("questioned", tasks.settings, (*CODE, *tasks.code), lambda: tasks(lab.supernet))
    full, rng, number = num_parameters(lab.supernet.full_config), random.Random(0), lab.size.spread
    for place in rng.sample(range(number), number):
        share = LEAST + (MOST - LEAST) * place / number
        low, high = int(share * full), int((share + (MOST - LEAST) / number) * full)
        subnet = lab.space.sample(rng, ParameterBin(low, high))
        start = lab.sliced(f"subnet {place}", subnet)
        third = f"third {3 * place // number}"
        if (third, steps) not in tuner.rates:
            tuner.train(start, steps, 0, kind="sliced", name=third)
        trained = lab.trained(start, Training(steps, tuner.rates[third, steps], 0), further=tasks)
        parameters = num_parameters(lab.supernet.full_config, subnet)
        row = {"subnet": subnet.to_dict(), "share": parameters / full, "before": lab.before(start), "after": trained}
        results["subnets"].append(row)
        yield results


class Questions:
    """Two tasks made from test blocks, run on a model by lm-evaluation-harness.

    Args:
        text (`Text`): the text.
        number (`int`): most questions of a task, evenly spread over the test blocks.
    """

    code = ("evaluation", "paper.downstream")

    def __init__(self, text: Text, number: int):
        self.tokenizer = AutoTokenizer.from_pretrained(TEACHER)
        self.folder = RUNS / "tasks"
        questions = {"cloze": self._cloze(text, number), "continuation": self._continuations(text, number)}
        for name, rows in questions.items():
            self._write(name, rows)
        self.sizes = {name: len(rows) for name, rows in questions.items()}
        digest = hashlib.sha256(json.dumps(questions).encode()).hexdigest()
        self.settings = {"questions": digest, "lm_eval": version("lm_eval")}
        self.tasks = load_tasks(list(questions), include_path=self.folder)

    def __call__(self, model: Any) -> dict[str, Any]:
        """Accuracy of a model on each task."""
        found = run_tasks(model, self.tokenizer, self.tasks, batch_size=16)["results"]
        return {"tasks": {name: round(found[name]["acc,none"], 4) for name in self.sizes}}

    def _cloze(self, text: Text, number: int) -> list[dict[str, Any]]:
        """The first word after the beginning of a block that stands in the beginning as well, among such words."""
        rng, rows = random.Random(0), []
        for block in text.test:
            whole, shown = (str(self.tokenizer.decode(ids)) for ids in (block, block[:SHOWN]))
            known = sorted(set(WORD.findall(shown)))
            words = [word for word in WORD.finditer(whole, len(shown) + 1) if word[0] in known]
            if words and len(known) >= CHOICES:
                others = [word for word in known if word != words[0][0]]
                choices = [words[0][0], *rng.sample(others, CHOICES - 1)]
                rows.append(self._asked(whole[: words[0].start()], choices, rng))
        return [rows[place] for place in spread(len(rows), number)]

    def _continuations(self, text: Text, number: int) -> list[dict[str, Any]]:
        """How a block goes on, among what stands at the same place of three blocks of other modules."""
        rng, rows = random.Random(0), []
        for place in spread(len(text.test), number):
            others = [other for other, name in enumerate(text.modules) if name != text.modules[place]]
            blocks = [place, *rng.sample(others, CHOICES - 1)]
            choices = [str(self.tokenizer.decode(text.test[block][SHOWN : SHOWN + CONTINUED])) for block in blocks]
            rows.append(self._asked(str(self.tokenizer.decode(text.test[place][:SHOWN])), choices, rng))
        return rows

    @staticmethod
    def _asked(context: str, choices: list[str], rng: random.Random) -> dict[str, Any]:
        """A question whose answer is the first choice."""
        order = rng.sample(range(len(choices)), len(choices))
        return {"context": context, "choices": [choices[each] for each in order], "answer": order.index(0)}

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        data = self.folder / f"{name}.jsonl"
        write_text(data, "\n".join(map(json.dumps, rows)))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        columns = {"doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "answer"}
        task = {"task": name, **source, "output_type": "multiple_choice", **columns, "target_delimiter": ""}
        write_text(self.folder / f"{name}.yaml", yaml.safe_dump(task))
