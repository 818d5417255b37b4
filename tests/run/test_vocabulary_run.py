"""Runs whose students have a part of the teacher's vocabulary: searched for, given, or refused before anything."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from broken_runs import break_off, weights_that_differ
from datasets import Dataset
from fixtures_run import make_recipe
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import hf_whittle.run.vocabularies
from hf_whittle import SubnetConfig, extract_subnet
from hf_whittle.cli import main
from hf_whittle.errors import RecipeError, VocabularyError
from hf_whittle.evaluation import as_input_ids
from hf_whittle.plan import plan_recipe
from hf_whittle.plan.planning import _Planner
from hf_whittle.plan.training_memory import Step
from hf_whittle.report.folder import load_runs
from hf_whittle.report.sections import make_sections
from hf_whittle.run import run
from hf_whittle.run.inputs import Inputs
from hf_whittle.run.search_inputs import SearchInputs, make_bin
from hf_whittle.run.trainers import Trainers
from hf_whittle.run.vocabularies import ORDER_FILE, check_vocabularies, token_order
from hf_whittle.subnet import count
from hf_whittle.vocabulary import VocabularyMap, prune_tokenizer

SECTIONS = {
    "space": {"vocab_sizes": [280, 264]},
    "search": {"fitness": "bits-per-byte"},
    "data": {"calibration_tokens": 512},
    "heal": True,
    "baseline": True,
}


@pytest.fixture(scope="module")
def make(teacher_folder, texts, tmp_path_factory):
    """Make the recipe of a run in a folder of its own."""

    def make(name="run", **sections):
        return make_recipe(teacher_folder, texts, tmp_path_factory.mktemp("runs") / name, **{**SECTIONS, **sections})

    return make


@pytest.fixture(scope="module")
def recipe(make):
    return make()


@pytest.fixture(scope="module")
def results(recipe):
    return run(recipe, progress=False)


@pytest.fixture(scope="module")
def tokenizer(recipe, results):
    return AutoTokenizer.from_pretrained(recipe.output_dir)


def bytes_of(tokenizer, ids):
    """Bytes of byte-level tokens, each character of which is one, without the end of text."""
    return sum(len(token) for token in tokenizer.convert_ids_to_tokens(ids) if token != tokenizer.eos_token)


@pytest.mark.slow
def test_student_has_the_first_tokens_of_the_order(recipe, results, tokenizer):
    folder, facts = Path(recipe.output_dir), results["vocabulary"]
    order = json.loads((folder / "stages" / ORDER_FILE).read_text())["order"]
    kept = sorted(order[: facts["size"]])
    assert facts["size"] in (264, 280) and facts["teacher_size"] == results["supernet"]["vocab_size"] == 300
    assert count(SubnetConfig.from_pretrained(folder).vocab_size) == len(tokenizer) == facts["size"]
    teacher = AutoTokenizer.from_pretrained(recipe.teacher)
    assert tokenizer.convert_ids_to_tokens(range(len(kept))) == teacher.convert_ids_to_tokens(kept)
    student = AutoModelForCausalLM.from_pretrained(folder)
    assert student.get_input_embeddings().weight.shape[0] == facts["size"]
    assert student.config.eos_token_id == tokenizer.eos_token_id


def test_figures_are_those_of_a_plain_evaluation(recipe, results, tokenizer):
    kept = SubnetConfig.from_pretrained(recipe.output_dir).vocab_size
    inputs = Inputs(recipe)
    blocks = as_input_ids(inputs.text_of(kept).blocks["test"], 300)
    assert results["vocabulary"]["tokens_per_byte"] == blocks.numel() / bytes_of(tokenizer, blocks.flatten().tolist())
    model = AutoModelForCausalLM.from_pretrained(recipe.output_dir)
    with torch.no_grad():
        nats = torch.stack([model(row[None], labels=row[None]).loss for row in blocks]).double().mean().item()
    predicted = blocks[:, 1:]
    bits = nats * predicted.numel() / bytes_of(tokenizer, predicted.flatten().tolist()) / math.log(2)
    last = results["student"]["curve"][-1]
    assert last["perplexity"] == pytest.approx(math.exp(nats), rel=1e-4)
    assert last["bits_per_byte"] == pytest.approx(bits, rel=1e-4)

    teacher, theirs = AutoModelForCausalLM.from_pretrained(recipe.teacher), inputs.teacher_tokenizer
    ids = as_input_ids(inputs.blocks["test"], 300)
    with torch.no_grad():
        nats = torch.stack([teacher(row[None], labels=row[None]).loss for row in ids]).double().mean().item()
    bits = nats * ids[:, 1:].numel() / bytes_of(theirs, ids[:, 1:].flatten().tolist()) / math.log(2)
    assert results["teacher"]["bits_per_byte"] == pytest.approx(bits, rel=1e-4)


def test_card_summary_and_report_tell_the_vocabulary(recipe, results):
    from hf_whittle.cli.run import summary

    facts, folder = results["vocabulary"], Path(recipe.output_dir)
    size, last = facts["size"], results["student"]["curve"][-1]["bits_per_byte"]
    card, text = (folder / "README.md").read_text(), summary(results)
    for page in (card, text):
        assert re.search(rf"{size} of the .*300", page) or f"{size} of the teacher's 300" in page
        assert f"{facts['tokens_per_byte']:.4g} tokens" in page
    assert f"{last:.4g}" in card and f"{last:.4f}" in text
    [headline] = [each for each in make_sections(load_runs([folder])) if each.title == "Headline"]
    assert "bits per byte after" in str(headline.blocks) and f"{last:.4g}" in str(headline.blocks)


@pytest.mark.slow
def test_run_that_broke_off_ranks_no_token_again(recipe, results, make, default_ctrl_c, monkeypatch):
    again = make("again")
    with monkeypatch.context() as patch:
        break_off(again, "interrupted before extraction", patch)
    monkeypatch.setattr(hf_whittle.run.vocabularies, "rank_tokens", None)
    with monkeypatch.context() as patch:
        break_off(again, "Ctrl-C in training", patch)
    assert run(again, progress=False)["student"]["curve"] == results["student"]["curve"]
    assert weights_that_differ(recipe, again) == []


def test_ranking_of_other_text_is_not_taken_from_the_cache(recipe, results, make, tmp_path):
    order = token_order(Inputs(recipe), tmp_path)
    path = tmp_path / ORDER_FILE
    assert order == token_order(Inputs(recipe), tmp_path) == json.loads(path.read_text())["order"]
    path.write_text(json.dumps({"fingerprint": "of another", "order": [0]}))
    assert token_order(Inputs(recipe), tmp_path) == order


@pytest.mark.slow
def test_streamed_text_is_read_in_the_students_tokens(make):
    streamed = make("streamed", data={"streaming": True}, baseline=False, heal=False)
    facts = run(streamed, progress=False)
    assert facts["student"]["tokens"] == 6 * 2 * 32 and facts["vocabulary"]["size"] < 300


def test_bin_of_flops_is_one_of_a_byte_of_text(make, tmp_path):
    recipe = make("flops", bin={"cost": "flops", "low": 1e3, "high": 1e5})
    found = SearchInputs(inputs := Inputs(recipe), tmp_path, progress=False)
    bin, fitness = make_bin(inputs, found.space), found.fitness("bits-per-byte")
    tokens = {size: found.space.tokens.choose(None, size) for size in (264, 280)}
    expected = {
        size: fitness.tokens_per_byte(SubnetConfig(24, [0], [1], [8], vocab_size=kept)) for size, kept in tokens.items()
    }
    assert bin.to_dict()["cost"] == "FLOPs per byte of text"
    assert dict(bin.tokens_per_byte) == pytest.approx(expected) and expected[264] > expected[280]
    assert not make("one", bin=recipe.to_dict()["bin"], space={"vocab_sizes": [264]}).needs_tokens_per_byte


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"search": {"fitness": "perplexity"}}, r"^search.fitness: perplexity compares .*; set fitness: bits-per-byte"),
        ({"teacher_store": "store"}, "^teacher_store: a store has targets for the tokens of one vocabulary"),
        ({"data": {"token_column": "ids"}}, "^data.token_column: fitness: bits-per-byte reads text, and ids holds"),
        ({"space": {"vocab_sizes": [264, 264]}}, "^space: vocab_sizes must be different numbers of tokens, .*264, 264"),
        ({"space": {"vocab_sizes": 264}}, "^space.vocab_sizes: expected list"),
    ],
)
def test_recipe_that_cannot_work_is_refused(make, sections, message):
    with pytest.raises(RecipeError, match=message):
        make("wrong", **sections)


@pytest.mark.parametrize("size", [200, 301])
def test_size_that_no_tokenizer_has_is_refused_before_any_text_is_read(make, size, monkeypatch):
    wrong = make("sizes", space={"vocab_sizes": [size, 264]})

    def read(text):
        raise AssertionError("the text was read")

    monkeypatch.setattr(hf_whittle.run.text.Text, "blocks", property(read))
    with pytest.raises(RecipeError, match=rf"^space.vocab_sizes: .* can have 257 tokens, .* to 300, .*; got {size}$"):
        run(wrong, progress=False)


def test_recipe_without_sizes_does_not_name_them(make):
    plain = make("plain", space={"vocab_sizes": None})
    assert "vocab_sizes" not in plain.to_dict()["space"]


@pytest.fixture(scope="module")
def given(recipe, make, tmp_path_factory):
    """The recipe of a student that is given, with 270 of the teacher's tokens."""
    kept = sorted(token_order(Inputs(recipe))[:270])
    folder = tmp_path_factory.mktemp("given")
    subnet = SubnetConfig(24, [0, 2], [2, 1], [32, 16], vocab_size=tuple(kept))
    student = extract_subnet(recipe.teacher, subnet, folder / "student")
    return make("trained").with_student(str(student)), kept


