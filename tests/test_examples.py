"""The examples run on tiny settings, each in a process of its own, and leave the results that they speak of."""

import json
import re
import shlex
import sys
from pathlib import Path

import nbformat
import pytest
import torch
import warm
from fixtures_processes import launched
from fixtures_run import write_modules
from nbclient import NotebookClient
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_whittle import SearchResult, SubnetConfig, extract_subnet, push_subnet_to_hub

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXT = "--files texts/*.txt --block_size 32"
SEARCHED = f"{TEXT} --teacher teacher --generations 0"
ONE, TWO = "--low 30e3 --high 40e3", "--sizes 33e3 40e3"
TRAINED = "--max_steps 2 --use_cpu --disable_tqdm true"
FROM_THE_HUB = "--student me/student --push_to_hub --hub_model_id me/adapters --save_strategy no"


def student_in(folder, low, high):
    """The student of a folder, which loads with its tokenizer and runs."""
    student = AutoModelForCausalLM.from_pretrained(folder)
    assert low <= student.num_parameters() <= high and (folder / "README.md").is_file()
    tokens = AutoTokenizer.from_pretrained(folder)("def main", return_tensors="pt")
    assert student(**tokens).logits.isfinite().all()
    return student


def assert_trained(student, folder):
    """A student differs from the slice of its teacher."""
    slice_of_teacher = extract_subnet("teacher", SubnetConfig.from_pretrained(folder))
    assert not torch.equal(next(student.parameters()), next(slice_of_teacher.parameters()))


def quick_start(printed, hub):
    assert_trained(student_in(Path("student"), 30e3, 40e3), "student")
    assert SearchResult.load("student").best == SubnetConfig.from_pretrained("student")


def search_only(printed, hub):
    search = SearchResult.load("search")
    for index, size in enumerate((33_000, 40_000)):
        folder = Path("search") / str(size)
        assert {path.name for path in folder.glob("*.png")} == {"search.png", "pareto.png", "architecture.png"}
        subnet = SubnetConfig.from_pretrained(folder)
        assert subnet == search.in_bin(index).best
        assert 0.95 * size <= extract_subnet("teacher", subnet).num_parameters() <= 1.05 * size
    assert f"{len(search.evaluations)} evaluations on" in printed
    published = SearchResult.from_pretrained("me/search", repo_type="dataset")
    assert published.evaluations == search.evaluations


def distil_with_stored_logits(printed, hub):
    assert (Path("students") / "targets" / "store.json").is_file()
    for size in (33_000, 40_000):
        folder = Path("students") / str(size)
        assert_trained(student_in(folder, 0.95 * size, 1.05 * size), folder)
        assert "samples of the teacher" in (folder / "README.md").read_text()


def lora_recovery(printed, hub):
    student = student_in(Path("student"), 30e3, 40e3)
    assert type(student).__name__ == "GPTNeoXForCausalLM"
    assert_trained(student, "student")
    trained, whole = (int(number.replace(",", "")) for number in re.search(r"([\d,]+) of ([\d,]+)", printed).groups())
    assert 0 < trained < whole == student.num_parameters()


def train_supernet_with_search(printed, hub):
    for checkpoint in ("checkpoint-1", "checkpoint-2"):
        assert SearchResult.load(Path("trained") / checkpoint / "subnet_search").answers
    whole, before = (AutoModelForCausalLM.from_pretrained(name).state_dict() for name in ("trained", "teacher"))
    assert whole.keys() == before.keys() and any(not torch.equal(whole[name], before[name]) for name in whole)
    for size in (33_000, 40_000):
        folder = Path("trained") / str(size)
        assert_trained(student_in(folder, 0.95 * size, 1.05 * size), folder)
    assert printed.count("search_fitness") == 2


def custom_fitness(printed, hub):
    student_in(Path("student"), 30e3, 40e3)
    search = SearchResult.load("student")
    assert search.settings["fitness"]["name"] == "next-token-errors"
    assert all(0 <= answer.fitness <= 1 for answer in search.answers)
    by_errors = float(re.search(r"best by next-token-errors: next-token-errors ([\d.]+),", printed)[1])
    assert by_errors == pytest.approx(search.best_evaluation.fitness, abs=1e-3)


def custom_architecture(printed, hub):
    student = student_in(Path("starcoder2-student"), 0.4e6, 0.5e6)
    assert type(student).__name__ == "Starcoder2ForCausalLM"
    assert float(re.search(r"saved student: (\S+)", printed)[1]) < 1e-4


def push_adapter(printed, hub):
    names = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    published = set(hub.files("me/adapters"))
    assert names <= published and not {"config.json", "model.safetensors"} & published
    adapted = AutoPeftModelForCausalLM.from_pretrained("me/adapters")
    plain = AutoModelForCausalLM.from_pretrained("me/student")
    tokens = torch.arange(8)[None]
    assert not torch.allclose(adapted(tokens).logits, plain(tokens).logits)


