"""A run in several processes: it gives the student of one, and goes on in another number of them."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from fixtures_processes import ENDED, accelerate_on_two_machines, launched, on_two_processes, torchrun
from fixtures_run import make_recipe
from safetensors.torch import load_file

import hf_whittle.run.batches
from hf_whittle.cli import main
from hf_whittle.errors import DataError, RecipeError
from hf_whittle.run import run
from hf_whittle.run.batches import check_batches, own_arguments, own_batch
from hf_whittle.run.fingerprints import compare
from hf_whittle.run.inputs import Inputs
from hf_whittle.run.preflight import check_loading
from hf_whittle.run.search_inputs import SearchInputs

SCRIPT = Path(__file__).with_name("run_in_processes.py")
SECTIONS = {
    "heal": True,
    "baseline": True,
    "data": {"calibration_tokens": 512},
    "search": {"fitness": "healed-perplexity"},
    "training": {"gradient_accumulation_steps": 2, "save_steps": 2, "adam_epsilon": 1e-4},
}
"""A smaller epsilon would make the rounding of gradients of keys' biases, which are 0, as large as any gradient."""


@pytest.fixture(scope="module")
def make(teacher_folder, texts, tmp_path_factory):
    """Make the recipe of a run in a folder of its own."""

    def make(name, **sections):
        return make_recipe(teacher_folder, texts, tmp_path_factory.mktemp("runs") / name, **{**SECTIONS, **sections})

    return make


@pytest.fixture(scope="module")
def by_one(make):
    """Results and weights of a run in one process."""
    recipe = make("one")
    return run(recipe, progress=False), weights_of(recipe)


def weights_of(recipe):
    return load_file(Path(recipe.output_dir) / "model.safetensors")


def saved(recipe):
    path = Path(recipe.output_dir).with_suffix(".yaml")
    recipe.save(path)
    return path


def assert_same_run(recipe, results, by_one):
    expected, weights = by_one
    found = weights_of(recipe)
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert (found[name] - weight).abs().max() < 1e-5, name
    assert results["search"] == expected["search"]
    assert results["teacher"]["perplexity"] == pytest.approx(expected["teacher"]["perplexity"], rel=1e-6)
    for name in ("student", "baseline"):
        for got, point in zip(results[name]["curve"], expected[name]["curve"], strict=True):
            assert (got["step"], got["tokens"]) == (point["step"], point["tokens"])
            assert got["perplexity"] == pytest.approx(point["perplexity"], rel=1e-5)


@pytest.mark.slow
def test_two_machines_give_the_run_of_one_process(make, by_one):
    recipe = make("two")
    outputs = accelerate_on_two_machines(SCRIPT, saved(recipe))
    assert ["The student, its card and the search are in" in output for output in outputs] == [True, False]
    assert [output.count(ENDED) for output in outputs] == [1, 1]
    assert_same_run(recipe, json.loads((Path(recipe.output_dir) / "results.json").read_text()), by_one)


@pytest.mark.slow
def test_two_processes_choose_the_vocabulary_that_one_does(make):
    sections = {"space": {"vocab_sizes": [280, 264]}, "search": {"fitness": "bits-per-byte"}}
    one, two = make("one", **sections), make("two", **sections)
    expected = run(one, progress=False)
    on_two_processes(SCRIPT, saved(two))
    results = json.loads((Path(two.output_dir) / "results.json").read_text())
    assert_same_run(two, results, (expected, weights_of(one)))
    assert results["vocabulary"] == expected["vocabulary"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("happens", "says", "checkpoint"),
    [("killed", "Signal 9", 2), ("interrupted", "interrupted; run the same command again to go on", 4)],
)
def test_what_ends_one_process_ends_all_and_the_run_goes_on_in_one(make, by_one, happens, says, checkpoint):
    recipe = make(happens)
    done = (torchrun if happens == "killed" else launched)(SCRIPT, saved(recipe), happens)
    assert done.returncode != 0 and done.stderr.count(says) == 1
    folder = Path(recipe.output_dir)
    assert [path.name for path in (folder / "stages" / "student").iterdir()] == [f"checkpoint-{checkpoint}"]
    assert not (folder / "results.json").exists()
    assert_same_run(recipe, run(recipe, progress=False), by_one)


