"""Inputs of a recipe that do not fit each other are an error."""

import contextlib
import json
from dataclasses import replace

import pytest
import torch
from fixtures_run import make_recipe, write_modules
from small_models import make_other
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_whittle import SubnetConfig, extract_subnet
from hf_whittle.cli import main
from hf_whittle.distillation.store.reader import LogitStore
from hf_whittle.errors import (
    ArchitectureError,
    BinError,
    CheckpointError,
    DataError,
    OutputError,
    RecipeError,
    VocabularyError,
)
from hf_whittle.evaluation import as_input_ids
from hf_whittle.plan import plan_recipe
from hf_whittle.run import run
from hf_whittle.run.changes import check_changes
from hf_whittle.run.inputs import Inputs
from hf_whittle.run.preflight import check_teacher
from hf_whittle.run.vocabularies import check_vocab_sizes, check_vocabularies
from hf_whittle.vocabulary import rank_tokens


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
    config = json.loads((tmp_path / "supernet" / "config.json").read_text())
    (tmp_path / "supernet" / "config.json").write_text(json.dumps(config | {"vocab_size": 301}))
    apart = {"supernet": str(tmp_path / "supernet")}
    for weights in ({}, {"beta": 0.0, "hidden_weight": 1.0}):
        recipe = make_recipe(teacher_folder, texts, tmp_path / "run", **apart, training=weights)
        with pytest.raises(VocabularyError, match="tokenizers differ in 1 tokens, first '<more>'"):
            run(recipe, progress=False)
        with pytest.raises(VocabularyError, match="tokenizers differ in 1 tokens, first '<more>'"):
            plan_recipe(recipe)
    inputs = Inputs(make_recipe(teacher_folder, texts, tmp_path / "run", **apart, training={"beta": 0.0}))
    check_teacher(inputs)  # from which nothing learns
    assert inputs.text is not inputs.teacher_text


@pytest.mark.parametrize("weight", [0.0, 0.8])
def test_probes_need_the_teachers_tokens_if_they_learn_from_it(teacher_folder, texts, tmp_path, weight):
    whole = SubnetConfig.full(AutoConfig.from_pretrained(teacher_folder))
    tokens = sorted(rank_tokens(AutoTokenizer.from_pretrained(teacher_folder))[:280])
    pruned = extract_subnet(teacher_folder, replace(whole, vocab_size=tuple(tokens)), tmp_path / "pruned")
    search = {"fitness": "probe", "probe": {"beta": weight}}
    inputs = Inputs(make_recipe(teacher_folder, texts, tmp_path / "run", supernet=str(pruned), search=search))
    learns = pytest.raises(VocabularyError, match="has 300 entries, that of the super-network 280; candidates learn")
    with learns if weight else contextlib.nullcontext():
        check_vocabularies(inputs, inputs.origin_config, inputs.teacher_config)


def test_a_tokenizer_larger_than_the_model_is_an_error(teacher_folder, texts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    size = len(tokenizer)
    tokenizer.add_tokens(["<more>"])
    AutoModelForCausalLM.from_pretrained(teacher_folder).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(VocabularyError, match=f"has {size + 1} tokens, the model only {size} embeddings"):
        run(make_recipe(tmp_path / "teacher", texts, tmp_path / "run"), progress=False)


def test_a_special_token_beyond_the_model_is_none_of_its_text(teacher_folder, texts, tmp_path):
    """The tokenizer of the small Gemma 3 models has one, for images."""
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    AutoModelForCausalLM.from_pretrained(teacher_folder).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    of_text = Inputs(make_recipe(tmp_path / "teacher", texts, tmp_path / "run"))
    assert of_text.origin_config.vocab_size == len(tokenizer) - 1
    assert as_input_ids(of_text.blocks["test"], len(tokenizer) - 1).numel()
    sizes = {"space": {"vocab_sizes": [280]}, "search": {"fitness": "bits-per-byte"}}
    with pytest.raises(RecipeError, match=f"has {len(tokenizer)} tokens, the model embeddings for 300; .* leave vocab"):
        check_vocab_sizes(Inputs(make_recipe(tmp_path / "teacher", texts, tmp_path / "cut", **sizes)))


def test_a_corrected_recipe_runs_in_the_folder_of_one_that_failed_at_once(teacher_folder, texts, tmp_path):
    with pytest.raises(BinError):
        run(make_recipe(teacher_folder, texts, tmp_path / "run", bin={"low": 1e9, "high": 2e9}), progress=False)
    check_changes(tmp_path / "run", make_recipe(teacher_folder, texts, tmp_path / "run"))


def test_a_teacher_without_a_tokenizer_is_an_error(teacher_folder, texts, tmp_path):
    AutoModelForCausalLM.from_pretrained(teacher_folder).save_pretrained(tmp_path / "bare")
    for apart in ({}, {"supernet": str(teacher_folder)}):
        with pytest.raises(CheckpointError, match=r"bare' has no tokenizer"):
            run(make_recipe(tmp_path / "bare", texts, tmp_path / "out", **apart), progress=False)


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
    assert inputs.vocabulary_of().is_identity and not inputs.counts_bytes


def test_store_of_a_teacher_with_more_padding_is_for_the_student(teacher_folder, tmp_path, capsys):
    teacher = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(teacher_folder, vocab_size=320))
    teacher.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "teacher")
    texts = write_modules(tmp_path / "texts", 8)
    apart = {"supernet": str(teacher_folder), "data": {"search_fraction": 0.3, "test_fraction": 0.3}}
    recipe = make_recipe(tmp_path / "teacher", texts, tmp_path / "run", **apart)
    recipe.save(tmp_path / "recipe.yaml")
    command = ["store-logits", str(tmp_path / "recipe.yaml"), "--output-dir", str(tmp_path / "store")]
    assert main([*command, "--kind", "top-k", "--k", "300"]) == 0
    store, inputs = LogitStore(tmp_path / "store"), Inputs(recipe)
    store.check(vocab_size=300, tokenizer=inputs.tokenizer, vocabulary=inputs.vocabulary_of(), teacher=teacher)
    [block] = as_input_ids(inputs.training_blocks(1), 300)
    with torch.no_grad():
        logits = teacher.eval()(block[None]).logits[0, :, :300]
    found, expected = store.targets(block[None]), (logits / store.settings.temperature).softmax(-1)
    torch.testing.assert_close(found.probabilities, expected.gather(1, found.ids), rtol=0.01, atol=1e-4)


def test_an_output_folder_that_is_a_file_is_an_error(teacher_folder, texts, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        run(make_recipe(teacher_folder, texts, tmp_path / "out"), progress=False)
