"""Recipes that `hf-whittle init` writes: parsed, planned and run as they are."""

import json
import re
from dataclasses import replace

import pytest
from fixtures_run import write_modules

import hf_whittle.plan.devices
import hf_whittle.plan.training_memory
from hf_whittle.cli import main
from hf_whittle.cli.init import text_of
from hf_whittle.cost import num_parameters
from hf_whittle.errors import BinError
from hf_whittle.plan import plan_recipe
from hf_whittle.plan.devices import DEVICES
from hf_whittle.plan.draft import SHARE, _rounded, draft_recipe
from hf_whittle.recipe import Recipe
from hf_whittle.run.inputs import Inputs, load_config
from hf_whittle.run.main import _begun
from hf_whittle.run.preflight import preflight

DEVICE = replace(DEVICES["t4"], utilization=1.0)


@pytest.fixture(scope="module", autouse=True)
def few_at_a_time():
    """Plans of evaluations of fewer blocks at a time than by default, each of which is rehearsed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_whittle.plan.training_memory, "tokens_at_a_time", lambda *_: 1024)
        yield


@pytest.fixture(scope="module")
def written(teacher_folder, tmp_path_factory):
    """A recipe that the command wrote, and the JSON that it printed."""
    folder = tmp_path_factory.mktemp("init")
    texts = write_modules(folder / "texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_whittle.plan.devices, "SECONDS", 0.0)
        patch.chdir(folder)
        printed = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(words[0]))
        given = ["--ratio", "0.6", "--files", f"{texts}/*.txt", "--output", "made.yaml", "--json"]
        assert main(["init", str(teacher_folder), *given]) == 0
    return folder / "made.yaml", json.loads(printed[-1])


@pytest.fixture
def there(written, monkeypatch):
    monkeypatch.chdir(written[0].parent)


@pytest.mark.slow
@pytest.mark.usefixtures("there")
def test_it_parses_as_what_was_drafted_and_says_what_is_next(written, teacher_folder):
    path, said = written
    recipe = Recipe.load(path)
    assert recipe == Recipe.from_dict(said["values"]) and recipe.teacher == str(teacher_folder)
    middle = 0.6 * num_parameters(load_config(teacher_folder))
    assert 0.8 * middle < recipe.bin.low < middle < recipe.bin.high < 1.2 * middle
    assert said["next"] == ["hf-whittle plan made.yaml", "hf-whittle run made.yaml"]
    assert recipe.data.search_fraction == 0.1  # of so short a text


@pytest.mark.slow
@pytest.mark.usefixtures("there")
def test_comments_stand_above_their_keys(written):
    lines = written[0].read_text().splitlines()
    assert lines[0].startswith("# Drafted by `hf-whittle init` for ")
    for key in ("teacher", "data", "bin", "search", "training", "baseline"):
        number = next(number for number, line in enumerate(lines) if line.startswith(f"{key}:"))
        assert lines[number - 1].startswith("# "), key
    assert re.search(r"# Any field of DistillationConfig. [\d,]+ tokens take about ", "\n".join(lines))


@pytest.mark.slow
@pytest.mark.usefixtures("there")
def test_it_is_planned_and_its_trial_in_small_succeeds(written, tmp_path):
    recipe = Recipe.load(written[0], output_dir=str(tmp_path / "out"))
    assert not plan_recipe(recipe, "a100-80gb").problems
    with _begun(recipe) as (inputs, ledger):
        assert isinstance(inputs, Inputs)
        preflight(inputs, ledger.folder)


@pytest.mark.slow
@pytest.mark.usefixtures("there")
def test_a_file_that_exists_is_never_overwritten(written, teacher_folder, capsys):
    before = written[0].read_bytes()
    assert main(["init", str(teacher_folder), "--output", "made.yaml"]) == 1
    assert "made.yaml exists already" in capsys.readouterr().err and written[0].read_bytes() == before


@pytest.mark.slow
def test_a_batch_is_as_large_as_memory_allows(teacher_folder):
    def draft(memory):
        return draft_recipe(
            str(teacher_folder), "out", {"files": ["x"]}, ratio=0.6, device=replace(DEVICE, memory=memory)
        )

    ample = draft(DEVICE.memory)
    few = draft(int(0.8 * ample.plan.stage("student").memory.peak / SHARE))
    of_step = []
    for each in (ample, few):
        training = each.values["training"]
        of_step.append(training["per_device_train_batch_size"] * training["gradient_accumulation_steps"])
        assert not any(problem.stage == "student" for problem in each.plan.problems)
    assert of_step[0] == of_step[1]
    sizes = [each.values["training"]["per_device_train_batch_size"] for each in (ample, few)]
    assert sizes[0] > sizes[1]


@pytest.mark.slow
def test_precision_and_length_follow_the_speed_of_the_device(teacher_folder):
    def draft(**speeds):
        device = replace(DEVICE, **speeds)
        return draft_recipe(str(teacher_folder), "out", {"files": ["x"]}, device=device).values

    fast, slow = draft(bf16=2e15, fp32=1e15), draft(bf16=1e6, fp32=1e6)
    assert fast["training"]["bf16"] and "bf16" not in slow["training"]
    assert fast["training"]["max_steps"] > slow["training"]["max_steps"] == 50


def test_a_size_that_cannot_be_reached_is_an_error_that_says_which_can(teacher_folder):
    with pytest.raises(BinError, match=r"its subnets have .* to .*: choose a bin"):
        draft_recipe(str(teacher_folder), "out", {"files": ["x"]}, parameters=10, device=DEVICE)


@pytest.mark.parametrize("number, rounded", [(159_731_200, 160_000_000), (0.97 * 685_670, 665_000), (7, 7), (15.2, 15)])
def test_bounds_are_round(number, rounded):
    assert _rounded(number) == rounded


def test_a_text_that_is_not_named_yet_is_said_to_be_missing(tmp_path):
    from argparse import Namespace

    assert text_of(Namespace(dataset=None, files=None)) == {"files": ["texts/**/*.txt"]}
    assert text_of(Namespace(dataset="someone/text", files=None)) == {"dataset": "someone/text"}
    (tmp_path / "a.txt").write_text("text")
    assert text_of(Namespace(dataset=None, files=f"{tmp_path}/*.txt"))["test_fraction"] == 0.1
