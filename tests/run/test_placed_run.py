"""Runs whose teacher and super-network are in half precision, on disk or quantized."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from fixtures_run import make_recipe
from transformers import AutoModelForCausalLM

from hf_whittle import AutoSuperNetForCausalLM, LogitStore, SubnetConfig, extract_subnet, store_targets
from hf_whittle.distillation.trainer import DistillationTrainer
from hf_whittle.errors import RecipeError
from hf_whittle.evaluation import as_input_ids, cross_entropy, perplexity
from hf_whittle.run import run
from hf_whittle.run.inputs import Inputs
from hf_whittle.run.preflight import check_teacher
from hf_whittle.run.search_inputs import SearchInputs
from hf_whittle.run.trainers import Trainers

HEALED = {"fitness": "healed-perplexity", "generations": 1}
FOUR_BITS = {"quantization_config": {"load_in_4bit": True}}
DISK = {"gpt_neox": "disk", "lm_head": "cpu"}  # older versions of accelerate offload no whole model


def candidates(folder):
    lines = [json.loads(line) for line in (Path(folder) / "candidates.jsonl").read_text().splitlines()]
    return [(line["subnet"], line["fitness"]) for line in lines if "subnet" in line]


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def assert_slice_of_the_checkpoint(recipe, results):
    """The student as it was extracted has the weights of the checkpoint, in single precision."""
    subnet = SubnetConfig.from_dict(results["search"]["subnet"])
    expected = extract_subnet(AutoSuperNetForCausalLM.from_pretrained(recipe.teacher), subnet).state_dict()
    found = weights(Path(recipe.output_dir) / "stages" / "initial")
    assert found.keys() == expected.keys() and all(map(torch.equal, found.values(), expected.values()))
    assert {weight.dtype for weight in found.values()} == {torch.float32}


@pytest.fixture
def make(teacher_folder, texts, tmp_path):
    return lambda **changes: make_recipe(teacher_folder, texts, tmp_path / "run", **changes)


@pytest.mark.slow
def test_run_in_half_precision_is_near_that_in_single_precision(make, results):
    recipe = make(teacher_options={"dtype": "bfloat16"})
    found = run(recipe, progress=False)
    assert_slice_of_the_checkpoint(recipe, found)
    assert {weight.dtype for weight in weights(recipe.output_dir).values()} == {torch.float32}
    assert found["teacher"]["perplexity"] == pytest.approx(results["teacher"]["perplexity"], rel=0.02)
    assert found["teacher"]["perplexity"] != results["teacher"]["perplexity"]
    assert found["teacher"]["precision"] == "bfloat16" and "precision" not in results["teacher"]
    assert "| teacher (`bfloat16`) |" in (Path(recipe.output_dir) / "README.md").read_text()
    assert found["search"]["perplexity"] == pytest.approx(results["search"]["perplexity"], rel=0.02)
    ends = [each["student"]["curve"][-1]["perplexity"] for each in (found, results)]
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


@pytest.mark.slow
def test_candidates_of_a_super_network_on_disk_are_those_of_one_in_memory(make, teacher_folder, texts, tmp_path):
    sections = {"search": HEALED, "heal": True, "data": {"calibration_tokens": 512}}
    options = {"device_map": DISK, "offload_folder": str(tmp_path / "offload")}
    recipe = make(**sections, supernet_options=options, teacher_options={"dtype": "float32"})
    in_memory = make_recipe(teacher_folder, texts, tmp_path / "in memory", **sections)
    found, expected = run(recipe, progress=False), run(in_memory, progress=False)
    ours, theirs = candidates(recipe.output_dir), candidates(in_memory.output_dir)
    assert [subnet for subnet, _ in ours] == [subnet for subnet, _ in theirs]
    assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-4)
    assert found["healing"]["perplexity_after"] == pytest.approx(expected["healing"]["perplexity_after"], rel=1e-4)
    ends = [each["student"]["curve"][-1]["perplexity"] for each in (found, expected)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)


@pytest.mark.slow
def test_quantized_teacher_beside_a_super_network_on_disk(make, results, teacher_folder, tmp_path):
    options = {"dtype": "bfloat16", "device_map": DISK, "offload_folder": str(tmp_path / "offload")}
    recipe = make(supernet_options=options, teacher_options=FOUR_BITS)
    found = run(recipe, progress=False)
    assert_slice_of_the_checkpoint(recipe, found)
    teacher = Inputs(recipe).load_teacher()
    assert teacher.is_quantized
    blocks = as_input_ids(Inputs(recipe).blocks["test"], teacher.config.vocab_size)
    assert found["teacher"]["perplexity"] == pytest.approx(perplexity(cross_entropy(teacher, blocks)), rel=1e-5)
    assert found["teacher"]["perplexity"] != results["teacher"]["perplexity"]
    assert found["teacher"]["precision"] == "4 bits"
    assert found["teacher"]["parameters"] == results["teacher"]["parameters"]


@pytest.mark.parametrize("section", ["teacher_options", "supernet_options"])
def test_processes_of_a_launcher_take_no_device_map(make, monkeypatch, section):
    apart = {"teacher_options": {"dtype": "float32"}, "supernet_options": {"dtype": "bfloat16"}}
    recipe = make(**{**apart, section: {"device_map": "auto"}})
    monkeypatch.setattr("hf_whittle.run.preflight.num_launched", lambda: 2)
    with pytest.raises(RecipeError, match=f"{section}.device_map: a launcher gives each process a device of its own"):
        check_teacher(Inputs(recipe))


def test_a_quantizer_that_is_not_installed_is_named_before_anything_else(make, monkeypatch):
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    recipe = make(teacher_options=FOUR_BITS, supernet_options={"dtype": "float32"})
    with pytest.raises(RecipeError, match=r"teacher_options.quantization_config: .*bitsandbytes"):
        run(recipe, progress=False)
    assert not (Path(recipe.output_dir) / "inputs.json").exists()


@pytest.fixture
def alive(monkeypatch):
    """By training that begins, the number of super-networks and teachers in memory."""
    loaded, found = {"supernet": [], "teacher": []}, {}
    train_from, supernet, teacher = DistillationTrainer.train_from, AutoSuperNetForCausalLM.from_pretrained, None

    def noted(kind, load):
        def loading(*args, **kwargs):
            model = load(*args, **kwargs)
            loaded[kind].append(weakref.ref(model))
            return model

        return loading

    def train(self, checkpoint=None):
        if "preflight" not in self.args.output_dir:
            gc.collect()
            name = Path(self.args.output_dir).name
            found[name] = {kind: sum(one() is not None for one in refs) for kind, refs in loaded.items()}
        return train_from(self, checkpoint)

    from hf_whittle.run import inputs

    teacher = inputs.load_teacher
    monkeypatch.setattr(AutoSuperNetForCausalLM, "from_pretrained", noted("supernet", supernet))
    monkeypatch.setattr(inputs, "load_teacher", noted("teacher", teacher))
    monkeypatch.setattr(DistillationTrainer, "train_from", train)
    return found


FEW = {"max_steps": 2, "eval_strategy": "no"}


@pytest.mark.slow
def test_models_that_no_stage_needs_any_more_are_freed(make, alive, teacher_folder):
    run(make(supernet=str(teacher_folder), training=FEW, baseline=True), progress=False)
    assert alive == {"student": {"supernet": 0, "teacher": 1}, "baseline": {"supernet": 0, "teacher": 0}}


@pytest.mark.slow
def test_the_teacher_that_was_sliced_is_freed_before_the_baseline(make, alive):
    run(make(training=FEW, baseline=True), progress=False)
    assert alive == {"student": {"supernet": 1, "teacher": 0}, "baseline": {"supernet": 0, "teacher": 0}}


def test_a_teacher_that_trainings_shard_is_not_beside_the_super_network(make, monkeypatch):
    inputs = Inputs(make())
    of_search = SearchInputs(inputs, Path(), progress=False)
    assert Trainers(inputs).teacher is of_search.teacher is inputs.supernet
    monkeypatch.setattr("hf_whittle.run.inputs.shards_models", lambda _: True)
    teacher = Trainers(inputs).teacher
    assert "supernet" not in vars(inputs)
    assert SearchInputs(inputs, Path(), progress=False).teacher is inputs.supernet is not teacher


@pytest.mark.slow
def test_no_teacher_is_in_memory_beside_its_store(make, alive, tmp_path):
    recipe = make(training=FEW, teacher_store=str(tmp_path / "store"), teacher_options=FOUR_BITS | {"dtype": "float32"},
                  supernet_options={"dtype": "float32"})  # fmt: skip
    inputs = Inputs(recipe)
    options = {"tokenizer": inputs.tokenizer, "temperature": 0.9, "progress": False}
    store_targets(inputs.load_teacher(), inputs.blocks["train"], tmp_path / "store", **options)
    del inputs
    run(recipe, progress=False)
    assert alive == {"student": {"supernet": 0, "teacher": 0}}
    assert LogitStore(tmp_path / "store").tokens > 0
