"""Mistakes of a user, command by command: one line that says what to do, and never a stack trace."""

import pytest
import yaml
from fixtures_run import RECIPE, write_modules
from transformers import PreTrainedModel

from hf_whittle import SubnetConfig
from hf_whittle.cli import COMMANDS, main

SUBNET = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def measure_briefly(monkeypatch):
    monkeypatch.setattr("hf_whittle.plan.devices.SECONDS", 0.0)


@pytest.fixture(scope="module")
def place(teacher_folder, tmp_path_factory):
    """A folder with a good recipe, text, subnet and teacher, and what is wrong of each."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "teacher").symlink_to(teacher_folder)
    texts = write_modules(folder / "texts")
    good = RECIPE | {"teacher": "teacher", "output_dir": "out", "data": {**RECIPE["data"], "files": [f"{texts}/*.txt"]}}
    recipes = {
        "good": good,
        "other-key": good | {"teachr": "x"},
        "other-type": good | {"training": {"max_steps": "many"}},
        "no-teacher": good | {"teacher": "nowhere"},
        "no-model": good | {"teacher": "texts"},
        "damaged": good | {"teacher": "damaged"},
        "bert": good | {"teacher": "bert"},
        "no-text": good | {"data": {**good["data"], "files": ["none/*.txt"]}},
        "out-is-file": good | {"output_dir": "file"},
        "no-bin": {name: value for name, value in good.items() if name != "bin"},
        "empty-bin": good | {"bin": {"low": 1, "high": 2}},
    }
    for name, values in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    (folder / "binary.yaml").write_bytes(b"\x00\xff\xfe")
    (folder / "file").write_text("text")
    for name, config in {"damaged": "{", "bert": '{"model_type": "bert"}', "list": "[1]"}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(config)
    (folder / "empty").mkdir()
    SubnetConfig(**SUBNET).save_pretrained(folder)
    (folder / "words.json").write_text("words")
    (folder / "large.json").write_text(SubnetConfig(**SUBNET | {"hidden_size": 4096}).to_json())
    (folder / "list.json").write_text("[1, 2]")
    return folder


RECIPES = {
    "good.yaml --trainin.max_steps 3": "unknown key 'trainin'; did you mean 'training'?",
    "nowhere.yaml": "cannot read the recipe nowhere.yaml",
    "empty": "cannot read the recipe empty",
    "file/recipe.yaml": "cannot read the recipe file/recipe.yaml",
    "binary.yaml": "binary.yaml is not YAML",
    "other-key.yaml": "unknown key 'teachr'; did you mean 'teacher'?",
    "other-type.yaml": "training.max_steps: expected int, got 'many'",
    "no-bin.yaml": "missing bin",
    "no-teacher.yaml": "'nowhere'",
    "no-model.yaml": "cannot load the checkpoint 'texts'",
    "damaged.yaml": "cannot load the checkpoint 'damaged'",
    "bert.yaml": "bert",
}
WITH_TEXT = {"no-text.yaml": "no file matches 'none/*.txt'"}
OF_BIN = {"empty-bin.yaml": "no subnet of this space lies in the bin"}
TEXTS = "--files texts/*.txt"
OUTPUT = {"out-is-file.yaml": "is a file"}
EXTRACT = "--subnet . --output-dir new"
MISTAKES = {
    "run": RECIPES | WITH_TEXT | OF_BIN | OUTPUT,
    "plan": RECIPES
    | OF_BIN
    | {
        "good.yaml --device abacus": "unknown device 'abacus'; give one of t4",
        "good.yaml --subnet nowhere": "cannot read the subnet nowhere",
        "good.yaml --subnet words.json": "words.json is not JSON",
        "good.yaml --utilization 7": "utilization must be above 0 and at most 1, got 7",
        "good.yaml --measure --device t4": "leave out --device",
    },
    "search": RECIPES | WITH_TEXT | OF_BIN | OUTPUT,
    "train": {f"{given} --student teacher": said for given, said in RECIPES.items() if "no-bin" not in given}
    | {
        "good.yaml": "good.yaml searches for its student; give --student",
        "good.yaml --student nowhere": "'nowhere'",
        "good.yaml --student empty": "cannot load the checkpoint 'empty'",
        "good.yaml --student bert": "bert",
        "good.yaml --student teacher --output-dir teacher": "it is the folder of the student",
        "good.yaml --student teacher --output-dir file": "is a file",
    },
    "store-logits": {f"{arguments} --output-dir store": said for arguments, said in RECIPES.items()}
    | {
        "no-text.yaml --output-dir store": "no file matches 'none/*.txt'",
        "good.yaml --output-dir file": "file",
        "good.yaml --output-dir store --draws 0": "draws must be",
        "good.yaml --output-dir store --k 0": "k must be",
    },
    "extract": {
        f"nowhere {EXTRACT}": "nowhere",
        f"texts {EXTRACT}": "texts",
        f"damaged {EXTRACT}": "damaged",
        f"bert {EXTRACT}": "bert",
        "teacher --subnet nowhere --output-dir new": "cannot read the subnet nowhere",
        "teacher --subnet empty --output-dir new": "cannot read the subnet empty/subnet.json",
        "teacher --subnet words.json --output-dir new": "words.json is not JSON",
        "teacher --subnet list.json --output-dir new": "subnet",
        "teacher --subnet large.json --output-dir new": "4096",
        "teacher --subnet . --output-dir texts": "texts exists already and is not an empty folder",
        "teacher --subnet . --output-dir file": "file exists already",
        "teacher --subnet . --output-dir file/new": "file/new",
        f"teacher {EXTRACT} --dtype integers": "integers",
        f"teacher {EXTRACT} --files texts/*.txt": "--files has no effect without --heal",
        f"teacher {EXTRACT} --heal": "--heal needs training text",
        f"teacher {EXTRACT} --heal --files none": "no file matches 'none'",
        f"teacher {EXTRACT} --heal --files texts/*.txt --block-size 9999": "--block-size 9999 exceeds",
    },
    "evaluate": {
        f"nowhere {TEXTS}": "nowhere",
        f"empty {TEXTS}": "empty",
        f"damaged {TEXTS}": "damaged",
        f"bert {TEXTS}": "bert",
        "teacher": "there is nothing to evaluate on",
        "teacher --files none": "no file matches 'none'",
        f"teacher {TEXTS} --subnet large.json": "4096",
        f"teacher {TEXTS} --block-size 9999": "block size must be 2 to 64",
        f"teacher {TEXTS} --device tpu:7": "the device 'tpu:7' cannot be used",
        "teacher --tasks piqa --include-path nowhere": "there is no folder nowhere of tasks",
    },
    "push": {
        "nowhere me/student --dry-run": "nowhere",
        "empty me/student --dry-run": "empty holds no student: config.json is missing",
        "damaged me/student --dry-run": "is not JSON",
        "list me/student --dry-run": "holds no keys and values",
        "teacher me/a/b --dry-run": "me/a/b",
        "teacher me/student --dry-run --lm-eval nowhere.json": "nowhere.json",
        "file me/student --dry-run": "file",
    },
    "info": {
        "nowhere": "'nowhere' is not a folder, and could not be read from the Hub",
        "empty": "empty holds no checkpoint, search or store",
        "file": "'file' is not a folder",
        "damaged": "damaged",
        "list": "list",
        "teacher --sequence-length 0": "--sequence-length must be at least 1, got 0",
    },
    "report": {
        "nowhere": "nowhere",
        "empty": "empty",
        "file": "file",
        "damaged": "damaged",
        ". --output file/report.html": "file/report.html",
    },
    "init": {
        "nowhere": "'nowhere'",
        "empty": "cannot load the checkpoint 'empty'",
        "damaged": "cannot load the checkpoint 'damaged'",
        "bert": "bert",
        "teacher --output good.yaml": "good.yaml exists already; choose another --output",
        "teacher --ratio 2": "must lie between 0 and 1, got 2",
        "teacher --ratio nan": "must lie between 0 and 1, got nan",
        "teacher --parameters 0": "fewer parameters than its teacher",
        "teacher --parameters inf": "fewer parameters than its teacher",
        "teacher --parameters 1e9": "fewer parameters than its teacher",
        "teacher --parameters 10": "no subnet of this space lies in the bin",
        "teacher --files none/*.txt": "no file matches 'none/*.txt'",
        "teacher --output file/recipe.yaml": "file/recipe.yaml",
    },
    "demo": {"--output-dir file": "the output folder file is a file"},
}
USAGE = [
    ["extract", "teacher", "--output-dir", "new"],
    ["extract", "teacher", "--subnet", ".", "--output-dir", "new", "--format", "round"],
    ["init", "teacher", "--parameters", "many"],
    ["init", "teacher", "--files", "a", "--dataset", "b"],
    ["init"],
    ["plan", "good.yaml", "--utilization", "much"],
    ["store-logits", "good.yaml"],
    ["push", "teacher"],
    ["info", "teacher", "--sequence-length", "long"],
    ["demo", "now"],
    ["--print-completion", "cmd"],
    ["walk"],
]


def test_every_command_has_its_mistakes():
    assert MISTAKES.keys() == COMMANDS.keys()


@pytest.mark.slow_after(6)
@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_an_error_that_says_so(place, monkeypatch, capfd, command, as_json):
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.iterdir())
    for arguments, said in MISTAKES[command].items():
        given = [*arguments.split(" "), *(["--json"] if as_json else [])]
        status, printed = main([command, *given]), capfd.readouterr()
        assert status == 1 and printed.out == "", arguments
        *others, last = printed.err.splitlines()
        assert last.startswith("hf-whittle: error: ") and said in last, (arguments, printed.err)
        assert not any("Traceback" in line for line in others), arguments
    assert {path.name for path in place.iterdir()} - set(before) <= {"out", "store"}


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_wrong_usage_shows_how_to_use_the_command(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith("usage: hf-whittle") and "error: " in said


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_an_error(place, monkeypatch, capsys):
    monkeypatch.chdir(place)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "new.yaml")

    monkeypatch.setattr("hf_whittle.files.text.atomic_path", refused)
    assert main(["init", "teacher", "--output", "new.yaml"]) == 1
    said = capsys.readouterr().err
    assert "could not write new.yaml: Permission denied" in said and "make the folder writable" in said


def test_a_full_disk_is_an_error(place, monkeypatch, capsys):
    monkeypatch.chdir(place)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    assert main(["train", "good.yaml", "--student", "teacher", "--output-dir", "full"]) == 1
    assert "free some space, then run the same command again" in capsys.readouterr().err
