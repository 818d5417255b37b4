"""`hf-whittle info`: what a folder or a repository is."""

import json
from pathlib import Path

import pytest
import torch
from fixtures_stores import store as make_store
from safetensors.torch import save_file
from transformers import AutoConfig, BertConfig

import hf_whittle.demo
from hf_whittle import LogitStore, SubnetConfig, extract_subnet
from hf_whittle.cli import main
from hf_whittle.cli.info import described
from hf_whittle.cost import flops_per_token
from hf_whittle.search.result import SearchResult

CARDS = Path(__file__).parents[1] / "model_cards"
TEACHER = Path(hf_whittle.demo.__file__).parent / "teacher"


def test_a_checkpoint_has_its_sizes_and_costs():
    model = described(str(TEACHER), 64)["model"]
    config = AutoConfig.from_pretrained(TEACHER)
    weights = TEACHER / "model.safetensors"
    assert model["parameters"] == 1_714_176 and model["layers"] == 6 and model["heads"] == 8
    assert model["FLOPs per token"] == flops_per_token(config, sequence_length=64)
    assert model["bytes on disk"] == weights.stat().st_size


@pytest.mark.parametrize("card", ["demo", "demo-stock"])
def test_a_student_has_its_subnet_its_making_and_its_search(card):
    found = described(str(CARDS / card))
    results = json.loads((CARDS / card / "results.json").read_text())
    subnet, search = SubnetConfig.from_pretrained(CARDS / card), SearchResult.load(CARDS / card)
    assert found["model"]["parameters"] == results["student"]["parameters"]
    assert found["subnet"]["digest"] == subnet.digest
    assert found["making"]["trained on tokens"] == results["student"]["tokens"]
    assert found["making"]["trained to perplexity"] == results["student"]["curve"][-1]["perplexity"]
    assert found["search"]["evaluations"] == len(search.evaluations)
    assert found["search"]["best digest"] == search.best.digest


def test_an_extracted_student_names_its_source(tmp_path):
    extract_subnet(TEACHER, SubnetConfig(64, 3, 4, 128), output_dir=tmp_path / "student")
    found = described(str(tmp_path / "student"))
    assert found["making"]["extracted from"] == "teacher"
    assert found["subnet"]["layers kept"] == "3: 0, 1, 2" and found["subnet"]["channels"] == 64


def test_a_store_has_its_encoding_and_size(tmp_path):
    make_store(tmp_path / "store")
    store = LogitStore(tmp_path / "store")
    found = described(str(store.folder))["store"]
    assert found["complete"] and found["tokens"] == store.tokens
    assert found["kept of the teacher"] == store.in_words and found["bytes per token"] == store.bytes_per_token


def test_an_adapter_names_its_model(tmp_path):
    values = {"peft_type": "LORA", "base_model_name_or_path": "me/student", "r": 8, "lora_alpha": 16}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    assert described(str(tmp_path)) == {"adapter": {"type": "LORA", "of": "me/student", "rank": 8, "alpha": 16}}


def test_a_model_without_a_table_says_so(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert described(str(tmp_path))["model"] == {
        "class": "bert",
        "architecture": "bert, which hf_whittle has no table of",
    }


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("adapter_config.json", "{", "adapter_config.json is damaged, or of another version: JSONDecodeError"),
        ("adapter_config.json", "[1]", "adapter_config.json is damaged, or of another version"),
        ("search.json", "{}", "search.json is damaged, or of another version: KeyError"),
        ("store.json", "{}", "store.json is damaged; remove the folder"),
        ("results.json", "{}", "holds no checkpoint, search or store"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, capsys, file, text, message):
    (tmp_path / file).write_text(text)
    assert main(["info", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_json_is_what_the_lines_say(capsys):
    source = str(CARDS / "demo")
    assert main(["info", source, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == described(source)
    assert main(["info", source]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == list(found)
    assert f"{found['model']['parameters']:,}" in next(line for line in lines if line.startswith("  parameters"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "holds no checkpoint, search or store"),
        (["{unknown}"], "cannot load the checkpoint '{unknown}': The checkpoint you are trying to load has model type"),
        (["nowhere/at-all"], "not a folder, and could not be read from the Hub"),
        ([str(TEACHER), "--sequence-length", "0"], "--sequence-length must be at least 1, got 0"),
    ],
)
def test_what_is_nothing_is_one_line_and_exit_status_1(tmp_path, capsys, arguments, message):
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "config.json").write_text('{"model_type": "nonesuch"}')
    folders = {"empty": tmp_path, "unknown": tmp_path / "unknown"}
    assert main(["info", *(argument.format(**folders) for argument in arguments)]) == 1
    output = capsys.readouterr()
    assert message.format(**folders) in output.err and "Traceback" not in output.err and not output.out
