"""The command line: its options, its exit status and its errors."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fixtures_run import write_modules
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_whittle.run
from hf_whittle import SubnetConfig, __version__, extract_subnet
from hf_whittle.cli import COMMANDS, SECONDS_OF_BARS, SPINS, main, make_parser, wait_briefly
from hf_whittle.cli.extract import facts_of, summary
from hf_whittle.errors import BinError, OutputError
from hf_whittle.progress import LINES_EVERY
from hf_whittle.run.inputs import Inputs

RECIPE = {
    "teacher": "someone/teacher",
    "output_dir": "out",
    "data": {"files": ["none/*.txt"]},
    "bin": {"low": 1, "high": 2},
}
OPTIONS = {
    "init": {"-h", "--help", "teacher", "--parameters", "--ratio", "--files", "--dataset", "--output", "--json"},
    "run": {"-h", "--help", "recipe", "--output-dir", "--json"},
    "search": {"-h", "--help", "recipe", "--output-dir", "--json"},
    "train": {"-h", "--help", "recipe", "--student", "--output-dir", "--json"},
    "plan": {
        *("-h", "--help", "recipe", "--device", "--utilization", "--measure", "--subnet", "--processes"),
        *("--read-text", "--json"),
    },
    "extract": {
        *("-h", "--help", "checkpoint", "--subnet", "--output-dir", "--format", "--dtype", "--max-shard-size"),
        *("--revision", "--heal", "--files", "--dataset", "--dataset-config", "--split", "--text-column"),
        *("--block-size", "--calibration-tokens", "--json"),
    },
    "evaluate": {
        *("-h", "--help", "model", "--subnet", "--revision", "--files", "--dataset", "--dataset-config", "--split"),
        *("--text-column", "--protocol", "--tasks", "--num-fewshot", "--limit", "--include-path", "--block-size"),
        *("--batch-size", "--dtype", "--device", "--save", "--no-save", "--json"),
    },
    "push": {
        *("-h", "--help", "folder", "repo_id", "--dry-run", "--private", "--revision", "--create-pr"),
        *("--commit-message", "--overwrite", "--license", "--language", "--lm-eval", "--json"),
    },
    "info": {"-h", "--help", "source", "--sequence-length", "--json"},
    "demo": {"-h", "--help", "--output-dir", "--json"},
    "report": {"-h", "--help", "folders", "--output", "--prompt", "--json"},
    "store-logits": {
        *("-h", "--help", "recipe", "--output-dir", "--kind", "--draws", "--k", "--seed", "--batch-size", "--json"),
    },
}
RESULTS = {
    "teacher": {"parameters": 2_000_000, "perplexity": 5.5},
    "student": {
        "parameters": 1_000_000,
        "tokens": 4096,
        "curve": [{"tokens": 0, "perplexity": 300.25}, {"tokens": 4096, "perplexity": 12.5}],
    },
}
BASELINE = {
    "baseline": {
        "parameters": 1_000_000,
        "tokens": 4096,
        "curve": [{"tokens": 0, "perplexity": 400.0}, {"tokens": 4096, "perplexity": 20.0}],
    },
    "to_match": {
        "perplexity": 20.0,
        "baseline_tokens": 4096,
        "baseline_flops": 6e12,
        "student_tokens": 1024,
        "student_flops": {"search": 5e11, "training": 1e12, "teacher": 1.5e12},
        "flops_ratio": 2.0,
        "tokens_ratio": 4.0,
    },
}


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture
def run_gives(monkeypatch):
    """A function that makes `run` return or raise an outcome, and gives the list of recipes it is called with."""
    recipes = []

    def gives(outcome):
        def run(recipe):
            recipes.append(recipe)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(hf_whittle.run, "run", run)
        return recipes

    return gives


def options_of(parser):
    return {name for action in parser._actions for name in action.option_strings or [action.dest]}


def test_options_are_frozen():
    parser = make_parser()
    assert options_of(parser) == {"-h", "--help", "--version", "--print-completion", "command"}
    commands = next(action.choices for action in parser._actions if action.dest == "command")
    assert {name: options_of(command) for name, command in commands.items()} == OPTIONS
    assert set(COMMANDS) == set(OPTIONS)


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_wait_briefly_unless_the_user_says_how_they_wait(given):
    environment = dict(given)
    wait_briefly(environment)
    assert environment == (given or {"GOMP_SPINCOUNT": SPINS})


@pytest.mark.slow
def test_bars_of_other_libraries_are_seldom_where_stderr_is_no_terminal(run_python):
    script = """
        import contextlib, io, os, sys
        from hf_whittle.cli import show_seldom
        assert "tqdm" not in sys.modules
        show_seldom(os.environ)
        from datasets.utils import tqdm
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            bar = tqdm(range(1000), desc="tokenize")
            assert len(list(bar)) == 1000
        print(bar.mininterval, bar.delay, repr(said.getvalue()))
    """
    assert run_python(script) == "30.0 30.0 ''\n"
    assert float(SECONDS_OF_BARS) == LINES_EVERY


@pytest.mark.slow
def test_how_threads_wait_is_said_before_torch_is_imported():
    code = """
