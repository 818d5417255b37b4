"""`hf-whittle evaluate`: what it prints, records and refuses."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from fixtures_evaluation import TEXTS
from huggingface_hub import ModelCard

from hf_whittle.cli import main
from hf_whittle.evaluation import measure_texts
from hf_whittle.record.evaluation import EvaluationFacts
from hf_whittle.record.facts import CurvePoint, TrainingFacts
from hf_whittle.record.results import Results, record_evaluation

HOLD = """
import sys
from hf_whittle.files.locks import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def student(student_folder, tmp_path):
    return shutil.copytree(student_folder, tmp_path / "my-student")


@pytest.fixture
def evaluate(capsys):
    """A function that runs the command, and gives the JSON it prints."""

    def run(*arguments):
        assert main(["evaluate", *map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def test_perplexity_is_printed_and_recorded(evaluate, student, text_files):
    before = Results.load(student)
    found = evaluate(student, "--files", f"{text_files}/*.txt", "--block-size", 32)
    (text,) = found["texts"]
    assert text["files"] == ["*.txt"] and text["protocol"] == "documents" and text["block_size"] == 32
    results = Results.load(student)
    assert results.evaluation.to_dict() == {name: found[name] for name in ("texts", "environment")}
    assert results.supernet == before.supernet and results.supernet is not None
    assert text["word_perplexity"] > text["perplexity"] > 1 and text["bytes"] == len("".join(TEXTS).encode())


@pytest.mark.slow
def test_the_card_has_texts_and_tasks(evaluate, student, text_files, task_folder):
    pytest.importorskip("lm_eval", reason="tasks need lm-eval: pip install 'hf_whittle[eval]'")
    tasks = ("--tasks", "local_choices", "--include-path", task_folder)
    evaluate(student, "--files", f"{text_files}/*.txt", "--protocol", "packed", *tasks)
    evaluate(student, *tasks, "--limit", 2, "--num-fewshot", 1)
    results, card = Results.load(student).evaluation, card_of(student)
    (text,) = results.texts
    assert f"| `*.txt` | packed documents, windows of 64 | {text.tokens} |" in card.text
    accuracy = next(row for row in results.tasks if row.metric == "acc" and row.limit is None)
    assert f"| `local_choices` | 0 | `acc` | {accuracy.value:.4g} ± {accuracy.error:.2g} |" in card.text
    assert "| `local_choices`, first 2 examples | 1 | `acc` |" in card.text
    assert "evaluated only on the texts and tasks above" in card.text
    measured = {(each.dataset_name, each.metric_type): each.metric_value for each in card.data.eval_results}
    assert measured["*.txt", "bits_per_byte"] == pytest.approx(text.bits_per_byte, abs=1e-6)
    assert measured["local_choices", "acc"] == pytest.approx(accuracy.value, abs=1e-6)
    assert sum(name == "local_choices" for name, _ in measured) == len({row.metric for row in results.tasks})


@pytest.mark.slow
def test_a_second_evaluation_replaces_the_first_of_the_same_text(evaluate, student, text_files):
    for pattern, protocol in (("*.txt", "documents"), ("[01].txt", "documents"), ("*.txt", "documents")):
        evaluate(student, "--files", f"{text_files}/{pattern}", "--protocol", protocol)
    assert [text.in_words for text in Results.load(student).evaluation.texts] == ["*.txt", "[01].txt"]


def test_a_text_of_the_same_name_in_another_folder_replaces_nothing(evaluate, student, tmp_path):
    for number, text in enumerate(TEXTS[:2]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "text.txt").write_text(text, encoding="utf-8")
        evaluate(student, "--files", tmp_path / str(number) / "text.txt")
    first, second = Results.load(student).evaluation.texts
    assert first.in_words == second.in_words == "text.txt" and first.bytes != second.bytes


def test_metadata_keep_texts_apart_from_the_held_out_one(evaluate, student, text_files):
    results, curve = Results.load(student), (CurvePoint(step=1, perplexity=0.5),)
    replace(results, student=TrainingFacts(parameters=9, tokens=9, steps=1, curve=curve)).save(student)
    for block_size in (16, 32):
        evaluate(student, "--files", f"{text_files}/*.txt", "--block-size", block_size)
    results = [each for each in card_of(student).data.eval_results if each.metric_type == "perplexity"]
    held_out, *texts = [(each.dataset_name, each.metric_name) for each in results]
    assert held_out == ("evaluation data", None)
    assert texts == [("*.txt", f"perplexity (documents, windows of {size})") for size in (16, 32)]


def test_adapters_have_a_card_of_their_own(evaluate, adapter_folder, text_files, tmp_path):
    folder = shutil.copytree(adapter_folder, tmp_path / "my-adapter")
    (folder / "README.md").unlink()  # peft's own
    evaluate(folder, "--files", f"{text_files}/*.txt")
    assert not (folder / "results.json").exists()  # nothing says that it is of a student
    (text,) = evaluate(folder, "--files", f"{text_files}/*.txt", "--save")["texts"]
    card = card_of(folder)
    assert card.data.library_name == "peft" and card.data.eval_results[0].metric_value == round(text["perplexity"], 6)


def test_a_card_that_somebody_wrote_is_left_alone(evaluate, student, text_files):
    (student / "README.md").write_text("# My own words\n")
    evaluate(student, "--files", f"{text_files}/*.txt")
    assert (student / "README.md").read_text() == "# My own words\n"
    assert Results.load(student).evaluation is not None


def test_nothing_is_written_where_it_does_not_belong(evaluate, teacher_folder, student, text_files):
    before = {path: path.read_bytes() for folder in (teacher_folder, student) for path in folder.iterdir()}
    files = ("--files", f"{text_files}/*.txt")
    whole = evaluate(teacher_folder, *files)
    cut = evaluate(teacher_folder, *files, "--subnet", student)
    alone = evaluate(student, *files, "--no-save")
    after = {path: path.read_bytes() for folder in (teacher_folder, student) for path in folder.iterdir()}
    assert after == before
    perplexities = [each["texts"][0]["perplexity"] for each in (whole, cut, alone)]
    assert perplexities[1] == pytest.approx(perplexities[2], rel=1e-6) != perplexities[0]


def test_results_are_printed_even_if_they_cannot_be_recorded(student, text_files, capsys):
    command = [sys.executable, "-c", HOLD, str(student)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert main(["evaluate", str(student), "--files", f"{text_files}/*.txt"]) == 1
        holder.communicate("")
    printed = capsys.readouterr().err
    assert "bits per byte" in printed and "is being written by another process" in printed


def test_results_are_printed_even_if_another_file_is_damaged(student, text_files, capsys):
    (student / "lm_eval.json").write_text("{")
    assert main(["evaluate", str(student), "--files", f"{text_files}/*.txt"]) == 1
    printed = capsys.readouterr().err
    assert "bits per byte" in printed and "lm_eval.json holds no results" in printed


def test_a_table_is_printed_for_people(student, text_files, model, tokenizer, teacher_folder, capsys):
    assert main(["evaluate", str(teacher_folder), "--files", f"{text_files}/*.txt"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "text" and head.endswith("word perplexity")
    perplexity = measure_texts(model, tokenizer, TEXTS).perplexity
    assert row.split()[:2] == ["*.txt", "documents"] and float(row.split()[4]) == pytest.approx(perplexity, rel=1e-4)


def test_a_dataset_is_evaluated_on_its_test_split(evaluate, teacher_folder, tmp_path):
    for split, texts in (("train", TEXTS[:1]), ("test", TEXTS)):
        rows = [json.dumps({"page": text}) for text in texts]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (text,) = evaluate(teacher_folder, "--dataset", tmp_path, "--text-column", "page")["texts"]
    assert text["split"] == "test" and text["folder"] == tmp_path.name
    assert text["bytes"] == len("".join(TEXTS).encode())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is nothing to evaluate on: give text with --files or --dataset, or --tasks"),
        (("--files", "a", "--dataset", "b"), "give either --files or --dataset, not both"),
        (("--tasks", "a", "--protocol", "text"), "--protocol has no effect without --files or --dataset"),
        (("--files", "a", "--limit", "3"), "--limit has no effect without --tasks"),
        (("--files", "a", "--device", "tpu:7"), "the device 'tpu:7' cannot be used"),
        (("--files", "a", "--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("--files", "nowhere/*.txt"), "no file matches 'nowhere/*.txt'"),
        (("--files", "a", "--subnet", "none.json"), "cannot read the subnet none.json"),
        (("--files", "a", "--subnet", "s", "--save"), "--save records in the folder of a student"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_a_model_is_loaded(arguments, message, capsys):
    assert main(["evaluate", "no-model", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_evaluations_are_kept_beside_those_of_others(tmp_path):
    rows = [{"task": "a", "title": "a", "metric": "acc", "value": value} for value in (0.25, 0.5)]
    other = {"task": "b", "title": "b", "metric": "acc", "value": 0.125}
    for tasks in ([rows[0], other], [rows[1]]):
        record_evaluation(tmp_path, EvaluationFacts.from_dict({"tasks": tasks}))
    assert [row.value for row in Results.load(tmp_path).evaluation.tasks] == [0.5, 0.125]
