"""Every fitness has a way to be made from a recipe and a label for the card."""

import importlib
import pkgutil

import pytest

import hf_whittle.fitness
from hf_whittle import experimental
from hf_whittle.fitness.base import Fitness
from hf_whittle.fitness.registry import AXES, FITNESSES, LABELS, STAGES


def classes_below(kind):
    """Classes that derive from a class, and the class itself."""
    return {kind}.union(*map(classes_below, kind.__subclasses__()))


@pytest.mark.parametrize("package, registry", [(hf_whittle.fitness, FITNESSES), (experimental, experimental.FITNESSES)])
def test_every_class_of_fitness_is_in_the_registry_of_its_package(package, registry):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    classes = [each for each in classes_below(Fitness) if each.__module__.startswith(f"{package.__name__}.")]
    names = [each.name for each in classes if "name" in vars(each)]
    assert sorted(names) == sorted(registry)


def test_every_fitness_has_a_label_and_an_axis():
    known = {*FITNESSES, *experimental.FITNESSES}
    assert LABELS.keys() == AXES.keys() | {"staged"} == known


def test_stages_are_fitnesses():
    assert set(STAGES) <= FITNESSES.keys()


def test_registries_load_no_torch(run_python):
    script = """
        import sys
        from hf_whittle import experimental
        from hf_whittle.fitness import registry
        from hf_whittle.recipe import Recipe
        print(len(registry.FITNESSES), "torch" in sys.modules, "matplotlib" in sys.modules)
    """
    assert run_python(script) == f"{len(FITNESSES)} False False\n"
