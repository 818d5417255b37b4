"""Recipes are checked key by key; errors name the place and the values allowed."""

import copy

import pytest
import yaml

from hf_whittle import HealingConfig, ParameterBin
from hf_whittle.architectures.dimensions import VOCABULARY
from hf_whittle.cost import FlopsBin, KVCacheBin, WeightBytesBin
from hf_whittle.errors import RecipeError
from hf_whittle.recipe import Recipe
from hf_whittle.recipe.data import DataSection
from hf_whittle.recipe.sections import ALGORITHMS, BinSection
from hf_whittle.subnet import DIMENSIONS

MINIMAL = {
    "teacher": "someone/teacher",
    "output_dir": "out",
    "data": {"dataset": "someone/text"},
    "bin": {"low": 1000, "high": 2000},
}
FULL = {
    "teacher": "someone/teacher",
    "output_dir": "out",
    "data": {
        "files": ["texts/*.txt", "é: #.md"],
        "text_column": "content",
        "document_column": "id",
        "block_size": 64,
        "search_fraction": 0.1,
        "num_proc": 2,
        "calibration_tokens": 4096,
    },
    "bin": {"low": 1e6, "high": 2.5e6, "cost": "weight_bytes"},
    "supernet": "someone/supernet",
    "space": {
        "granularity": "fine",
        "layer_wise": False,
        "stock_only": True,
        "hidden_size": [8, 32, 4],
        "importance": "taylor",
        "temperature": 0.25,
    },
    "search": {"generations": 3, "mutation_rate": 0.25, "seed": 7, "batch_size": 2},
    "training": {"max_steps": 5, "learning_rate": 0.001, "lr_scheduler_type": "linear", "alpha": 0.5, "bf16": False},
    "heal": {"basis": "channels", "head": False, "ridge": [0.01, 1]},
    "baseline": True,
}
STAGED = {
    **MINIMAL,
    "search": {"algorithm": "multi-fidelity", "fitness": "staged", "probe": {"steps": 3, "learning_rate": 0.001}},
    "heal": True,
}


def changed(path, value):
    """The minimal recipe with one value, `a.b` being key `b` of section `a`."""
    values = copy.deepcopy(MINIMAL)
    *sections, key = path.split(".")
    section = values
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    return values


def load(tmp_path, text, **overrides):
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    return Recipe.load(tmp_path / "recipe.yaml", **overrides)