@pytest.mark.slow
def test_store_for_a_given_student_is_in_its_tokens(given, tmp_path, capsys):
    recipe, kept = given
    recipe.save(tmp_path / "recipe.yaml")
    assert main(["store-logits", str(tmp_path / "recipe.yaml"), "--output-dir", str(tmp_path / "store")]) == 0
    values = {**recipe.to_dict(), "teacher_store": str(tmp_path / "store")}
    results = run(type(recipe).from_dict(values), progress=False)
    assert results["vocabulary"]["size"] == 270 and results["student"]["targets"].startswith("12 samples")
    whole = AutoTokenizer.from_pretrained(recipe.teacher)
    saved = AutoTokenizer.from_pretrained(recipe.output_dir)
    assert saved.get_vocab() == prune_tokenizer(whole, kept).get_vocab()


def test_trainers_of_a_run_know_the_tokens_of_student_and_teacher(given, make, tmp_path, monkeypatch):
    recipe, kept = given
    made, between = [], VocabularyMap.between
    monkeypatch.setattr(VocabularyMap, "between", lambda *tokenizers: made.append(between(*tokenizers)) or made[-1])
    student = AutoModelForCausalLM.from_pretrained(recipe.student)
    same = shutil.copytree(recipe.student, tmp_path / "same")  # a teacher with the same tokens and no record of them
    for name in ("subnet.json", "results.json"):
        (same / name).unlink()
    blocks = dict.fromkeys(("train", "test"), Dataset.from_dict({"input_ids": [[1, 2, 3]] * 8}))
    for teacher, ids in ((recipe.teacher, kept), (str(same), None)):
        inputs = Inputs(replace(recipe, teacher=teacher))
        assert inputs.tokenizer is not None
        check_vocabularies(inputs, inputs.origin_config, inputs.teacher_config)
        trainers = Trainers(inputs)
        args = recipe.training_arguments(tmp_path / "out")
        trainer, _ = (trainers.make(student, args, blocks, []) for _ in range(2))
        of_teacher = trainer._teacher._vocabulary
        assert (None if of_teacher is None else of_teacher.to_teacher.tolist()) == ids
    assert len(made) == 2


