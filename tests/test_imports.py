"""The public names, that they are imported lazily, and the direction of imports between modules."""

import ast
import importlib
from pathlib import Path

import pytest

import hf_whittle

PACKAGE = Path(hf_whittle.__file__).parent
FILES = {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", "."): path for path in PACKAGE.rglob("*.py")}
FOUNDATION = {
    "errors": set(),
    "checks": set(),
    "disk": {"errors"},
    "files": {"disk", "errors"},
    "locks": {"disk", "errors"},
    "subnet": {"errors", "files"},
    "architecture": {"errors", "models"},
    "cost": {"architecture", "errors", "subnet"},
    "entries": {"subnet"},
    "reach": {"architecture", "cost", "errors", "subnet"},
    "search_space": {"architecture", "cost", "entries", "errors", "reach", "subnet"},
    "code_fingerprint": set(),
    "search": {
        "checks",
        "code_fingerprint",
        "cost",
        "disk",
        "errors",
        "files",
        "fitness",
        "locks",
        "plots",
        "processes",
        "reach",
        "search",
        "search_space",
        "subnet",
    },
    "processes": set(),
    "plots": {"files", "search", "subnet"},
    "portable": {"architecture"},
    "models": {"architecture", "cost", "errors", "files", "models", "portable", "subnet"},
    "tokenizer_files": {"files"},
    "checkpoint": {"architecture", "errors", "files", "tokenizer_files"},
    "slicing": {"architecture", "cost", "errors", "models", "subnet"},
    "extraction": {
        "architecture",
        "checkpoint",
        "cost",
        "disk",
        "errors",
        "evaluation",
        "files",
        "healing",
        "lineage",
        "models",
        "portable",
        "slicing",
        "subnet",
        "tokenizer_files",
    },
    "lineage": {"files", "healing", "subnet"},
    "evaluation": {"errors", "models"},
    "fingerprints": {"files", "models"},
    "fitness": {
        "architecture",
        "code_fingerprint",
        "cost",
        "errors",
        "evaluation",
        "fingerprints",
        "models",
        "subnet",
    },
    "healing": {
        "architecture",
        "checks",
        "cost",
        "disk",
        "errors",
        "evaluation",
        "files",
        "fingerprints",
        "fitness",
        "healing",
        "models",
        "slicing",
        "subnet",
    },
    "proxies": {"cost", "errors", "evaluation", "fingerprints", "fitness", "importance", "models", "subnet"},
    "importance": {"architecture", "errors", "evaluation", "files", "fingerprints", "models", "subnet"},
    "sorting": {"architecture", "errors", "fingerprints", "importance", "models", "subnet"},
    "latency": {"cost", "errors", "evaluation", "files", "models", "subnet"},
}
"""What a module or package may import of hf_whittle, at most."""
SHIPPED = ("configuration_whittle_gpt_neox", "modeling_whittle_gpt_neox")


class _Imports(ast.NodeVisitor):
    """The absolute names of the modules a file imports, without those for type checkers only."""

    def __init__(self, module, is_package, into_functions):
        self.package = ["hf_whittle", *module.split(".")]
        if not is_package or module != "__init__":
            self.package = self.package[:-1]
        self.into_functions = into_functions
        self.found = set()

    def visit_Import(self, node):
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node):
        base = self.package[: len(self.package) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        self.found |= {f"{module}.{alias.name}" for alias in node.names}

    def visit_If(self, node):
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_FunctionDef(self, node):
        if self.into_functions:
            self.generic_visit(node)


def imports_of(module, into_functions=True):
    visitor = _Imports(module, module.endswith("__init__"), into_functions)
    visitor.visit(ast.parse(FILES[module].read_text()))
    return visitor.found


def own_imports_of(module):
    """First names, below hf_whittle, of what a module imports of the package."""
    return {name.split(".")[1] for name in imports_of(module) if name.startswith("hf_whittle.")}


def modules_of(name):
    return [module for module in FILES if module == name or module.startswith(f"{name}.")]


def test_every_public_name_has_a_module_and_is_listed_in_order():
    assert hf_whittle.__all__ == sorted(hf_whittle._MODULES)


@pytest.mark.parametrize("name", hf_whittle.__all__)
def test_public_name_is_the_one_of_its_module(name):
    module = importlib.import_module(f"hf_whittle.{hf_whittle._MODULES[name]}")
    assert getattr(hf_whittle, name) is getattr(module, name)
    assert name in dir(hf_whittle)


def test_submodules_are_attributes():
    assert hf_whittle.cost is importlib.import_module("hf_whittle.cost")


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'hf_whittle' has no attribute 'whittle_subnet'"):
        _ = hf_whittle.whittle_subnet


def test_import_of_the_package_imports_neither_torch_nor_transformers(run_python):
    script = """
        import sys, hf_whittle
        print(sorted({"torch", "transformers", "numpy"} & sys.modules.keys()))
        hf_whittle.SubnetConfig(1, 1, 1, 1), hf_whittle.SearchSpace, hf_whittle.ParameterBin, hf_whittle.search_subnets
        hf_whittle.EvolutionConfig, hf_whittle.SearchResult
        print(sorted({"torch", "transformers"} & sys.modules.keys()))
    """
    assert run_python(script) == "[]\n[]\n"


@pytest.mark.parametrize(
    "name", ["errors", "files", "architecture", "subnet", "cost", "entries", "reach", "search_space", "search"]
)
def test_search_does_not_import_torch_at_module_level(name):
    for module in modules_of(name):
        heads = {imported.split(".")[0] for imported in imports_of(module, into_functions=False)}
        assert not heads & {"torch", "transformers", "datasets"}, module


@pytest.mark.parametrize("name", FOUNDATION)
def test_direction_of_imports(name):
    assert modules_of(name)
    for module in modules_of(name):
        assert own_imports_of(module) <= FOUNDATION[name], module


def test_nothing_but_the_command_line_imports_the_command_line():
    importers = {module for module in FILES if "cli" in own_imports_of(module)}
    assert {module.split(".")[0] for module in importers} <= {"cli"}


@pytest.mark.parametrize("name", SHIPPED)
def test_code_that_travels_with_a_student_imports_only_its_libraries_and_siblings(name):
    folder = "hf_whittle.models.gpt_neox."
    for imported in imports_of(f"models.gpt_neox.{name}"):
        if imported.startswith("hf_whittle."):
            assert imported.removeprefix(folder).split(".")[0] in SHIPPED
        else:
            assert imported.split(".")[0] in {"torch", "transformers", "huggingface_hub"}


def test_any_module_of_transformers_can_be_imported_next_and_students_are_registered(run_python):
    script = """
        import hf_whittle
        from transformers.modeling_layers import GradientCheckpointingLayer
        from transformers import AutoConfig, AutoModelForCausalLM
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        config = AutoConfig.for_model("whittle_gpt_neox", **sizes)
        print(type(AutoModelForCausalLM.from_config(config)).__name__)
    """
    assert run_python(script) == "WhittleGPTNeoXForCausalLM\n"
