"""Changes of a recipe when a run goes on: sections may differ that nothing on disk was made from."""

import copy

import pytest

from hf_whittle.errors import OutputError
from hf_whittle.recipe import Recipe
from hf_whittle.run.changes import check_changes, record_baseline

VALUES = {
    "teacher": "someone/teacher",
    "supernet": "someone/supernet",
    "data": {"dataset": "someone/text"},
    "bin": {"low": 1000, "high": 2000},
    "search": {"algorithm": "evolution", "fitness": "perplexity"},
    "training": {"learning_rate": 1e-3},
    "heal": False,
    "baseline": {"learning_rate": 1e-4},
}
CHANGES = {
    "teacher": "someone/else",
    "supernet": "someone/else",
    "data": {"dataset": "someone/text", "test_tokens": 512},
    "bin": {"low": 1000, "high": 3000},
    "space": {"granularity": "fine"},
    "search": {"algorithm": "evolution", "fitness": "perplexity", "seed": 1},
    "heal": True,
    "training": {"learning_rate": 2e-3},
    "teacher_store": "store",
    "baseline": {"learning_rate": 2e-4},
    "teacher_options": {"quantization_config": {"load_in_4bit": True}},
    "supernet_options": {"dtype": "bfloat16"},
}
SEARCHED = {"teacher", "supernet", "data", "bin", "space", "search", "teacher_options", "supernet_options"}
EXTRACTED = SEARCHED | {"heal"}
TRAINED = EXTRACTED | {"training", "teacher_store"}
FIXED = {
    "nothing": (set(), []),
    "a file of no candidates": (set(), ["candidates.jsonl:"]),
    "candidates": (SEARCHED, ["candidates.jsonl:{}"]),
    "the search's facts": (SEARCHED, ["stages/search.json:{}"]),
    "the student extracted": (EXTRACTED, ["candidates.jsonl:{}", "stages/initial/config.json:{}"]),
    "the teacher measured": ({"teacher", "teacher_options", "data"}, ["stages/teacher.json:{}"]),
    "a training that just began": (set(), ["stages/student/runs:x"]),
    "a checkpoint": (TRAINED, ["stages/student/checkpoint-5/x:x"]),
    "the student trained": (TRAINED, ["stages/student.json:{}"]),
    "a checkpoint of the baseline": (TRAINED | {"baseline"}, ["stages/baseline/checkpoint-5/x:x"]),
    "the baseline trained": (TRAINED | {"baseline"}, ["stages/student.json:{}", "stages/baseline.json:{}"]),
}
"""Sections that must not change once these files are there."""


def make(folder, **changes):
    return Recipe.from_dict(copy.deepcopy({**VALUES, "output_dir": str(folder), **changes}))


@pytest.fixture
def begun(tmp_path):
    """A function that writes files into a run's folder, beside its recipe."""

    def leave(files, **changes):
        make(tmp_path, **changes).save(tmp_path / "recipe.yaml")
        for name, _, content in (file.partition(":") for file in files):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return tmp_path

    return leave


@pytest.mark.slow_after(25)
@pytest.mark.parametrize("there", FIXED)
@pytest.mark.parametrize("section", CHANGES)
def test_a_section_may_change_until_something_was_made_from_it(begun, there, section):
    fixed, files = FIXED[there]
    folder = begun(files)
    recipe = make(folder, **{section: CHANGES[section]})
    if section in fixed:
        with pytest.raises(OutputError, match=f"holds the run of a recipe with another {section}; choose another"):
            check_changes(folder, recipe)
    else:
        check_changes(folder, recipe)
    check_changes(folder, make(folder))  # the same goes on


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"dataset": "someone/text", "num_proc": 2}},
        {"training": {"learning_rate": 1e-3, "report_to": "tensorboard", "dataloader_num_workers": 2}},
        {"baseline": {"learning_rate": 1e-4, "save_total_limit": 3}},
        {"output_dir": "elsewhere"},
        {"baseline": False},
        {"teacher_options": {"dtype": "float32", "device_map": "auto", "max_memory": {"cpu": "8GB"}}},
        {"supernet_options": {"device_map": "cpu", "offload_folder": "elsewhere"}},
        {"search": {**VALUES["search"], "batch_size": 2}},
    ],
    ids=str,
)
def test_fields_that_change_no_result_may_always_change(begun, changes):
    folder = begun(FIXED["the baseline trained"][1])
    check_changes(folder, make(folder, **changes))


def test_a_recipe_of_an_older_version_is_named(begun):
    folder = begun(FIXED["candidates"][1])
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("learning_rate: 0.001", "learning_rate: -1.0"))
    with pytest.raises(OutputError, match=r"does not take \(training: learning_rate must .*correct .*recipe.yaml, or"):
        check_changes(folder, make(folder))


def test_several_sections_are_named_together(begun):
    folder = begun(FIXED["the student trained"][1])
    with pytest.raises(OutputError, match="another bin, training; choose"):
        check_changes(folder, make(folder, bin=CHANGES["bin"], training=CHANGES["training"]))


PROBING = {"algorithm": "evolution", "fitness": "probe", "probe": {"steps": 3, "temperature": 0.5}}


@pytest.mark.parametrize(
    "changes, is_fixed",
    [
        ({"training": {"learning_rate": 2e-3}}, True),
        ({"training": {"learning_rate": 1e-3, "alpha": 0.5}}, True),
        ({"heal": True}, True),
        ({"training": {"learning_rate": 1e-3, "temperature": 0.7}}, False),  # the probe has its own
        ({"training": {"learning_rate": 1e-3, "weight_decay": 0.1}}, False),
    ],
    ids=str,
)
def test_probes_fix_the_fields_they_take_from_other_sections(begun, changes, is_fixed):
    folder = begun(FIXED["candidates"][1], search=PROBING)
    recipe = make(folder, search=PROBING, **changes)
    if not is_fixed:
        check_changes(folder, recipe)
        return
    with pytest.raises(OutputError, match="with another training or heal, which the probes of its search depend on;"):
        check_changes(folder, recipe)


def test_a_baseline_that_was_dropped_meanwhile_does_not_come_back_as_another(begun):
    folder = begun(FIXED["the baseline trained"][1])
    record_baseline(folder, make(folder))
    make(folder, baseline=False).save(folder / "recipe.yaml")  # as a run without it leaves it
    check_changes(folder, make(folder))
    with pytest.raises(OutputError, match="another baseline"):
        check_changes(folder, make(folder, baseline=CHANGES["baseline"]))


def test_the_blocks_at_a_time_may_change_unless_scores_depend_on_them(begun):
    files, search = FIXED["the student extracted"][1], {**VALUES["search"], "batch_size": 2}
    check_changes(folder := begun(files, heal=True), make(folder, heal={"batch_size": 2}, search=search))
    space = {"granularity": "fine", "importance": "taylor"}
    with pytest.raises(OutputError, match="with another search;"):
        check_changes(begun(files, space=space), make(folder, space=space, search=search))
