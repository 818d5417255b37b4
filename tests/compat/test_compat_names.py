"""Private names of other libraries exist and mean what `hf_whittle.compat` takes them for.

A failure names the library, the name, and the version that it was last seen in.
"""

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from relying import relies_on

import hf_whittle
from hf_whittle import compat

ROOT = Path(__file__).parents[2]
PACKAGE = Path(hf_whittle.__file__).parent
TRAVELING = {path.stem for path in (PACKAGE / "models" / "students").glob("*whittle*.py")}
STOCK_MODULES = re.compile(r"transformers\.models\.(\w+)\.modeling_\1")
OWN_MARKS = {"_reads_file_names"}
"""Attributes of this package that it sets on models of other libraries."""
PUBLIC_MODULES = {
    "accelerate", "accelerate.utils", "datasets", "datasets.config", "datasets.exceptions", "datasets.fingerprint",
    "huggingface_hub", "huggingface_hub.constants", "huggingface_hub.dataclasses", "huggingface_hub.errors",
    "huggingface_hub.repocard", "huggingface_hub.utils", "lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks",
    "peft", "torch", "torch.autograd.function",
    "torch.distributed.tensor", "torch.nn.functional", "torch.optim.lr_scheduler", "torch.utils.hooks",
    "transformers",
    "transformers.tokenization_utils_base", "transformers.trainer", "transformers.trainer_callback",
    "transformers.trainer_utils", "transformers.utils",
}  # fmt: skip


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_names_were_looked_up_in_the_versions_that_are_tested():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    tested = {library: pins[library.replace("_", "-")] for library in compat.SEEN_IN}
    assert {library: ".".join(pin.split(".")[:2]) for library, pin in tested.items()} == compat.SEEN_IN


# Names that no function stands for.


@pytest.mark.parametrize("foreign", [*compat.OVERRIDDEN, *compat.TRAVELING], ids=lambda one: f"{one.owner}.{one.name}")
def test_name_is_there_and_takes_its_parameters(foreign):
    with relies_on(foreign.owner.partition(":")[0].partition(".")[0], f"{foreign.owner}.{foreign.name}"):
        owner = pkgutil.resolve_name(foreign.owner)
        stated = {name for base in getattr(owner, "__mro__", ()) for name in vars(base).get("__annotations__", ())}
        assert hasattr(owner, foreign.name) or foreign.name in stated, "it is gone"
        if foreign.parameters:
            found = [name for name in inspect.signature(getattr(owner, foreign.name)).parameters if name != "self"]
            assert tuple(found[: len(foreign.parameters)]) == foreign.parameters


def own_classes():
    for module in pkgutil.walk_packages(hf_whittle.__path__, "hf_whittle."):
        for found in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(found) and found.__module__ == module.name:
                yield found


@pytest.mark.slow
def test_every_private_method_that_is_overridden_is_listed():
    known = {foreign.name for foreign in (*compat.OVERRIDDEN, *compat.TRAVELING)}
    written = {name for _, tree in sources() for name in defined_names(tree)}  # others are made by metaclasses
    for own in own_classes():
        bases = [base for base in own.__mro__ if base.__module__.partition(".")[0] in compat.SEEN_IN]
        names = filter(is_private, written & vars(own).keys())
        private = {name for name in names if any(name in vars(base) for base in bases)}
        assert private <= known, f"{own.__name__} overrides {private - known}: add a row to compat.OVERRIDDEN"


def sources():
    for path in sorted(PACKAGE.rglob("*.py")):
        if "compat" not in path.relative_to(PACKAGE).parts:
            yield path.stem, ast.parse(path.read_text())


def defined_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def used_names(tree):
    """Attributes, keywords of calls, and names given to `getattr` and similar functions as strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call):
            yield from (keyword.arg for keyword in node.keywords if keyword.arg)
            if ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
                yield from (each.value for each in node.args if isinstance(each, ast.Constant))


@pytest.mark.slow
def test_no_private_name_of_a_library_is_used_elsewhere():
    known = {name for foreign in compat.OVERRIDDEN for name in (foreign.name, *foreign.parameters)}
    known |= OWN_MARKS | {name for _, tree in sources() for name in defined_names(tree)}
    traveling = known | {foreign.name for foreign in compat.TRAVELING} | {"_weight_conversions"}
    for module, tree in sources():
        private = {name for name in used_names(tree) if isinstance(name, str) and is_private(name)}
        others = private - (traveling if module in TRAVELING else known)
        assert not others, f"{module} uses {others}: give it a function in compat/"


@pytest.mark.slow
def test_only_documented_modules_are_imported_elsewhere():
    traveling = PUBLIC_MODULES | {foreign.owner for foreign in compat.TRAVELING}
    for module, tree in sources():
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        foreign = {name for name in imported if name.partition(".")[0] in compat.SEEN_IN}
        if module in TRAVELING:
            foreign = {name for name in foreign if not STOCK_MODULES.fullmatch(name)}
        others = foreign - (traveling if module in TRAVELING else PUBLIC_MODULES)
        assert not others, f"{module} imports from {others}, which is not documented: give it a function in compat/"
