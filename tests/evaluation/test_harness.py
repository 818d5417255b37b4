"""The real lm-evaluation-harness on tasks made from files, without the Hub."""

import json

import pytest
from fixtures_evaluation import SUBNET, TEXTS
from fixtures_processes import on_two_processes

from hf_whittle.errors import DataError
from hf_whittle.evaluation import measure_texts
from hf_whittle.evaluation.harness import check_names, load_tasks, run_tasks
from hf_whittle.evaluation.subject import loaded_subject

pytest.importorskip("lm_eval", reason="tasks need lm-eval: pip install 'hf_whittle[eval]'")
NAMES = ["local_texts", "local_choices", "local_answers"]


def results_of(name, task_folder, names=NAMES, limit=None, num_fewshot=None, **options):
    tasks = load_tasks(names, include_path=task_folder, limit=limit, num_fewshot=num_fewshot)
    with loaded_subject(name, **options) as subject:
        return run_tasks(subject.model, subject.tokenizer, tasks, batch_size=4)


def values_of(found):
    return {
        (task, name): value
        for task, metrics in found["results"].items()
        for name, value in metrics.items()
        if isinstance(value, float) and "stderr" not in name
    }


def test_figures_of_texts_are_those_of_lm_eval(model, tokenizer, teacher_folder, task_folder):
    found = results_of(teacher_folder, task_folder, NAMES[:1])["results"]["local_texts"]
    measured = measure_texts(model, tokenizer, TEXTS)
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert getattr(measured, name) == pytest.approx(found[f"{name},none"], rel=1e-5)


@pytest.mark.slow
def test_results_are_those_of_lm_eval_alone(teacher_folder, task_folder):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    alone = simple_evaluate(
        "hf",
        {"pretrained": str(teacher_folder)},
        NAMES,
        device="cpu",
        batch_size=4,
        task_manager=TaskManager(include_path=str(task_folder), include_defaults=False),
        log_samples=False,
        limit=4,
        num_fewshot=1,
    )
    found = results_of(teacher_folder, task_folder, limit=4, num_fewshot=1)
    assert values_of(found) == pytest.approx(values_of(alone), rel=1e-6)
    assert found["n-shot"] == alone["n-shot"] and found["n-shot"]["local_choices"] == 1
    assert found["n-samples"] == alone["n-samples"] and found["n-samples"]["local_choices"]["effective"] == 4


def test_a_subnet_of_the_supernetwork_is_the_student(teacher_folder, student_folder, task_folder):
    as_subnet = values_of(results_of(teacher_folder, task_folder, subnet=SUBNET))
    assert as_subnet == pytest.approx(values_of(results_of(student_folder, task_folder)), rel=1e-5)
    assert {task for task, _ in as_subnet} == set(NAMES)


def test_an_adapter_counts(adapter_folder, student_folder, task_folder):
    found, without = (values_of(results_of(each, task_folder)) for each in (adapter_folder, student_folder))
    with loaded_subject(adapter_folder) as subject:
        expected = measure_texts(subject.model, subject.tokenizer, TEXTS)
    bits = "local_texts", "bits_per_byte,none"
    assert found[bits] == pytest.approx(expected.bits_per_byte, rel=1e-5)
    assert found[bits] != pytest.approx(without[bits], rel=1e-3)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(teacher_folder, task_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys
from hf_whittle.cli import main
sys.exit(main(sys.argv[1:]))
"""
    )
    files = f"{task_folder}/texts.jsonl"
    command = ["evaluate", teacher_folder, "--tasks", ",".join(NAMES), "--include-path", task_folder, "--json"]
    command += ["--files", files, "--text-column", "page", "--batch-size", "1"]
    found = json.loads(on_two_processes(script, *command))
    rows = {(row["task"], f"{row['metric']},none"): row["value"] for row in found["tasks"]}
    assert rows == pytest.approx(values_of(results_of(teacher_folder, task_folder)), rel=1e-5)
    bits = rows["local_texts", "bits_per_byte,none"]
    assert found["texts"][0]["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_the_tokenizer_and_the_model_are_left_as_they_were(model, tokenizer, task_folder):
    tasks = load_tasks(NAMES[1:2], include_path=task_folder, limit=1)
    model.train()
    run_tasks(model, tokenizer, tasks)
    assert model.training and tokenizer.pad_token is None
    model.eval()


def test_what_cannot_be_run_is_said(task_folder, tmp_path):
    with pytest.raises(DataError, match="lm_eval has no task 'arc_esy': did you mean arc_easy;"):
        check_names(["piqa", "arc_esy"], ["piqa", "arc_easy"])
    with pytest.raises(DataError, match="no task 'mmlu': `lm_eval ls tasks` lists all; give a folder of your own"):
        check_names(["mmlu"], ["piqa", "arc_easy"])
    with pytest.raises(DataError, match="no task was named"):
        load_tasks([])
    with pytest.raises(DataError, match=r"there is no folder .*nowhere of tasks"):
        load_tasks(NAMES, include_path=tmp_path / "nowhere")
    with pytest.raises(DataError, match="limit must be positive, got -1"):
        load_tasks(NAMES, limit=-1)
    with pytest.raises(DataError, match="num_fewshot must be 0 or more, got -2"):
        load_tasks(NAMES, num_fewshot=-2)
    (task_folder / "questions.jsonl").rename(tmp_path / "questions.jsonl")
    try:
        with pytest.raises(DataError, match=r"cannot load the tasks local_answers: .*questions.jsonl"):
            load_tasks(NAMES[2:], include_path=task_folder)
    finally:
        (tmp_path / "questions.jsonl").rename(task_folder / "questions.jsonl")


@pytest.mark.slow
def test_tasks_of_lm_eval_are_found_beside_those_of_a_folder(task_folder):
    with pytest.raises(DataError, match="lm_eval has no task 'hellaswagg': did you mean hellaswag"):
        load_tasks([NAMES[0], "hellaswagg"], include_path=task_folder)
    assert set(load_tasks([str(task_folder / "local_texts.yaml")]).loaded["tasks"]) == {"local_texts"}