def test_store_for_a_search_of_the_vocabulary_is_refused(recipe, tmp_path, capsys):
    recipe.save(tmp_path / "recipe.yaml")
    assert main(["store-logits", str(tmp_path / "recipe.yaml"), "--output-dir", str(tmp_path / "store")]) == 1
    assert "space.vocab_sizes: a store has targets for the tokens of one vocabulary" in capsys.readouterr().err


def test_probes_need_the_teachers_vocabulary(given, make):
    recipe, _ = given
    search = {"fitness": "kl"}
    pruned = make("pruned", supernet=recipe.student, space={"vocab_sizes": None}, search=search)
    with pytest.raises(VocabularyError, match=r"has 300 entries, that of the super-network 270; .* search.fitness"):
        run(pruned, progress=False)


@pytest.mark.slow
def test_supernet_with_a_part_of_the_vocabulary_takes_any_fitness(given, make, tmp_path):
    recipe, kept = given
    whole = SubnetConfig.full(AutoConfig.from_pretrained(recipe.teacher))
    supernet = extract_subnet(recipe.teacher, replace(whole, vocab_size=tuple(kept)), tmp_path / "supernet")
    plain = {"space": {"vocab_sizes": None}, "search": {"fitness": "healed-perplexity"}, "baseline": False}
    results = run(make("pruned", supernet=str(supernet), **plain), progress=False)
    assert (results["vocabulary"]["size"], results["vocabulary"]["teacher_size"]) == (270, 300)
    assert results["student"]["curve"][-1]["bits_per_byte"] > 0


