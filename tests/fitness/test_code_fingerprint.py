"""A search resumes only with the same fitness, identified by its code and by the objects that the code reads."""

import importlib
import importlib.util
import re
import sys
import threading

import numpy
import pytest
import torch
import transformers
from fixtures_search import BIN, CONFIG
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from hf_whittle import EvolutionConfig, SearchSpace, search_subnets
from hf_whittle.errors import OtherSearchError
from hf_whittle.fitness.base import Fitness
from hf_whittle.fitness.code_fingerprint import fitness_settings
from hf_whittle.fitness.staged import StagedFitness

SIZES = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
SPACE = SearchSpace.from_config(CONFIG, "fine", layer_wise=True)

BEGINNING = """
import functools
import math
import own_helper
from hf_whittle.fitness.base import Fitness
from hf_whittle.fitness.perplexity import Perplexity
FACTOR = 2.0
def helper(subnet):
    return subnet.hidden_size_count if False else 1.0
"""
BEFORE = {
    "function": "def fitness(subnet):\n    return math.sqrt(int(subnet.digest, 16))",
    "lambda": "fitness = lambda subnet: int(subnet.digest, 16) + 1",
    "constant": "def fitness(subnet):\n    return int(subnet.digest, 16) / 3",
    "default": "def fitness(subnet, *, scale=2):\n    return int(subnet.digest, 16) * scale",
    "global": "def fitness(subnet):\n    return int(subnet.digest, 16) * FACTOR",
    "helper": "def fitness(subnet):\n    return int(subnet.digest, 16) * helper(subnet)",
    "module": "def fitness(subnet):\n    return own_helper.value(subnet)",
    "closure": "def make(scale):\n    return lambda subnet: int(subnet.digest, 16) * scale\nfitness = make(2)",
    "nested": "def fitness(subnet):\n    return sum(map(lambda each: each * 2, [int(subnet.digest, 16)]))",
    "partial": "def base(scale, subnet):\n    return int(subnet.digest, 16) * scale\n"
    "fitness = functools.partial(base, 2)",
    "cached": "@functools.lru_cache\ndef fitness(subnet):\n    return int(subnet.digest, 16) * 2",
    "class": "class Own:\n    def __call__(self, subnet):\n        return int(subnet.digest, 16) * 2\nfitness = Own()",
    "attribute": "class Own:\n    def __init__(self, scale):\n        self.scale = scale\n"
    "    def __call__(self, subnet):\n        return int(subnet.digest, 16) * self.scale\nfitness = Own(2)",
    "base": "class Base:\n    def of(self, subnet):\n        return int(subnet.digest, 16) * 2\nclass Own(Base):\n"
    "    def __call__(self, subnet):\n        return self.of(subnet)\nfitness = Own()",
    "property": "class Own:\n    @property\n    def scale(self):\n        return 2\n    def __call__(self, subnet):\n"
    "        return int(subnet.digest, 16) * self.scale\nfitness = Own()",
    "method": "class Own:\n    def score(self, subnet):\n        return int(subnet.digest, 16) * 2\n"
    "fitness = Own().score",
    "derived": "class Own(Fitness):\n    name = 'own'\n    settings = {'name': 'own'}\n"
    "    def tokens(self, share=1.0):\n        return 0\n    def flops(self, subnet, share=1.0):\n        return 0\n"
    "    def __call__(self, subnet, share=1.0):\n        return int(subnet.digest, 16) * 2\nfitness = Own()",
}
AFTER = {
    "function": ("sqrt", "log"), "lambda": ("+ 1", "+ 2"), "constant": ("/ 3", "/ 4"),
    "default": ("scale=2", "scale=3"), "global": ("FACTOR = 2.0", "FACTOR = 3.0"),
    "helper": ("else 1.0", "else 1.5"), "module": None,
    "closure": ("make(2)", "make(3)"), "nested": ("each * 2", "each * 3"), "partial": ("(base, 2)", "(base, 3)"),
    "cached": ("* 2", "* 3"), "class": ("* 2", "* 3"), "attribute": ("Own(2)", "Own(3)"), "base": ("* 2", "* 3"),
    "property": ("return 2", "return 3"), "method": ("* 2", "* 3"), "derived": ("* 2", "* 3"),
}  # fmt: skip


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes a user's modules and imports the fitness of them anew."""
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "code").mkdir()

    def imported(text, helper="def value(subnet):\n    return int(subnet.digest, 16) * 2\n"):
        for name, content in {"own_fitness": BEGINNING + text, "own_helper": helper}.items():
            (tmp_path / "code" / f"{name}.py").write_text(content)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module("own_fitness").fitness

    yield imported
    for name in ("own_fitness", "own_helper"):
        sys.modules.pop(name, None)


def search(folder, fitness, generations=1):
    config = EvolutionConfig(generations=generations, population_size=4, num_offspring=2, num_elites=2)
    return search_subnets(None, SPACE, bin=BIN, config=config, fitness=fitness, output_dir=folder, progress=False)


@pytest.mark.parametrize("case", BEFORE)
def test_a_search_goes_on_with_the_same_code_alone(tmp_path, write, case):
    first = search(tmp_path / "search", write(BEFORE[case]))
    again = search(tmp_path / "search", write("# moved by a comment\n\n" + BEFORE[case]))
    assert again.evaluations == first.evaluations
    if AFTER[case] is None:
        edited = write(BEFORE[case], helper="def value(subnet):\n    return int(subnet.digest, 16) * 3\n")
    else:
        was, now = AFTER[case]
        text = (BEGINNING + BEFORE[case]).replace(was, now)
        assert text != BEGINNING + BEFORE[case]
        edited = write(text)
    with pytest.raises(OtherSearchError, match="holds a search with another fitness"):
        search(tmp_path / "search", edited)