def push_adapter_dry(printed, hub):
    assert re.search(r"adapter_model\.safetensors: [\d,]+ bytes", printed) and not hub.repos


def train_demo_teacher(printed, hub):
    folder = Path("new") / "final"
    log = json.loads((folder / "training_log.json").read_text())
    assert log["parameters"] == AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    assert len(AutoTokenizer.from_pretrained(folder)) == 300 and set(log["perplexity"]) == {"search", "test"}


CASES = {
    "quick_start": (f"{SEARCHED} {ONE} {TRAINED}", quick_start),
    "quick_start on two processes": (f"{SEARCHED} {ONE} {TRAINED}", quick_start),
    "search_only": (f"{SEARCHED} {TWO} --archive_id me/search", search_only),
    "distil_with_stored_logits": (f"{SEARCHED} {TWO} {TRAINED}", distil_with_stored_logits),
    "lora_recovery": (f"{SEARCHED} {ONE} {TRAINED} --lora_rank 2", lora_recovery),
    "train_supernet_with_search": (
        f"{TEXT} --supernet teacher --generations 0 {TWO} {TRAINED} --save_steps 1 --logging_steps 1",
        train_supernet_with_search,
    ),
    "custom_fitness": (f"{SEARCHED} {ONE}", custom_fitness),
    "custom_architecture": ("--files texts/*.txt --generations 1", custom_architecture),
    "push_adapter": (f"{TEXT} --teacher teacher {TRAINED} {FROM_THE_HUB}", push_adapter),
    "push_adapter and nothing is sent": (f"{TEXT} --teacher teacher {TRAINED}", push_adapter_dry),
    "train_demo_teacher": (
        f"{TRAINED} --output_dir new --vocab_size 300 --hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2",
        train_demo_teacher,
    ),
}
NOTEBOOK = [
    ("teacher", "'teacher'"), ("files", "['texts/*.txt']"), ("low, high", "30e3, 40e3"), ("block_size", "32"),
    ("generations", "0"), ("max_steps", "5"),
]  # fmt: skip
"""Settings of the notebook, in the order in which a cell of its own makes them."""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_example_leaves_its_results(case, hub, teacher_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_modules(tmp_path / "texts")
    (tmp_path / "teacher").symlink_to(teacher_folder)
    if "me/student" in CASES[case][0]:
        push_subnet_to_hub(extract_subnet("teacher", SubnetConfig(16, [0, 2, 4], 2, 32)), "me/student")
    arguments, check = CASES[case]
    script = str(EXAMPLES / f"{case.partition(' ')[0]}.py")
    arguments = shlex.split(arguments)
    done = launched(script, *arguments) if "processes" in case else warm.run([sys.executable, script, *arguments])
    assert done.returncode == 0, done.stderr
    check(done.stdout, hub)


def shown(notebook):
    """The kinds of output of each cell, without messages of libraries."""
    outputs = [(index, output) for index, cell in enumerate(notebook.cells) for output in cell.get("outputs", ())]
    kinds = {(index, kind) for index, output in outputs for kind in output.get("data", ())}
    return kinds | {(index, "text") for index, output in outputs if output.get("name") == "stdout"}


@pytest.mark.slow
def test_notebook_shows_what_it_was_saved_with(teacher_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "OMP_NUM_THREADS": 1,
        "PYTHONPATH": EXAMPLES.parent,
        "IPYTHONDIR": tmp_path / "ipython",
    }.items():
        monkeypatch.setenv(name, str(value))
    write_modules(tmp_path / "texts")
    (tmp_path / "teacher").symlink_to(teacher_folder)
    notebook = nbformat.read(EXAMPLES / "quick_start.ipynb", as_version=4)
    saved = shown(notebook)
    assert [kind for _, kind in saved].count("image/png") == 2
    settings = next(cell for cell in notebook.cells if cell.source.startswith("teacher = TEACHER"))
    assert re.findall(r"^([\w, ]+) =", settings.source, re.MULTILINE) == [name for name, _ in NOTEBOOK]
    settings.source = "\n".join(f"{name} = {value}" for name, value in NOTEBOOK)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert shown(notebook) == saved
    assert_trained(student_in(Path("student"), 30e3, 40e3), "student")


def test_every_example_is_run_and_in_the_table():
    table = (EXAMPLES / "README.md").read_text()
    found = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert set(re.findall(r"^\| \[`(.+?)`\]\((?:.+?)\)", table, re.MULTILINE)) == found
    run = {f"{case.partition(' ')[0]}.py" for case in CASES}
    assert found - run == {"quick_start.ipynb"}
