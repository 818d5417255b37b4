"""Inputs of a recipe that do not fit each other are an error."""

import pytest
from fixtures_run import make_recipe
from small_models import make_other
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_whittle.errors import (
    ArchitectureError,
    BinError,
    CheckpointError,
    DataError,
    OutputError,
    RecipeError,
    VocabularyError,
)
from hf_whittle.run import run
from hf_whittle.run.changes import check_changes
from hf_whittle.run.inputs import Inputs
from hf_whittle.run.preflight import check_teacher


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"bin": {"low": 1e9, "high": 2e9}}, BinError, "1e\\+09|1000000000|1,000,000,000"),
        ({"bin": {"low": 5, "high": 2}}, RecipeError, "0 <= low <= high, got low=5, high=2"),
        ({"data": {"block_size": 128}}, DataError, "block_size 128 exceeds the 64 positions of"),
        ({"data": {"search_fraction": 1e-9}}, DataError, "the split 'search' of 40 documents is empty"),
        ({"data": {"text_column": "content"}}, DataError, "no column 'content'"),
        ({"data": {"files": ["nowhere/*.txt"]}}, DataError, "no file matches"),
    ],
)
def test_inputs_that_do_not_fit_are_an_error(teacher_folder, texts, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run(make_recipe(teacher_folder, texts, tmp_path / "run", **changes), progress=False)


def test_another_architecture_is_an_error(teacher_folder, texts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    make_other(len(tokenizer)).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ArchitectureError, match=r"is 'stablelm'; hf_whittle knows gpt_neox, llama.*docs/adding-an"):
        run(make_recipe(tmp_path / "teacher", texts, tmp_path / "run"), progress=False)


def test_a_model_that_transformers_does_not_know_is_an_error(texts, tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(CheckpointError, match=r"cannot load the checkpoint .*teacher.*has model type `nonesuch`"):
        run(make_recipe(tmp_path / "teacher", texts, tmp_path / "run"), progress=False)


def test_a_supernet_with_another_tokenizer_is_an_error(teacher_folder, texts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.add_tokens(["<more>"])
    AutoModelForCausalLM.from_pretrained(teacher_folder).save_pretrained(tmp_path / "supernet")
    tokenizer.save_pretrained(tmp_path / "supernet")
    recipe = make_recipe(teacher_folder, texts, tmp_path / "run", supernet=str(tmp_path / "supernet"))
    with pytest.raises(VocabularyError, match="tokenizers differ in 1 tokens, first '<more>'"):
        run(recipe, progress=False)


def test_a_tokenizer_larger_than_the_model_is_an_error(teacher_folder, texts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    size = len(tokenizer)
    tokenizer.add_tokens(["<more>"])
    AutoModelForCausalLM.from_pretrained(teacher_folder).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(VocabularyError, match=f"has {size + 1} tokens, the model only {size} embeddings"):
        run(make_recipe(tmp_path / "teacher", texts, tmp_path / "run"), progress=False)


def test_a_corrected_recipe_runs_in_the_folder_of_one_that_failed_at_once(teacher_folder, texts, tmp_path):
    with pytest.raises(BinError):
        run(make_recipe(teacher_folder, texts, tmp_path / "run", bin={"low": 1e9, "high": 2e9}), progress=False)
    check_changes(tmp_path / "run", make_recipe(teacher_folder, texts, tmp_path / "run"))


def test_a_teacher_without_a_tokenizer_is_an_error(teacher_folder, texts, tmp_path):
    AutoModelForCausalLM.from_pretrained(teacher_folder).save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        run(make_recipe(tmp_path / "bare", texts, tmp_path / "out"), progress=False)


def test_a_separate_teacher_that_cannot_teach_is_found_before_the_search(teacher_folder, texts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    config = AutoConfig.from_pretrained(teacher_folder)
    config.vocab_size -= 20  # fewer than the tokenizer has
    other = make_other(len(tokenizer), tie_word_embeddings=True)
    teachers = {VocabularyError: AutoModelForCausalLM.from_config(config), ArchitectureError: other}
    for error, teacher in teachers.items():
        teacher.save_pretrained(tmp_path / error.__name__)
        tokenizer.save_pretrained(tmp_path / error.__name__)
        recipe = make_recipe(
            tmp_path / error.__name__, texts, tmp_path / f"out-{error.__name__}", supernet=str(teacher_folder)
        )
        with pytest.raises(error):
            run(recipe, progress=False)
        assert not (tmp_path / f"out-{error.__name__}" / "candidates.jsonl").is_file()


def test_a_separate_teacher_may_pad_its_vocabulary(teacher_folder, texts, tmp_path):
    config = AutoConfig.from_pretrained(teacher_folder)
    config.vocab_size += 20
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "teacher")
    inputs = Inputs(make_recipe(tmp_path / "teacher", texts, tmp_path / "run", supernet=str(teacher_folder)))
    check_teacher(inputs)
    assert inputs.vocabulary is None and not inputs.counts_bytes


def test_an_output_folder_that_is_a_file_is_an_error(teacher_folder, texts, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        run(make_recipe(teacher_folder, texts, tmp_path / "out"), progress=False)