@pytest.mark.slow
def test_extract_heals_on_the_tokens_that_are_kept(given, recipe, texts, tmp_path, capsys):
    _, kept = given
    SubnetConfig(24, [0, 2], [2, 1], [32, 16], vocab_size=tuple(kept)).save_pretrained(tmp_path)
    command = [
        "extract",
        recipe.teacher,
        "--subnet",
        str(tmp_path),
        "--output-dir",
        str(tmp_path / "student"),
        "--heal",
    ]
    assert main([*command, "--files", f"{texts}/*.txt", "--block-size", "32", "--calibration-tokens", "512"]) == 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "student")) == 270


def test_plan_counts_tokens_of_the_students_vocabulary(make):
    one = make("planned", space={"vocab_sizes": [264]}, heal=False, baseline=False)
    plan = plan_recipe(one, "t4")
    assert plan.stage("student").tokens == 6 * 2 * 32
    assert any("has 264 of 300" in note and "--read-text" in note for note in plan.notes)


def test_plan_counts_training_text_in_the_students_tokens(make, tmp_path):
    inputs = Inputs(recipe := make("read"))
    space = SearchInputs(inputs, tmp_path, progress=False).space
    blocks = {size: len(inputs.text_of(space.tokens.choose(None, size)).blocks["train"]) for size in (264, 280)}
    assert blocks[264] > blocks[280] > len(inputs.blocks["train"])
    subnets = (space.sample(Random(seed), make_bin(inputs, space)) for seed in range(20))
    known = next(subnet for subnet in subnets if count(subnet.vocab_size) == 280)
    for subnet, size in ((None, 264), (known, 280)):
        assert _Planner(recipe, None, subnet, read_text=True).blocks.train == blocks[size]


@pytest.mark.slow
def test_plan_of_a_bin_of_text_needs_the_text(make, tmp_path):
    bin = {"cost": "flops", "low": 1e3, "high": 1e5}
    recipe = make("flops", bin=bin, heal=False, baseline=False)
    with pytest.raises(RecipeError, match=r"^bin.cost: flops of a byte of text .*: plan with --read-text"):
        plan_recipe(recipe, "t4")
    search = plan_recipe(recipe, "t4", read_text=True).stage("search")
    fitness = (found := SearchInputs(Inputs(recipe), tmp_path, progress=False)).fitness("bits-per-byte")
    smallest = SubnetConfig(24, [0], [1], [8], vocab_size=found.space.tokens.choose(None, 264))
    assert search.tokens == search.evaluations * math.ceil(128 * fitness.tokens_of(smallest) / fitness.tokens())


@pytest.mark.slow
def test_rehearsal_of_a_step_restricts_the_teachers_logits(recipe, tmp_path):
    teacher = AutoConfig.from_pretrained(recipe.teacher)

    def logits(size, dropped):
        student = AutoConfig.from_pretrained(recipe.teacher, vocab_size=size)
        args = recipe.training_arguments(tmp_path, dropped_tokens=dropped)
        return Step(args, 32).memory(student, teacher).logits

    assert logits(150, "renormalized") < logits(150, "first_piece") < logits(300, "first_piece")
