"""Every imported package is declared, and errors name the extra of a missing optional one."""

import ast
import itertools
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

from hf_whittle import NSGA2Config, ParameterBin, SearchSpace, SurrogateSearchConfig
from hf_whittle.distillation.config import DistillationConfig
from hf_whittle.distillation.trainer import DistillationTrainer
from hf_whittle.evaluation.harness import load_tasks

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EVERY = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
DISTRIBUTIONS = {"yaml": "pyyaml", "sklearn": "scikit-learn"}
"""Distributions of modules with another name; for the others, `_` becomes `-`."""
WITHOUT_EXTRA = {"deepspeed": "imported where its launcher already did"}
OF_DEPENDENCIES = {
    "tokenizers": "transformers",
    "hf-xet": "huggingface-hub",
    "httpx2": "huggingface-hub",
    "nbformat": "nbclient",
}


def declared(extra=None):
    given = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in given if not requirement.startswith("hf_whittle[")}
    for requirement in given:
        if requirement.startswith("hf_whittle["):
            names |= set().union(*map(declared, re.search(r"\[(.+)\]", requirement)[1].split(",")))
    return names


def imported(folder, at_module_level=False):
    """Distributions that the files of a folder import."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in tree.body if at_module_level else ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
    heads = {name.split(".")[0] for name in found} - set(sys.stdlib_module_names)
    return {DISTRIBUTIONS.get(head, head.replace("_", "-")) for head in heads} - {"hf-whittle"}


@pytest.mark.slow
def test_what_the_package_imports_is_declared():
    extras = set().union(*(declared(extra) for extra in ("adapters", "completion", "eval", "report", "search")))
    assert imported("hf_whittle") - declared() - WITHOUT_EXTRA.keys() == extras
    assert not imported("hf_whittle", at_module_level=True) - declared()


@pytest.mark.slow
def test_what_is_declared_is_used():
    assert declared() <= imported("hf_whittle")


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["tests", "examples", "model_cards"])
def test_what_tests_and_examples_import_is_declared(folder):
    own = {path.stem.replace("_", "-") for path in (ROOT / "tests").rglob("*")} | {"examples"}
    may = declared() | declared("bench") | OF_DEPENDENCIES.keys() | WITHOUT_EXTRA.keys()
    assert imported(folder) - own <= may


def test_every_requirement_has_a_lower_bound():
    without = [one for one in EVERY if ">=" not in one and not one.startswith(("hf_whittle[", "types-"))]
    assert not without


def test_versions_that_are_tested_lie_in_the_bounds():
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for requirement in EVERY:
        bound = re.match(r"([\w-]+)>=([\d.]+)", requirement)
        if bound and bound[1] in tested:
            assert parts(tested[bound[1]]) >= parts(bound[2]), requirement


def parts(version):
    return [int(part) for part in version.split(".")]


def search_with(config):
    def work(tiny_config, stock, tmp_path):
        config().algorithm(SearchSpace.from_config(tiny_config), ParameterBin(0, 1e9))

    return work


def train_with(**given):
    def work(tiny_config, stock, tmp_path):
        args = DistillationConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True)
        DistillationTrainer(model=stock, teacher_model=stock, args=args, **given)

    return work


@pytest.mark.parametrize(
    ("module", "extra", "work"),
    [
        ("pymoo", "search", search_with(NSGA2Config)),
        ("sklearn", "search", search_with(SurrogateSearchConfig)),
        ("peft", "adapters", train_with(peft_config=object())),
        ("lm_eval", "eval", lambda *_: load_tasks(["piqa"])),
        ("evaluate", "eval", lambda *_: runpy.run_module("hf_whittle.evaluation.metric")),
    ],
)
def test_an_optional_package_that_is_missing_is_told_before_any_work(
    monkeypatch, tiny_config, stock, tmp_path, module, extra, work
):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    distribution = DISTRIBUTIONS.get(module, module.replace("_", "-"))
    with pytest.raises(ImportError, match=rf"needs {distribution}: pip install 'hf_whittle\[{extra}\]'"):
        work(tiny_config, stock, tmp_path)
    assert distribution in declared(extra)
