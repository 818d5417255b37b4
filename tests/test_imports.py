"""The public names, that they are imported lazily, and the direction of imports between modules."""

import ast
import graphlib
import importlib
import sys
from pathlib import Path

import pytest

import hf_whittle
from hf_whittle.architectures.registry import ARCHITECTURES, get_architecture

PACKAGE = Path(hf_whittle.__file__).parent


def _name_of(path):
    return ".".join(part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__")


FILES = {name: path for path in sorted(PACKAGE.rglob("*.py")) if (name := _name_of(path))}
MAY_IMPORT = {
    "errors": "",
    "checks": "",
    "compat": "",
    "progress": "",
    "architectures": "compat errors",
    "files": "compat errors",
    "kept": "architectures errors",
    "vocabulary": "errors files kept",
    "subnet": "architectures compat errors files kept",
    "plots": "architectures files subnet",
    "processes": "errors files",
    "models": "architectures compat errors files progress subnet",
    "fingerprints": "compat files models",
    "data": "compat errors files fingerprints",
    "evaluation": "compat data errors files models progress subnet vocabulary",
    "cost": "architectures compat errors evaluation files models progress subnet",
    "importance": "architectures compat errors evaluation files fingerprints models progress subnet",
    "space": "architectures cost errors importance kept models subnet",
    "loss": "architectures compat evaluation models subnet",
    "healing": "architectures checks compat cost errors evaluation files models progress subnet",
    "record": "compat evaluation files healing models subnet",
    "extraction": "architectures compat cost errors evaluation files healing kept models record subnet vocabulary",
    "fitness": "checks compat cost errors evaluation extraction fingerprints healing loss models subnet",
    "search": "architectures checks cost errors files fitness models plots processes progress record space subnet",
    "experimental": "cost errors evaluation fingerprints fitness importance models search space subnet",
    "training": "architectures checks compat cost data errors evaluation files fitness loss models processes progress "
    "record search space subnet",
    "hub": "architectures compat cost data errors files fitness healing models plots record search subnet training "
    "vocabulary",
    "distillation": "architectures checks compat cost data errors evaluation files fingerprints hub kept loss models "
    "processes progress record subnet training vocabulary",
    "recipe": "checks compat cost distillation errors experimental files fitness healing models search",
    "run": "architectures compat cost data distillation errors evaluation extraction files fingerprints fitness "
    "healing hub importance kept models processes recipe record search space subnet training vocabulary",
    "plan": "architectures compat cost distillation errors evaluation fitness healing loss models recipe run search "
    "space subnet vocabulary",
    "report": "architectures errors files healing hub record search subnet",
    "cli": "architectures compat cost data distillation errors evaluation extraction files healing hub models plan "
    "processes recipe record report run search subnet vocabulary",
    "demo": "",
    "__main__": "cli",
}
"""Folders and modules that each folder or module may import, at most; for type checkers and in functions, too.

Each imports only those above it, so that nothing goes round in a circle.
"""
ROOT = PACKAGE.parent
SCRIPTS = [
    *(ROOT / name for name in (".ci/old_transformers", "model_cards/render.py")),
    *sorted(path for folder in ("examples", "tests/benchmarks") for path in (ROOT / folder).glob("*.py")),
]
SHIPPED = sorted(path.stem for path in (PACKAGE / "models" / "students").glob("*whittle*.py"))


def imports_of(module):
    """The absolute names of everything that a module imports, for type checkers and in functions, too."""
    package = ["hf_whittle", *module.split(".")]
    if FILES[module].name != "__init__.py":
        package.pop()
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def own_imports_of(module):
    """The modules of the package, without `hf_whittle.`, that a module imports."""
    names = [name.removeprefix("hf_whittle.") for name in imports_of(module) if name.startswith("hf_whittle.")]
    return {name if name in FILES else name.rpartition(".")[0] for name in names} - {""}


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
        hf_whittle.EvolutionConfig, hf_whittle.SearchResult, hf_whittle.cost.num_parameters
        import hf_whittle.search.algorithms
        print(sorted({"torch", "transformers", "datasets"} & sys.modules.keys()))
    """
    assert run_python(script) == "[]\n[]\n"


def test_every_folder_and_module_has_its_place():
    assert {module.split(".")[0] for module in FILES} == MAY_IMPORT.keys()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_direction_of_imports(room):
    above = list(MAY_IMPORT)[: list(MAY_IMPORT).index(room)]
    assert set(MAY_IMPORT[room].split()) <= set(above)
    for module in FILES:
        if module.split(".")[0] == room:
            assert {name.split(".")[0] for name in own_imports_of(module)} <= {room, *MAY_IMPORT[room].split()}, module


@pytest.mark.slow
def test_no_modules_import_each_other_in_a_circle():
    graph = {module: own_imports_of(module) - {module} for module in FILES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(FILES)


@pytest.mark.slow
def test_a_trainer_of_students_loads_neither_pictures_nor_recipes_nor_search_algorithms(run_python):
    script = """
        import sys
        from hf_whittle import DistillationTrainer
        loaded = [name for name in sys.modules if name.startswith("hf_whittle.")]
        rooms = ("recipe", "search.algorithms", "search.runner", "fitness.", "plots", "run", "cli", "experimental")
        heavy = tuple(f"hf_whittle.{room}" for room in rooms)
        print("matplotlib" in sys.modules, [name for name in loaded if name.startswith(heavy)])
    """
    assert run_python(script) == "False ['hf_whittle.fitness.registry']\n"  # whose labels are on model cards


@pytest.mark.parametrize("name", SHIPPED)
def test_code_that_travels_with_a_student_imports_only_its_libraries_and_siblings(name):
    folder = "hf_whittle.models.students."
    for imported in imports_of(f"models.students.{name}"):
        if imported.startswith("hf_whittle."):
            assert imported.removeprefix(folder).split(".")[0] in SHIPPED
        else:
            assert imported.split(".")[0] in {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_names_that_a_script_imports_exist(script):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] == "hf_whittle":
            module = importlib.import_module(node.module)
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or name.removeprefix("hf_whittle.") in FILES, f"there is no {name}"


@pytest.mark.slow
def test_any_module_of_transformers_can_be_imported_next_and_students_are_registered(run_python):
    script = """
        import hf_whittle
        from transformers.modeling_layers import GradientCheckpointingLayer
        from transformers import AutoConfig, AutoModelForCausalLM
        from hf_whittle.architectures.registry import ARCHITECTURES
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        sizes |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 9}
        for model_type in ARCHITECTURES:
            config = AutoConfig.for_model("whittle_" + model_type, **sizes)
            print(type(AutoModelForCausalLM.from_config(config)).__name__)
    """
    expected = [f"Whittle{get_architecture(model_type).prefix}ForCausalLM" for model_type in ARCHITECTURES]
    assert run_python(script).split() == expected


HEAVY = {"torch", "transformers", "datasets", "numpy", "matplotlib", "huggingface_hub", "shtab", "tqdm", "scipy"}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["init", "--help"]], ids=" ".join)
def test_help_imports_no_library_that_takes_time(run_python, arguments):
    script = f"""
        import contextlib, io, sys
        from hf_whittle.cli import main
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            main({arguments!r})
        print(sorted({HEAVY} & sys.modules.keys()))
    """
    assert run_python(script) == "[]\n"
