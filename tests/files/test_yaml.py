"""Values are read as a person means them; ambiguous ones are errors that say where."""

from pathlib import Path

import pytest
import yaml

from hf_whittle.errors import RecipeError
from hf_whittle.files.yaml import as_yaml, read_yaml
from hf_whittle.recipe import Recipe

MINIMAL = "teacher: someone/teacher\noutput_dir: out\ndata: {dataset: someone/text}\nbin: {low: 1e3, high: 2_000}\n"


def read(tmp_path, text, encoding="utf-8"):
    (tmp_path / "recipe.yaml").write_bytes(text.encode(encoding))
    return read_yaml(tmp_path / "recipe.yaml")


def load(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(MINIMAL + text)
    return Recipe.load(tmp_path / "recipe.yaml")


MEANT = {
    "1e-3": 0.001, "1E-3": 0.001, "1.5e3": 1500, "1e6": 1_000_000, "+2e2": 200, "-1e-2": -0.01, "2.5E-1": 0.25,
    "1_000": 1000, "1_000.5": 1000.5, "010": 10, "-007": -7, "08": 8, "0o10": 8, "0x1F": 31, "0b101": 5, "0": 0,
    "1.": 1.0, ".5": 0.5, "1.0": 1.0, "1e400": float("inf"), ".inf": float("inf"), "-.INF": -float("inf"),
    "12:30": "12:30", "190:20:30": "190:20:30", "2024-01-01": "2024-01-01", "1.2.3": "1.2.3", "1e": "1e", "_1": "_1",
    "0o9": "0o9", "e3": "e3", "1 000": "1 000", "true": True, "False": False, "null": None, "~": None, "": None,
    "'1e-3'": "1e-3", '"010"': "010", "train[:1%]": "train[:1%]", "é 日本": "é 日本",
}  # fmt: skip


@pytest.mark.parametrize("text", MEANT)
def test_a_value_is_read_as_it_is_meant(tmp_path, text):
    nested = text if "[" not in text else f'"{text}"'
    found = read(tmp_path, f"top: {text}\nnested: {{list: [{nested or '~'}], deep: {{value: {nested or '~'}}}}}\n")
    for value in (found["top"], found["nested"]["list"][0], found["nested"]["deep"]["value"]):
        assert value == MEANT[text] and type(value) is type(MEANT[text])


@pytest.mark.parametrize(
    "value", [*MEANT, *MEANT.values(), "yes", "No", "off", "y", "true", "a: b", "# x", " x ", "\t"]
)
def test_values_are_read_back_as_they_were_written(tmp_path, value):
    values = {"top": value, "nested": {"list": [value]}}
    (tmp_path / "recipe.yaml").write_text(as_yaml(values), encoding="utf-8")
    assert read_yaml(tmp_path / "recipe.yaml") == values
    assert yaml.safe_load(as_yaml(values)) == values  # by others, too


@pytest.mark.parametrize("word, truth", [("yes", True), ("on", True), ("True", True), ("no", False), ("OFF", False)])
def test_a_word_is_a_truth_value_where_one_is_expected(tmp_path, word, truth):
    recipe = load(
        tmp_path,
        f"heal: {word}\nspace: {{layer_wise: {word}}}\n"
        f"training: {{bf16: false, fp16_full_eval: {word}, lr_scheduler_kwargs: {{some: {word}}}}}\n",
    )
    assert bool(recipe.heal) is recipe.space.layer_wise is recipe.training["fp16_full_eval"] is truth
    assert recipe.training["lr_scheduler_kwargs"] == {"some": truth}


@pytest.mark.parametrize("word", ["no", "No"])
def test_a_word_is_text_where_text_is_expected(tmp_path, word):
    text = f"training: {{eval_strategy: {word.lower()}, report_to: none}}\n"
    recipe = load(tmp_path, text)
    assert recipe.training["eval_strategy"] == "no"
    assert recipe.training_arguments(tmp_path).eval_strategy == "no"
    recipe.save(tmp_path / "saved.yaml")
    assert Recipe.load(tmp_path / "saved.yaml") == recipe


def test_numbers_of_nested_settings_are_numbers(tmp_path):
    recipe = load(
        tmp_path,
        "training:\n  max_steps: 1e2\n  learning_rate: 1e-3\n  lr_scheduler_type: cosine_with_min_lr\n"
        "  lr_scheduler_kwargs: {min_lr: 1e-5}\n",
    )
    assert (recipe.training["max_steps"], recipe.training["learning_rate"]) == (100, 0.001)
    assert recipe.training["lr_scheduler_kwargs"] == {"min_lr": 1e-5}
    assert (recipe.bin.low, recipe.bin.high) == (1000, 2000)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\nb: 2\na: 3\n", "'a' is given twice, in line 1 and line 3"),
        ("x:\n  a: 1\n  b: 2\n  a: 3\n", "'a' is given twice, in line 2 and line 4"),
        ("x: [{a: 1,\n a: 1}]\n", "'a' is given twice, in line 1 and line 2"),
        ("a: 1\n\tb: 2\n", "is not YAML: .*line 2.*; indent by spaces, not by tabs"),
        ("x:\n\ta: 1\n", "is not YAML: .*line 2.*; indent by spaces, not by tabs"),
        ("a: 1\n---\na: 2\n", "is not YAML: expected a single document"),
        ("", "a recipe is a mapping of keys to values, got NoneType"),
        ("# all of it is a comment\n", "a recipe is a mapping of keys to values, got NoneType"),
        ("a: !!python/object:os.system x\n", "could not determine a constructor"),
    ],
)
def test_an_invalid_file_is_an_error_that_says_where(tmp_path, text, message):
    with pytest.raises(RecipeError, match=rf"recipe\.yaml.*{message}"):
        read(tmp_path, text)


def test_a_key_given_twice_in_one_line_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match="'a' is given twice, in line 1"):
        read(tmp_path, "{a: 1, a: 2}\n")


def test_merged_keys_may_be_replaced(tmp_path):
    assert read(tmp_path, "base: &base {a: 1, b: 2}\nother: {<<: *base, a: 3}\n")["other"] == {"a": 3, "b": 2}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_not_text(tmp_path, encoding):
    assert read(tmp_path, "teacher: é\nb: 1\n", encoding) == {"teacher": "é", "b": 1}


def test_a_tilde_in_a_path_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text(MINIMAL + "supernet: ~/net [1]\nteacher_store: ~/store\n")
    recipe = Recipe.load("~/recipe.yaml", output_dir=Path("~/out"))
    assert recipe.output_dir == f"{tmp_path}/out" and recipe.teacher == "someone/teacher"
    assert (recipe.supernet, recipe.teacher_store) == (f"{tmp_path}/net [1]", f"{tmp_path}/store")
    values = {"teacher": Path("a"), "output_dir": Path("~/b"), "bin": {"low": 1, "high": 2}}
    recipe = Recipe.from_dict({**values, "data": {"files": [Path("~/c d/*.txt"), "~/e"]}})
    assert recipe.data.files == [f"{tmp_path}/c d/*.txt", f"{tmp_path}/e"]
    recipe.save("~/saved.yaml")
    assert Recipe.load(tmp_path / "saved.yaml") == recipe