import os, sys
from hf_whittle.cli import main
assert "torch" not in sys.modules
main(["push", "no-folder", "me/student", "--dry-run"])
print(os.environ["GOMP_SPINCOUNT"])
"""
    environment = {name: value for name, value in os.environ.items() if "OMP" not in name}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.split()[-1] == SPINS


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("arguments", [[], ["walk"], ["run"]])
def test_wrong_usage_exits_2_and_shows_it(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage: hf-whittle" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        (yaml.safe_dump(RECIPE | {"teachr": "x"}), "unknown key 'teachr'; did you mean 'teacher'"),
        (
            yaml.safe_dump(RECIPE | {"baseline": "x"}),
            "baseline: expected true, false or fields of DistillationConfig, got 'x'",
        ),
        ("- a list", "a recipe is a mapping of keys to values"),
        ("teacher: [unfinished\nbin: {", "is not YAML"),
    ],
)
def test_a_bad_recipe_is_one_line_and_exit_status_1(recipe_file, capsys, text, message):
    recipe_file.write_text(text)
    assert main(["run", str(recipe_file)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("hf-whittle: error: ") and message in captured.err
    assert captured.err.count("\n") == 1


def test_a_missing_teacher_is_an_error_without_traceback(recipe_file, capsys):
    (recipe_file.parent / "text.txt").write_text("text " * 1000)
    recipe = RECIPE | {"teacher": "nowhere/at_all", "data": {"files": ["text.txt"]}}
    recipe_file.write_text(yaml.safe_dump(recipe))
    assert main(["run", str(recipe_file)]) == 1
    error = capsys.readouterr().err
    assert "hf-whittle: error: " in error and "nowhere/at_all" in error


def test_an_error_of_the_run_is_one_line(recipe_file, run_gives, capsys):
    run_gives(BinError("no subnet fits"))
    assert main(["run", str(recipe_file)]) == 1
    assert capsys.readouterr().err == "hf-whittle: error: no subnet fits\n"


def test_the_number_of_an_error_is_not_printed(recipe_file, run_gives, capsys):
    run_gives(OutputError(errno.EBUSY, "out is being written by another process"))
    assert main(["run", str(recipe_file)]) == 1
    assert capsys.readouterr().err == "hf-whittle: error: out is being written by another process\n"


@pytest.mark.parametrize(
    "error, message",
    [
        (ImportError("install pymoo to search with nsga2"), "install pymoo"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "check the disk"),
        (OSError(28, "No space left on device"), "free some space, then run the same command again"),
        (Exception("No space left on device (os error 28)"), "free some space, then run the same command again"),
    ],
)
def test_what_a_user_can_mend_is_one_line_whoever_raises_it(recipe_file, run_gives, capsys, error, message):
    run_gives(error)
    assert main(["run", str(recipe_file)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("hf-whittle: error: ") and message in said and said.count("\n") == 1


def test_an_error_of_ours_is_not_hidden(recipe_file, run_gives):
    run_gives(AssertionError("we broke it"))
    with pytest.raises(AssertionError, match="we broke it"):
        main(["run", str(recipe_file)])


def test_interruption_is_exit_status_130_and_says_how_to_go_on(recipe_file, run_gives, capsys):
    run_gives(KeyboardInterrupt())
    assert main(["run", str(recipe_file)]) == 130
    assert capsys.readouterr().err == "\nhf-whittle: interrupted; run the same command again to go on\n"


@pytest.mark.parametrize(
    "arguments, advice",
    [
        (["extract", "x", "--subnet", "y", "--output-dir", "z"], "nothing was written, run the same command again"),
        (["push", "x", "y"], "run the same command again; files that were uploaded are not sent twice"),
        (["store-logits", "x", "--output-dir", "y"], "run the same command again to go on"),
        (["demo"], "run the same command again to go on"),
        (["report", "x"], "nothing was written, run the same command again"),
    ],
)
def test_interruption_of_any_command_says_how_to_go_on(monkeypatch, capsys, arguments, advice):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS[arguments[0]], "main", interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err == f"\nhf-whittle: interrupted; {advice}\n"


def test_keys_on_the_command_line_are_those_of_the_recipe(recipe_file, run_gives):
    recipes = run_gives(RESULTS)
    keys = ["--training.max_steps", "7", "--training.learning_rate=1e-4", "--training.bf16", "--heal", "no"]
    assert main(["run", str(recipe_file), *keys, "--data.files", "[a.txt, b.txt]", "--search.seed", "3"]) == 0
    (recipe,) = recipes
    assert recipe.training == {"max_steps": 7, "learning_rate": 1e-4, "bf16": True}
    assert recipe.heal is False and recipe.data.files == ["a.txt", "b.txt"] and recipe.search.algorithm.seed == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--trainin.max_steps", "7"], "unknown key 'trainin'; did you mean 'training'?"),
        (["--ouput-dir", "elsewhere"], "unknown key 'ouput-dir'; did you mean 'output_dir'?"),
        (["--training.max_steps", "many"], "training.max_steps: expected int"),
        (["7"], "unexpected argument '7'; give keys of the recipe as --training.max_steps 100"),
        (["--search.seed", "1", "--search.seed=2"], "--search.seed is given twice"),
        (["--heal", "false", "--heal.ridge", "[1]"], "--heal.ridge: heal is given as a whole, too"),
        (["--heal.ridge", "[1]", "--heal", "false"], "--heal is given twice, or with keys of it"),
        (["--data", "{files: [a], files: [b]}"], "'files' is given twice"),
    ],
)
def test_a_wrong_key_on_the_command_line_is_one_line(recipe_file, run_gives, capsys, keys, message):
    recipes = run_gives(RESULTS)
    assert main(["run", str(recipe_file), *keys]) == 1
    assert message in capsys.readouterr().err and not recipes


def test_keys_before_the_recipe_are_one_line(recipe_file, run_gives, capsys):
    recipes = run_gives(RESULTS)
    assert main(["run", "--training.max_steps", "7", str(recipe_file)]) == 1
    assert "there is no recipe 7; keys come after the recipe" in capsys.readouterr().err and not recipes


def test_a_number_in_a_key_is_the_number_of_a_device(recipe_file, run_gives):
    recipes = run_gives(RESULTS)
    keys = ["--supernet_options.device_map", "auto", "--supernet_options.max_memory.0", "20GiB"]
    assert main(["run", str(recipe_file), *keys]) == 0
    assert recipes[0].supernet_options.max_memory == {0: "20GiB"}


def test_commands_without_a_recipe_take_no_keys(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["info", "folder", "--training.max_steps", "7"])
    assert caught.value.code == 2 and "unrecognized arguments: --training.max_steps 7" in capsys.readouterr().err


def test_output_dir_replaces_that_of_the_recipe(recipe_file, run_gives, capsys):
    recipes = run_gives(RESULTS)
    assert main(["run", str(recipe_file)]) == 0
    assert main(["run", str(recipe_file), "--output-dir", "elsewhere"]) == 0
    assert [recipe.output_dir for recipe in recipes] == ["out", "elsewhere"]
    assert capsys.readouterr().out.rstrip().endswith("The student, its card and the search are in elsewhere")


def table_of(output):
    return {line.split("  ")[0]: line.split()[-4:] for line in output.splitlines() if line}


def test_summary_without_a_baseline_says_what_is_known_alone(recipe_file, run_gives, capsys):
    run_gives(RESULTS)
    main(["run", str(recipe_file)])
    output = capsys.readouterr().out
    assert "random" not in output and "None" not in output
    assert table_of(output)["student"] == ["1,000,000", "300.250", "12.500", "4,096"]


def test_summary_says_what_matching_the_baseline_took(recipe_file, run_gives, capsys):
    run_gives(RESULTS | BASELINE)
    main(["run", str(recipe_file)])
    output = capsys.readouterr().out
    assert table_of(output)["student"] == ["12.500", "4,096", "1,024", "3.00e+12"]
    assert table_of(output)["random initialization"] == ["20.000", "4,096", "4,096", "6.00e+12"]
    assert "matched the baseline with 4.0 times fewer training tokens; FLOPs ratio 2.00" in output


def test_summary_says_that_the_baseline_was_not_matched(recipe_file, run_gives, capsys):
    known = {name: BASELINE["to_match"][name] for name in ("perplexity", "baseline_tokens", "baseline_flops")}
    run_gives(RESULTS | BASELINE | {"to_match": known})
    main(["run", str(recipe_file)])
    assert "did not reach the baseline's final perplexity within its tokens" in capsys.readouterr().out


def test_summary_of_a_student_that_matched_without_training(recipe_file, run_gives, capsys):
    match = {name: value for name, value in BASELINE["to_match"].items() if name != "tokens_ratio"}
    run_gives(RESULTS | BASELINE | {"to_match": match | {"student_tokens": 0}})
    main(["run", str(recipe_file)])
    expected = "was as good as the baseline before any training, so that the FLOPs ratio 2.00 grows with the baseline's"
    assert expected in capsys.readouterr().out


@pytest.mark.slow
def test_installed_command_exits_as_main_does(recipe_file):
    command = [str(Path(sys.executable).with_name("hf-whittle")), "run", str(recipe_file.with_name("none.yaml"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("hf-whittle: error: cannot read the recipe")


# extract


@pytest.fixture
def extract(teacher_folder, uneven_subnet, tmp_path, monkeypatch):
    """A function that runs `hf-whittle extract` on the tiny teacher, into `out`, and gives its exit status."""
    monkeypatch.chdir(tmp_path)
    uneven_subnet.save_pretrained(tmp_path)

    def run(*options, subnet="subnet.json", output_dir="out"):
        needed = ["extract", str(teacher_folder), "--subnet", str(subnet), "--output-dir", output_dir]
        return main([*needed, *map(str, options)])

    return run


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_modules(tmp_path_factory.mktemp("texts"), 10)


def weights_in(folder):
    return {name: tensor for file in Path(folder).glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_weights(folder, student):
    expected, got = student.state_dict(), weights_in(folder)
    expected["embed_out.weight"] = expected.pop("lm_head.weight")  # its name in files
    assert expected.keys() == got.keys() and all(expected[name].equal(got[name]) for name in got)


@pytest.mark.parametrize("subnet", ["subnet.json", "."])
def test_extract_writes_the_student_of_the_subnet(extract, teacher_folder, uneven_subnet, subnet, capsys):
    assert extract(subnet=subnet) == 0
    expected = extract_subnet(teacher_folder, uneven_subnet, progress=False)
    assert_same_weights("out", expected)
    assert SubnetConfig.from_pretrained("out") == uneven_subnet and not Path("out", "healing.json").exists()
    assert AutoTokenizer.from_pretrained("out").eos_token == "<|endoftext|>"
    size = Path("out", "model.safetensors").stat().st_size / 1e6
    assert capsys.readouterr().out == (
        f"A WhittleGPTNeoXForCausalLM of {expected.num_parameters():,} parameters is in out: {size:.1f} MB of weights "
        "in 1 file\n"
    )


def test_extract_takes_format_type_and_size_of_files(extract, teacher_folder, tmp_path, capsys):
    subnet = SubnetConfig(32, [0, 2, 4], [2, 4, 1], [40, 64, 16])
    (tmp_path / "layers").mkdir()
    subnet.save_pretrained(tmp_path / "layers")
    options = ("--format", "padded", "--dtype", "bfloat16", "--max-shard-size", 20_000)
    assert extract(*options, subnet="layers") == 0
    expected = extract_subnet(teacher_folder, subnet, format="padded", dtype=torch.bfloat16, progress=False)
    assert_same_weights("out", expected)
    files = list(Path("out").glob("*.safetensors"))
    assert len(files) > 1 and f"weights in {len(files)} files" in capsys.readouterr().out


@pytest.mark.slow
def test_extract_heals_on_text(extract, texts, capsys):
    assert extract("--heal", "--files", f"{texts}/*.txt", "--block-size", 32, "--calibration-tokens", 500) == 0
    report = json.loads(Path("out", "healing.json").read_text())
    assert (report["tokens"], report["held_out_tokens"]) == (12 * 32, 3 * 32)
    said = capsys.readouterr().out.splitlines()[1]
    before, after = (f"{report[f'perplexity_{when}']:.3f}" for when in ("before", "after"))
    assert said.startswith("Healed on 384 tokens" if report["is_healed"] else "Left as sliced: healing on 384 tokens")
    assert "96 others" in said and said.endswith(f"from {before} to {after}")
    AutoModelForCausalLM.from_pretrained("out")


@pytest.mark.parametrize(
    "is_healed, summarized",
    [
        (True, "Healed on 1,280 tokens: its perplexity on 320 others fell from 61.500 to 35.250"),
        (
            False,
            "Left as sliced: healing on 1,280 tokens would have taken its perplexity on 320 others from 61.500 to "
            "35.250",
        ),
    ],
)
def test_the_summary_describes_healing(extract, capsys, is_healed, summarized):
    extract()
    report = {"is_healed": is_healed, "perplexity_before": 61.5, "perplexity_after": 35.25, "tokens": 1280}
    Path("out", "healing.json").write_text(json.dumps(report | {"held_out_tokens": 320}))
    assert summary(facts_of(Path("out"))).splitlines()[1] == summarized


TEXT = ("--files", "text.txt")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--heal"], "--heal needs training text: give either --files or --dataset"),
        (["--heal", *TEXT, "--dataset", "someone/text"], "--heal needs training text: give either --files or"),
        (TEXT, "--files has no effect without --heal; add --heal, or leave it out"),
        (["--text-column", "x", "--block-size", 8], "--text-column, --block-size has no effect without --heal"),
        (["--heal", *TEXT, "--block-size", 1024], "--block-size 1024 exceeds the 64 positions of"),
        (["--heal", *TEXT], "the streamed documents give less than one block of 64"),
        (["--heal", *TEXT, "--block-size", 1], "a block needs at least 2 tokens to predict one, got block_size=1"),
        (["--heal", *TEXT, "--block-size", 32], "the streamed documents give less than one block of 32"),
        (["--heal", "--files", "none/*.txt", "--block-size", 32], "no file matches 'none/*.txt'"),
        (["--heal", *TEXT, "--text-column", "x", "--block-size", 8], "no column 'x', only ['text']"),
        (["--dtype", "int8"], "dtype must be a floating-point type such as torch.bfloat16 or 'bfloat16', got 'int8'"),
        (["--format", "stock"], "stock"),
    ],
)
def test_what_extract_cannot_do_is_one_line_and_exit_status_1(extract, capsys, options, message):
    Path("text.txt").write_text("x = 1\n")
    assert extract(*options) == 1
    captured = capsys.readouterr()
    error = next(line for line in captured.err.splitlines() if line.startswith("hf-whittle: error: "))
    assert captured.out == "" and message in error and not Path("out").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot read the subnet other.json: No such file or directory; give a subnet.json, or a folder with"),
        ("{unfinished", "other.json is not JSON: "),
        ('{"hidden_size": 8}', "a subnet has the keys"),
    ],
)
def test_a_file_that_is_no_subnet_is_an_error(extract, capsys, text, message):
    if text is not None:
        Path("other.json").write_text(text)
    assert extract(subnet="other.json") == 1
    assert message in capsys.readouterr().err


def test_extract_finds_out_before_it_reads_that_its_folder_cannot_be(extract, capsys, monkeypatch):
    monkeypatch.setattr("hf_whittle.cli.extract._blocks", lambda options: pytest.fail("text was read"))
    heal = ["--heal", "--files", "none/*.txt"]
    Path("in-the-way").write_text("")
    assert extract(*heal, "--output-dir", "in-the-way/out") == 1
    assert "in the way there" in capsys.readouterr().err
    Path("full").mkdir()
    Path("full", "file").write_text("")
    assert extract(*heal, "--output-dir", "full") == 1
    assert "full exists already and is not an empty folder" in capsys.readouterr().err


def test_extract_does_not_begin_with_what_could_not_be_saved(
    capsys, teacher_folder, uneven_subnet, tmp_path, monkeypatch
):
    uneven_subnet.save_pretrained(tmp_path)
    bad = shutil.copytree(teacher_folder, tmp_path / "bad")
    (bad / "generation_config.json").write_text('{"temperature": 0.5}')
    monkeypatch.setattr(
        "hf_whittle.extraction.extraction.extract_from_checkpoint", lambda *_: pytest.fail("it was extracted")
    )
    command = ["extract", str(bad), "--subnet", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert main(command) == 1
    assert "generation configuration contradicts itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--draws", "0"], "draws must be at least 1, got 0"),
        (["--kind", "top-k", "--k", "0"], "k must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be an integer from 0"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--output-dir", "in-the-way/store"], "in the way there"),
    ],
)
def test_store_logits_finds_out_before_it_loads_anything(recipe_file, capsys, monkeypatch, options, message):
    for name in ("load_teacher", "blocks"):
        monkeypatch.setattr(Inputs, name, property(lambda inputs: pytest.fail("it was loaded")))
    monkeypatch.chdir(recipe_file.parent)
    Path("in-the-way").write_text("")
    assert main(["store-logits", str(recipe_file), "--output-dir", "store", *options]) == 1
    assert message in capsys.readouterr().err


def test_store_logits_finds_out_before_it_loads_anything_how_the_teacher_is_loaded(recipe_file, capsys, monkeypatch):
    for name in ("load_teacher", "blocks"):
        monkeypatch.setattr(Inputs, name, property(lambda inputs: pytest.fail("it was loaded")))
    monkeypatch.setattr("hf_whittle.run.preflight.num_launched", lambda: 2)
    monkeypatch.chdir(recipe_file.parent)
    options = ["--output-dir", "store", "--teacher_options.device_map", "auto"]
    assert main(["store-logits", str(recipe_file), *options]) == 1
    assert "teacher_options.device_map: a launcher gives each process" in capsys.readouterr().err


def test_extract_needs_an_empty_folder(extract, capsys):
    assert extract() == 0 and extract() == 1
    assert "out exists already and is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "3XB", "-5"])
def test_a_size_of_files_that_is_none_is_wrong_usage(extract, capsys, size):
    with pytest.raises(SystemExit) as caught:
        extract(f"--max-shard-size={size}")
    assert caught.value.code == 2 and "max_shard_size must be a number of bytes above 0, or" in capsys.readouterr().err