@pytest.mark.slow
def test_error_of_the_trial_in_small_is_said_once(make):
    recipe = make("wrong", training={"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}})
    done = launched(SCRIPT, saved(recipe))
    assert done.returncode != 0
    assert done.stderr.count("training: a trial in small, before anything expensive, failed: lr_end") == 1
    assert not (Path(recipe.output_dir) / "candidates.jsonl").exists()


@pytest.mark.slow
def test_fsdp2_on_two_processes_gives_the_run_of_one(make, by_one):
    sharding = {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}, "use_cpu": False}
    recipe = make("fsdp2", training={**SECTIONS["training"], **sharding})
    assert on_two_processes(SCRIPT, saved(recipe), "sharded").count(ENDED) == 2
    assert_same_run(recipe, json.loads((Path(recipe.output_dir) / "results.json").read_text()), by_one)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")
def test_zero3_on_two_processes_gives_the_run_of_one(make, by_one, tmp_path):
    settings = json.loads((Path(__file__).parents[2] / "examples" / "deepspeed_zero3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # shard even the smallest weights
    (tmp_path / "zero3.json").write_text(json.dumps(settings))
    recipe = make("sharded", training={**SECTIONS["training"], "deepspeed": str(tmp_path / "zero3.json")})
    on_two_processes(SCRIPT, saved(recipe), DS_ACCELERATOR="cpu")
    assert_same_run(recipe, json.loads((Path(recipe.output_dir) / "results.json").read_text()), by_one)


@pytest.mark.parametrize(
    ("batch", "processes", "own"),
    [((8, 4), 1, (8, 4)), ((8, 4), 2, (8, 2)), ((8, 1), 4, (2, 1)), ((6, 4), 8, (3, 1)), ((2, 3), 3, (2, 1))],
)
def test_processes_divide_accumulation_first(batch, processes, own):
    divided = own_batch(*batch, processes)
    assert (divided["per_device_train_batch_size"], divided["gradient_accumulation_steps"]) == own


@pytest.mark.parametrize("section", ["training", "baseline"])
def test_batch_that_processes_cannot_divide_is_an_error(make, monkeypatch, section):
    monkeypatch.setattr(hf_whittle.run.batches, "num_launched", lambda: 4)
    recipe = make("odd", training={}, baseline={"gradient_accumulation_steps": 2})
    sizes = {"training": "2 blocks, per_device_train_batch_size: 2", "baseline": "6 blocks"}
    if section == "baseline":
        recipe = make("odd", training={"gradient_accumulation_steps": 2}, baseline={"gradient_accumulation_steps": 3})
    with pytest.raises(RecipeError, match=f"^{section}: 4 processes cannot divide a step of {sizes[section]}"):
        check_batches(recipe)


@pytest.mark.parametrize("section", ["teacher_options", "supernet_options"])
def test_device_map_under_a_launcher_is_an_error(make, monkeypatch, section):
    recipe = make("mapped", **{section: {"device_map": "auto"}})
    check_loading(recipe)
    monkeypatch.setattr(hf_whittle.run.preflight, "num_launched", lambda: 2)
    with pytest.raises(RecipeError, match=rf"^{section}\.device_map: a launcher gives each process a device"):
        check_loading(recipe)


def test_cpus_for_the_training_of_processes_with_accelerators_are_an_error(make, monkeypatch):
    recipe = make("on_cpu", training={"use_cpu": True})
    monkeypatch.setattr(hf_whittle.run.preflight, "num_launched", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    check_loading(recipe)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(RecipeError, match=r"^training\.use_cpu: launched processes .* CUDA_VISIBLE_DEVICES"):
        check_loading(recipe)


@pytest.mark.parametrize(("free", "processes", "gigabytes"), [([8e9, 6e9], 2, 2.85), ([8e9, 9e9, 8e9, 8e9], 1, 7.6)])
def test_processes_give_moments_the_same_memory(make, monkeypatch, free, processes, gigabytes):
    search = SearchInputs(Inputs(make("memory")), Path(), progress=False)
    assert search.memory is None
    monkeypatch.setattr(hf_whittle.run.search_inputs, "num_launched", lambda: len(free))
    monkeypatch.setattr(hf_whittle.run.search_inputs, "num_on_machine", lambda: processes)
    monkeypatch.setattr(hf_whittle.run.search_inputs, "free_bytes", lambda _: free[0])
    monkeypatch.setattr(hf_whittle.run.search_inputs, "gathered", lambda own: [own * each / free[0] for each in free])
    assert search.memory == pytest.approx(gigabytes)


def test_arguments_of_each_process_make_the_batch_of_the_recipe(make, monkeypatch):
    recipe = make("own", training={"gradient_accumulation_steps": 4})
    whole = recipe.training_arguments("out")
    monkeypatch.setattr(hf_whittle.run.batches, "num_launched", lambda: 4)
    own = own_arguments(recipe, "out")
    assert own.train_batch_size * own.gradient_accumulation_steps * 4 == (
        whole.train_batch_size * whole.gradient_accumulation_steps
    )


@pytest.mark.parametrize("command", ["demo", "extract"])
def test_commands_of_one_process_refuse_several(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    needed = {"demo": [], "extract": ["checkpoint", "--subnet", "subnet.json"]}[command]
    assert main([command, *needed, "--output-dir", str(tmp_path / "out")]) == 1
    assert f"{command} works in one process, 2 were launched" in capsys.readouterr().err


def test_machines_with_other_inputs_are_an_error(tmp_path):
    texts = [{"the text": "a", "the tokenizer": "c"}, None, {"the text": "b", "the tokenizer": "c"}]
    with pytest.raises(DataError, match="process 2 has other contents than process 0: the text; give all machines"):
        compare(tmp_path, texts)