def test_a_hash_is_that_of_another_process(write, tmp_path, run_python):
    held = {"a", "b", "c", "d"}
    script = f"""
        import sys
        sys.path.insert(0, {str(tmp_path / "code")!r})
        from own_fitness import fitness
        from hf_whittle.fitness.code_fingerprint import fitness_settings
        print(fitness_settings(fitness)["code"])
        assert not {{"torch", "transformers"}} & sys.modules.keys()
    """
    beginning = "def make(held):\n    return lambda subnet: len(held) if subnet in {'x', 'y', 'z'} else 0\n"
    fitness = write(f"{beginning}fitness = make({held!r})".replace("from hf_whittle", "# from hf_whittle"))
    path = tmp_path / "code" / "own_fitness.py"
    path.write_text(
        "".join(
            line
            for line in path.read_text().splitlines(True)
            if "import Fitness" not in line and "import Perplexity" not in line
        )
    )
    found = {run_python(script).strip() for _ in range(2)}
    assert found == {fitness_settings(fitness)["code"]}


@pytest.mark.parametrize("held", ["tensor", "model", "list", "itself"])
def test_objects_of_a_fitness_are_identified_by_their_contents(held):
    def make(value):
        values = {
            "tensor": torch.full((3,), value),
            "model": torch.nn.Linear(2, 2),
            "list": [{"x": (value, {value})}],
            "itself": [value],
        }
        inside = values[held]
        if held == "model":
            torch.nn.init.constant_(inside.weight, value)
            torch.nn.init.zeros_(inside.bias)
        if held == "itself":
            inside.append(inside)
        return lambda subnet: (inside, subnet)

    codes = [fitness_settings(make(value))["code"] for value in (1.0, 1.0, 2.0)]
    assert codes[0] == codes[1] != codes[2] and None not in codes


@pytest.mark.parametrize("held", ["pattern", "ufunc"])
def test_objects_with_a_pickling_function_of_their_own_are_identified(held):
    first, other = {
        "pattern": (re.compile("a"), re.compile("b")),
        "ufunc": (numpy.add, numpy.multiply),
    }[held]
    codes = [fitness_settings(lambda subnet, inside=inside: inside)["code"] for inside in (first, first, other)]
    assert codes[0] == codes[1] != codes[2] and None not in codes


@pytest.mark.parametrize(
    "held", [torch.empty(2, device="meta"), torch.eye(2).to_sparse(), torch.nn.Linear(1, 1, device="meta")]
)
def test_a_tensor_without_memory_is_not_hashable(held):
    assert fitness_settings(lambda subnet, inside=held: inside)["code"] is None


def test_a_model_is_identified_with_any_version_of_transformers(monkeypatch):
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))
    codes = []
    for version in (transformers.__version__, "99.0"):
        monkeypatch.setattr(transformers.configuration_utils, "__version__", version)
        codes.append(fitness_settings(lambda subnet: model)["code"])
        assert version in model.config.to_json_string()
    assert codes[0] == codes[1]


@pytest.mark.parametrize(
    ("folder", "is_library"), [("site-packages", True), ("dist-packages", True), ("packages", False)]
)
def test_a_library_is_identified_by_its_name_in_any_environment(tmp_path, monkeypatch, folder, is_library):
    path = tmp_path / folder / "installed_somewhere.py"
    path.parent.mkdir()
    codes = set()
    for value in (1, 2):
        path.write_text(f"def score(subnet):\n    return {value}\n")
        spec = importlib.util.spec_from_file_location("installed_somewhere", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "installed_somewhere", module)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        spec.loader.exec_module(module)
        codes.add(fitness_settings(lambda subnet, module=module: module.score(subnet))["code"])
        score = module.score
        codes.add(fitness_settings(lambda subnet, score=score: score(subnet))["code"])
    assert len(codes) == (2 if is_library else 3)


class Locked:
    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, subnet):
        return int(subnet.digest, 16)


def test_a_search_with_a_fitness_that_cannot_be_hashed_is_not_resumed(tmp_path):
    assert fitness_settings(Locked()) == {"name": "Locked", "code": None}
    with pytest.warns(
        UserWarning, match="the fitness 'Locked' holds objects that cannot be hashed, so this search could"
    ):
        search(tmp_path, Locked())
    with pytest.raises(OtherSearchError, match=r"cannot resume since its fitness 'Locked' holds objects.*'settings'"):
        search(tmp_path, Locked())


def test_settings_of_a_users_fitness_identify_it(tmp_path):
    class Named(Locked):
        settings = {"name": "named", "version": 1}

    first = search(tmp_path, Named())
    assert search(tmp_path, Named()).evaluations == first.evaluations
    Named.settings = {"name": "named", "version": 2}
    with pytest.raises(OtherSearchError, match="holds a search with another fitness"):
        search(tmp_path, Named())


def test_stages_are_identified_as_their_fitnesses(write):
    codes = []
    for text in (BEFORE["derived"], BEFORE["derived"].replace("* 2", "* 3")):
        stage = write(text)
        assert isinstance(stage, Fitness)
        codes.append(fitness_settings(StagedFitness({1.0: stage}))["stages"]["1.0"]["code"])
    assert codes[0] != codes[1]