@pytest.mark.parametrize("values", [MINIMAL, FULL, STAGED], ids=["minimal", "full", "staged"])
def test_saved_recipe_loads_as_the_same(tmp_path, values):
    recipe = Recipe.from_dict(copy.deepcopy(values))
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
    first = (tmp_path / "recipe.yaml").read_bytes()
    Recipe.load(tmp_path / "recipe.yaml").save(tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_bytes() == first


def test_values_of_the_file_are_those_of_the_recipe(tmp_path):
    loaded = load(tmp_path, yaml.safe_dump(FULL)).to_dict()
    for key, value in FULL.items():
        given = value if isinstance(value, dict) else {}
        assert {name: loaded[key][name] for name in given} == given if given else loaded[key] == value


def test_overrides_replace_keys_of_the_file(tmp_path):
    recipe = load(tmp_path, yaml.safe_dump(MINIMAL), output_dir="elsewhere", baseline={"learning_rate": 0.1})
    assert (recipe.output_dir, recipe.teacher) == ("elsewhere", "someone/teacher")
    assert recipe.baseline == {"learning_rate": 0.1}


def test_overrides_replace_keys_of_sections(tmp_path):
    values = {**MINIMAL, "training": {"max_steps": 3, "learning_rate": 0.5}, "teacher_store": "store"}
    recipe = load(tmp_path, yaml.safe_dump(values), training={"max_steps": 7}, teacher_store=None)
    assert (recipe.training["max_steps"], recipe.training["learning_rate"]) == (7, 0.5)
    assert recipe.teacher_store is None


def test_an_override_may_give_a_key_the_file_lacks(tmp_path):
    values = {key: value for key, value in MINIMAL.items() if key != "output_dir"}
    assert load(tmp_path, yaml.safe_dump(values), output_dir="here").output_dir == "here"


@pytest.mark.parametrize(
    "path, nearest",
    [
        ("teachr", "teacher"),
        ("base_line", "baseline"),
        ("data.blocksize", "block_size"),
        ("bin.hi", "high"),
        ("space.layerwise", "layer_wise"),
        ("space.importances", "importance"),
        ("space.temprature", "temperature"),
        ("bin.costs", "cost"),
        ("search.generation", "generations"),
        ("training.learning_rat", "learning_rate"),
        ("training.temprature", "temperature"),
        ("heal.rigde", "ridge"),
        ("search.probe.step", "steps"),
        ("data.calibration_token", "calibration_tokens"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(path, nearest):
    with pytest.raises(RecipeError, match=f"unknown key '{path}'; did you mean '{nearest}'"):
        Recipe.from_dict(changed(path, 1))


def test_a_key_that_is_not_text_is_unknown():
    with pytest.raises(RecipeError, match="unknown key '3'"):
        Recipe.from_dict(MINIMAL | {3: "x"})


@pytest.mark.parametrize(
    "path, value, expected",
    [
        ("teacher", 7, r"str, got 7 \(int\)"),
        ("teacher", None, r"str, got None"),
        ("output_dir", ["out"], r"str, got \['out'\] \(list\)"),
        ("baseline", "yes please", "true, false or fields of DistillationConfig, got 'yes please'"),
        ("baseline", 1, "true, false or fields of DistillationConfig, got 1"),
        ("supernet", 1.5, r"str or null, got 1.5 \(float\)"),
        ("data.block_size", "64", r"int, got '64' \(str\)"),
        ("data.block_size", True, r"int, got True \(bool\)"),
        ("data.block_size", 64.0, r"int, got 64.0 \(float\)"),
        ("data.num_proc", "all", r"int or null, got 'all' \(str\)"),
        ("data.search_fraction", "a tenth", r"float, got 'a tenth' \(str\)"),
        ("data.search_fraction", False, r"float, got False \(bool\)"),
        ("bin.low", "small", r"float, got 'small' \(str\)"),
        ("bin.low", True, r"float, got True \(bool\)"),
        ("space.hidden_size", 32, r"list\[int\] or null, got 32 \(int\)"),
        ("space.hidden_size", [8, "32"], r"list\[int\] or null, got \[8, '32'\] \(list\)"),
        ("space.granularity", "medium", r"'coarse' or 'fine', got 'medium' \(str\)"),
        ("space.layer_wise", "false", r"bool, got 'false' \(str\)"),
        ("space.importance", "cosine", r".*'magnitude'.*'activation'.*'taylor'.*, got 'cosine' \(str\)"),
        ("space.importance", True, r".*'magnitude'.*'activation'.*'taylor'.*, got True \(bool\)"),
        ("space.temperature", "hot", r"float, got 'hot' \(str\)"),
        ("space.temperature", None, r"float, got None"),
        ("bin.cost", "latency", r"'parameters' or 'parameters_without_embeddings' or 'flops' or .*, got 'latency'"),
        ("bin.cost", None, r"'parameters' or .*, got None"),
        ("search.seed", "0", r"int, got '0' \(str\)"),
        ("search.mutation_rate", None, r"float, got None"),
        ("training.max_steps", "5", r"int, got '5' \(str\)"),
        ("training.max_steps", True, r"int, got True \(bool\)"),
        ("training.alpha", "much", r"float, got 'much' \(str\)"),
        ("training.bf16", "on it", r"bool, got 'on it' \(str\)"),
        ("heal", "yes", "true, false or fields of HealingConfig, got 'yes'"),
        ("heal", 1, "true, false or fields of HealingConfig, got 1"),
        ("heal", None, "true, false or fields of HealingConfig, got None"),
        ("heal.inputs", "no", r"bool, got 'no' \(str\)"),
        ("heal.ridge", 0.1, r"list\[float\] or null, got 0.1 \(float\)"),
        ("heal.ridge", ["much"], r"list\[float\] or null, got \['much'\] \(list\)"),
        ("heal.basis", "best", "'principal' or 'channels', got 'best'"),
        ("search.probe", [1], r"dict\[str, Any\], got \[1\] \(list\)"),
        ("search.probe.steps", 2.5, r"int, got 2.5 \(float\)"),
    ],
)
def test_a_value_of_another_type_is_named(path, value, expected):
    with pytest.raises(RecipeError, match=f"^{path}: expected {expected}"):
        Recipe.from_dict(changed(path, value))


@pytest.mark.parametrize("value, end", [(2024, r"2024 \(int\); put it in quotes"), (["a"], r".*\(list\)")])
def test_a_number_where_text_is_meant_is_to_be_put_in_quotes(value, end):
    with pytest.raises(RecipeError, match=f"^training.run_name: expected str.* got {end}$"):
        Recipe.from_dict(changed("training.run_name", value))


def test_files_are_a_list():
    with pytest.raises(RecipeError, match=r"^data.files: expected list\[str\] or null, got 'a.txt' \(str\)"):
        Recipe.from_dict(MINIMAL | {"data": {"files": "a.txt"}})


SOURCES = [
    {"dataset": "someone/web", "dataset_config": "en", "weight": 3},
    {"files": ["a/*.txt", "b.jsonl"], "text_column": "content"},
    {"dataset": "someone/tokens", "token_column": "ids", "packed": True, "weight": "5e-1"},
]


def test_sources_are_read_and_saved_as_a_list(tmp_path):
    recipe = Recipe.from_dict(MINIMAL | {"data": {"sources": copy.deepcopy(SOURCES), "streaming": True}, **STEPS})
    assert [source.weight for source in recipe.data.all_sources] == [3, 1, 0.5]
    assert recipe.data.all_sources[1].files == ["a/*.txt", "b.jsonl"] and recipe.data.all_sources[2].packed
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


STEPS = {"training": {"max_steps": 3}}


@pytest.mark.parametrize(
    "data, message",
    [
        ({}, "data: give either dataset or files, or sources for several of them"),
        ({"dataset": "a/b", "files": ["x"]}, "data: give either dataset or files"),
        ({"sources": []}, "data: sources is empty"),
        ({"sources": SOURCES, "files": ["x"]}, "data: files beside sources would not be read; give them in each"),
        ({"sources": SOURCES, "text_column": "x"}, "data: text_column beside sources would not be read"),
        ({"sources": [{"weight": 2}]}, r"data.sources\[0\]: give either dataset or files"),
        (
            {"sources": [SOURCES[0], {**SOURCES[1], "weight": 0}]},
            r"data.sources\[1\]: weight must be a positive number",
        ),
        ({"sources": [{**SOURCES[0], "wieght": 2}]}, r"unknown key 'data.sources\[0\].wieght'; did you mean 'weight'"),
        ({"sources": ["a/b"]}, r"data.sources\[0\]: expected keys and values, got 'a/b'"),
        ({"sources": "a/b"}, "data.sources: expected a list of keys and values, got 'a/b'"),
        ({"files": ["x"], "packed": True}, "data: packed has no effect on text; name the column"),
        ({"files": ["x"], "streaming": True, "num_proc": 2}, "data: num_proc has no effect with streaming"),
    ],
)
def test_text_that_is_named_wrongly_is_an_error(data, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(MINIMAL | {"data": copy.deepcopy(data), **STEPS})


@pytest.mark.parametrize("section", ["training", "baseline"])
def test_the_steps_of_streamed_text_must_be_given(section):
    values = MINIMAL | {"data": {"files": ["x"], "streaming": True}, **STEPS}
    assert Recipe.from_dict(copy.deepcopy(values)).data.streaming
    with pytest.raises(RecipeError, match=f"{section}: a stream has no end; give max_steps"):
        Recipe.from_dict(copy.deepcopy(values) | {section: {"max_steps": -1}})


def test_a_space_has_ranges_of_every_dimension():
    sizes = {"num_key_value_heads": [1, 2, 1], "num_key_value_groups": [1, 3, 1], "head_dim": [32, 64, 2]}
    space = Recipe.from_dict(MINIMAL | {"space": sizes}).space
    assert space.ranges() == {name: range(low, high + 1, step) for name, (low, high, step) in sizes.items()}
    assert {dimension.name for dimension in DIMENSIONS if dimension is not VOCABULARY} <= set(vars(space))


@pytest.mark.parametrize("section", ["data", "bin", "space", "search", "training"])
@pytest.mark.parametrize("value", [3, ["x"]])
def test_a_section_is_keys_and_values(section, value):
    with pytest.raises(RecipeError, match=f"^{section}: expected .*got"):
        Recipe.from_dict(MINIMAL | {section: value})


@pytest.mark.parametrize(
    "path, text",
    [("training.learning_rate", "1e-3"), ("bin.high", "2E3"), ("data.test_fraction", "5e-2"), ("training.alpha", "1")],
)
def test_floats_may_be_written_with_an_exponent_alone(tmp_path, path, text):
    values = yaml.safe_dump(changed(path, "REPLACED")).replace("REPLACED", text)
    section, key = path.split(".")
    assert load(tmp_path, values).to_dict()[section][key] == float(text)


def test_numbers_of_a_list_may_be_written_with_an_exponent_alone(tmp_path):
    text = yaml.safe_dump(changed("heal.ridge", "REPLACED")).replace("REPLACED", "[1e-4, 2e-1]")
    assert load(tmp_path, text).heal == HealingConfig(ridge=(1e-4, 0.2))


@pytest.mark.parametrize(
    "value, healing", [(True, HealingConfig()), ({}, HealingConfig()), ({"head": False}, HealingConfig(head=False))]
)
def test_healing_is_spelled_out(tmp_path, value, healing):
    recipe = Recipe.from_dict(MINIMAL | {"heal": value})
    assert recipe.heal == healing
    assert recipe.to_dict()["heal"] == vars(healing)


def test_recipe_made_in_python_is_the_one_that_is_read_back(tmp_path):
    recipe = Recipe("teacher", "out", DataSection(files=["x.txt"]), BinSection(1, 2))
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml").to_dict() == recipe.to_dict()


def test_students_are_chosen_as_slices_and_healed_unless_the_recipe_says_otherwise():
    assert Recipe.from_dict(MINIMAL).heal == HealingConfig()
    assert Recipe.from_dict(MINIMAL).search.fitness == "perplexity"
    assert Recipe.from_dict(MINIMAL | {"heal": False}).heal is False


@pytest.mark.parametrize("algorithm", ["additive", "multi-fidelity"])
def test_a_staged_fitness_goes_with_any_algorithm_of_three_shares(algorithm):
    search = {"algorithm": algorithm, "fitness": "staged", "shares": [0.1, 0.5, 1], "sizes": [8, 4, 2]}
    assert Recipe.from_dict(MINIMAL | {"search": search}).search.fitness == "staged"


def test_additive_scores_of_a_staged_fitness_are_healed_by_default():
    search = Recipe.from_dict(MINIMAL | {"search": {"fitness": "staged", "shares": [0.1, 0.5, 1]}}).search
    assert search.algorithm.score_share == 0.5
    assert Recipe.from_dict(MINIMAL).search.algorithm.score_share == 1


def test_a_baseline_may_be_trained_with_other_settings(tmp_path):
    recipe = Recipe.from_dict(MINIMAL | {"baseline": {"learning_rate": "4e-3", "max_steps": 7}})
    assert recipe.baseline == {"learning_rate": 4e-3, "max_steps": 7}
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    "values, message",
    [
        ({"learning_rat": 1}, "unknown key 'baseline.learning_rat'; did you mean 'learning_rate'"),
        ({"max_steps": "7"}, r"baseline.max_steps: expected int, got '7' \(str\)"),
        ({"beta": 0.5}, "baseline.beta: a baseline learns from text alone, to its last step; leave it out"),
        ({"temperature": -1}, "baseline: temperature must be a positive number, got -1"),
    ],
)
def test_settings_of_a_baseline_are_checked(values, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(MINIMAL | {"baseline": values})


@pytest.mark.parametrize("score_share", [0.25, 1])
def test_additive_scores_of_a_staged_fitness_are_on_one_of_the_shares(score_share):
    search = {"fitness": "staged", "score_share": score_share}
    assert Recipe.from_dict(MINIMAL | {"search": search}).search.algorithm.score_share == score_share


@pytest.mark.parametrize(
    "search, message",
    [
        (
            {"algorithm": "evolution"},
            "fitness: staged needs an algorithm that evaluates on shares of the tokens, additive or multi-fidelity; "
            "evolution evaluates on all tokens",
        ),
        (
            {"shares": [0.5, 1], "sizes": [4, 2]},
            r"needs 3 shares, for perplexity, healed-perplexity, probe in this order, got shares: \[0.5, 1\]",
        ),
        (
            {"score_share": 0.5},
            r"score_share must be one of the shares \[0.0625, 0.25, 1.0\] with fitness: staged, got 0.5",
        ),
    ],
)
def test_a_staged_fitness_that_the_algorithm_cannot_take_is_an_error(search, message):
    with pytest.raises(RecipeError, match=f"^search: .*{message}"):
        Recipe.from_dict(MINIMAL | {"search": {"fitness": "staged", **search}})


@pytest.mark.parametrize("section", ["data", "space", "search", "training"])
def test_a_section_is_not_nothing(section):
    with pytest.raises(RecipeError, match=f"^{section}: expected .*got None"):
        Recipe.from_dict(MINIMAL | {section: None})


@pytest.mark.parametrize("key", ["teacher", "output_dir", "data"])
def test_a_missing_key_is_named(key):
    values = {name: value for name, value in MINIMAL.items() if name != key}
    with pytest.raises(RecipeError, match=f"^recipe: missing {key}; it needs teacher, output_dir, data"):
        Recipe.from_dict(values)


@pytest.mark.parametrize("values", [{}, {"bin": None}, {"bin": None, "student": None}])
def test_a_student_is_searched_for_or_given(values):
    with pytest.raises(RecipeError, match=r"^recipe: missing bin; .* a student to search for, or a student to train"):
        Recipe.from_dict({name: value for name, value in MINIMAL.items() if name != "bin"} | values)


# A student that is given

GIVEN = {name: value for name, value in MINIMAL.items() if name != "bin"} | {"student": "some/student"}


def test_a_recipe_of_a_given_student_has_no_search_and_is_written_as_it_is_read(tmp_path):
    recipe = Recipe.from_dict(GIVEN | {"teacher_options": {"dtype": "bfloat16"}})
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
    written = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert not {"bin", "supernet", "space", "search", "heal", "supernet_options"} & written.keys()
    assert recipe.origin == "some/student" and not recipe.is_one_model and not recipe.heal


@pytest.mark.parametrize(
    "name, value", [("bin", {"low": 1, "high": 2}), ("heal", True), ("supernet", "a/b"), ("search", {})]
)
def test_keys_of_a_search_have_no_effect_on_a_given_student(name, value):
    with pytest.raises(RecipeError, match=f"^student: it is trained as it is, so {name} would have no effect"):
        Recipe.from_dict(GIVEN | {name: value})


def test_a_given_student_is_not_replaced_by_the_trained_one(tmp_path):
    with pytest.raises(RecipeError, match=r"^output_dir: it is the folder of the student"):
        Recipe.from_dict(GIVEN | {"student": str(tmp_path), "output_dir": f"{tmp_path}/."})


def test_a_student_given_beside_the_file_replaces_its_search_and_the_teacher_is_loaded_as_before(tmp_path):
    values = MINIMAL | {"supernet_options": {"dtype": "bfloat16"}, "search": {"seed": 3}, "training": {"max_steps": 7}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    recipe = Recipe.load(tmp_path / "recipe.yaml", student="a/b", training={"bf16": True})
    assert recipe.bin is None and recipe.student == "a/b" and recipe.training == {"max_steps": 7, "bf16": True}
    assert recipe.teacher_loading.dtype == "bfloat16" and recipe.supernet_options.is_default


def test_a_given_student_may_have_a_store_that_its_search_could_not_have(tmp_path):
    search = {"space": {"vocab_sizes": [300]}, "search": {"fitness": "bits-per-byte"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(MINIMAL | search))
    with pytest.raises(RecipeError, match=r"^teacher_store: a store has targets for the tokens of one vocabulary"):
        Recipe.load(tmp_path / "recipe.yaml", teacher_store="targets")
    assert Recipe.load(tmp_path / "recipe.yaml", student="a/b", teacher_store="targets").teacher_store == "targets"


def test_a_missing_key_of_a_section_is_named():
    with pytest.raises(RecipeError, match=r"^bin: missing high; it needs low, high"):
        Recipe.from_dict(MINIMAL | {"bin": {"low": 1}})


@pytest.mark.parametrize("data", [{}, {"block_size": 8}, {"dataset": "a", "files": ["b"]}])
def test_text_comes_from_a_dataset_or_from_files(data):
    with pytest.raises(RecipeError, match="data: give either dataset or files"):
        Recipe.from_dict(MINIMAL | {"data": data})


def test_training_does_not_choose_the_folder():
    with pytest.raises(RecipeError, match=r"unknown key 'training\.output_dir'"):
        Recipe.from_dict(changed("training.output_dir", "elsewhere"))


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("search.generations", -1, "search: generations must be at least 0, got -1"),
        ("search.mutation_rate", 1.5, "search: mutation_rate must lie between 0 and 1, got 1.5"),
        ("search.batch_size", 0, "batch_size must be at least 1, got 0"),
        ("search.algorithm", "annealing", "search.algorithm: expected one of additive, evolution, .*, got 'annealing'"),
        ("search.fitness", "beauty", "search.fitness: expected 'perplexity' or 'kl' or .*, got 'beauty'"),
        ("search.shares", [0.5, 0.25, 1], r"search: shares must ascend from above 0 to 1, got \[0.5, 0.25, 1\]"),
        ("training.load_best_model_at_end", True, "training.load_best_model_at_end: a run publishes its last step"),
        ("training.alpha", -0.5, "alpha must be a number of at least 0, got -0.5"),
        ("training.temperature", 0, "temperature must be a positive number, got 0"),
        ("training.loss_chunk_size", 0, "loss_chunk_size must be at least 1, got 0"),
        ("training.lr_scheduler_type", "wavy", "wavy"),
        ("training.learning_rate", float("nan"), "^training: learning_rate must be a number of at least 0, got nan"),
        ("training.learning_rate", -1e-3, "^training: learning_rate must be a number of at least 0, got -0.001"),
        ("training.per_device_train_batch_size", 0, "^training: per_device_train_batch_size must be at least 1, got 0"),
        ("training.save_steps", -5, "^training: save_steps must be"),
        ("training.accelerator_config", "nowhere.json", "^training: .*nowhere.json"),
        ("training.deepspeed", "nowhere.json", "^training: .*(DeepSpeed|deepspeed|nowhere.json)"),
        ("data.block_size", 0, "^data: block_size must be at least 2, got 0"),
        ("data.search_fraction", float("nan"), "^data: search_fraction must lie between 0 and 1, got nan"),
        ("data.test_fraction", -0.1, "^data: test_fraction must lie between 0 and 1, got -0.1"),
        ("data.search_tokens", -1, "^data: search_tokens must be at least 1, got -1"),
        ("data.num_proc", 0, "^data: num_proc must be at least 1, got 0"),
        ("bin.low", float("nan"), "0 <= low <= high, got low=nan"),
        ("space.hidden_size", [8, 32], r"space: hidden_size must be .* got \[8, 32\]"),
        ("space.hidden_size", [8, 32, 0], r"space: hidden_size must be .* got \[8, 32, 0\]"),
        ("space.importance", "magnitude", "^space: importance needs granularity: fine, a coarse space always keeps"),
        ("space.temperature", -0.5, "^space: temperature must be a number from 0, got -0.5"),
        ("space.temperature", float("nan"), "^space: temperature must"),
        ("heal.held_out", 1.5, "^heal: held_out must lie between 0 and 1, got 1.5"),
        ("heal.ridge", [], r"^heal: ridge must have positive numbers, got \(\)"),
        ("search.probe.steps", 0, "^search.probe: steps must be at least 1, got 0"),
        (
            "search.probe.steps",
            5,
            "^search: probe has no effect with fitness: perplexity; use fitness: probe or staged",
        ),
    ],
)
def test_a_value_out_of_range_is_found_before_anything_is_done(path, value, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(changed(path, value))


BINS = {
    "parameters": ParameterBin(1000, 2000),
    "parameters_without_embeddings": ParameterBin(1000, 2000, embeddings=False),
    "flops": FlopsBin(1000, 2000, sequence_length=64),
    "weight_bytes": WeightBytesBin(1000, 2000, bytes_per_value=2),
    "kv_cache_bytes": KVCacheBin(1000, 2000, bytes_per_value=2),
}


@pytest.mark.parametrize("cost", BINS)
def test_a_bin_bounds_the_cost_it_names(cost):
    assert Recipe.from_dict(changed("bin.cost", cost)).bin.to_bin(64) == BINS[cost]


def test_a_bin_bounds_parameters_unless_it_says_otherwise():
    assert Recipe.from_dict(MINIMAL).bin.to_bin(64) == BINS["parameters"]


@pytest.mark.parametrize("cost", BINS)
@pytest.mark.parametrize("low, high, got", [(5, 2, "low=5, high=2"), (-1, 2, "low=-1, high=2")])
def test_a_bin_of_any_cost_that_is_none_is_found_before_anything_is_done(cost, low, high, got):
    with pytest.raises(RecipeError, match=f"^bin: a bin needs 0 <= low <= high, got {got}"):
        Recipe.from_dict(MINIMAL | {"bin": {"low": low, "high": high, "cost": cost}})


@pytest.mark.parametrize("importance", ["magnitude", "activation", "taylor", None])
def test_a_fine_space_may_choose_by_importance_or_not(importance):
    space = Recipe.from_dict(MINIMAL | {"space": {"granularity": "fine", "importance": importance}}).space
    assert (space.importance, space.temperature, space.ranges()) == (importance, 0.1, {})


def test_what_is_not_yaml_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match=r"recipe\.yaml is not YAML: "):
        load(tmp_path, "teacher: [unfinished")


@pytest.mark.parametrize("text, kind", [("", "NoneType"), ("- a\n- b\n", "list"), ("just text", "str")])
def test_what_is_not_a_mapping_is_an_error(tmp_path, text, kind):
    with pytest.raises(RecipeError, match=f"a recipe is a mapping of keys to values, got {kind}"):
        load(tmp_path, text)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*none\.yaml: No such file"):
        Recipe.load(tmp_path / "none.yaml")


def test_a_file_that_is_not_text_is_an_error(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        Recipe.load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_and_its_settings_survive_a_file(name, tmp_path):
    section = {"algorithm": name, "seed": 7, "fitness": "kl", "batch_size": 3}
    recipe = Recipe.from_dict(MINIMAL | {"search": section})
    assert recipe.search.algorithm == ALGORITHMS[name](seed=7)
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
    written = yaml.safe_load((tmp_path / "recipe.yaml").read_text())["search"]
    assert section.items() <= written.items()


def test_setting_of_another_algorithm_is_an_error_that_names_those_of_this_one():
    with pytest.raises(RecipeError, match=r"unknown key 'search\.population_size'.*Valid here: algorithm, "):
        Recipe.from_dict(MINIMAL | {"search": {"algorithm": "additive", "population_size": 3}})


def test_search_that_is_no_mapping_is_an_error():
    with pytest.raises(RecipeError, match=r"^search: expected keys and values, got 'evolution'"):
        Recipe.from_dict(MINIMAL | {"search": "evolution"})
