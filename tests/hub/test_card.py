"""Model cards: what a user wrote cannot break them, and every number is one of the results."""

import copy

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_whittle import SubnetConfig, SubnetModelCardData
from hf_whittle.hub.card import write_card
from hf_whittle.recipe import FITNESSES, Recipe

SUBNET = SubnetConfig(24, [0, 2, 3], [2, 4, 1], [64, 32, 48])
RESULTS = {
    "search": {
        "evaluations": 57,
        "tokens_per_evaluation": 4096,
        "tokens": 233472,
        "flops": 3.3e12,
        "perplexity": 71.23,
        "subnet": SUBNET.to_dict(),
        "parameters": 1_234_567,
        "seconds": 12.0,
    },
    "student": {
        "parameters": 1_234_567,
        "tokens": 5_000_000,
        "flops_per_token": {"student": 7_000_000, "teacher": 3_000_000},
        "curve": [
            {"step": 0, "tokens": 0, "perplexity": 77.77},
            {"step": 9, "tokens": 5_000_000, "perplexity": 12.345678},
        ],
        "arguments": {
            "alpha": 0.25,
            "beta": 0.75,
            "temperature": 1.5,
            "learning_rate": 0.003,
            "lr_scheduler_type": "cosine",
            "train_batch_size": 8,
            "gradient_accumulation_steps": 3,
            "max_steps": 9,
            "seed": 42,
            "bf16": False,
        },
        "seconds": 321.4,
    },
    "teacher": {"name": "someone/teacher", "parameters": 9_876_543, "perplexity": 8.765, "test_tokens": 16384},
    "environment": {
        "hf_whittle": "0.1",
        "transformers": "5.23",
        "torch": "2.13",
        "python": "3.11.7",
        "hardware": "CPU, 1 threads",
    },
}
BASELINE = {
    "baseline": {
        "parameters": 1_234_567,
        "tokens": 5_000_000,
        "flops_per_token": {"student": 7_000_000, "teacher": 0},
        "curve": [{"step": 0, "tokens": 0, "perplexity": 301.5}, {"step": 9, "tokens": 5_000_000, "perplexity": 23.45}],
    },
    "to_match": {
        "perplexity": 23.45,
        "baseline_tokens": 5_000_000,
        "baseline_flops": 3.5e13,
        "student_tokens": 1_250_000,
        "student_flops": {"search": 3.3e12, "training": 8.75e12, "teacher": 3.75e12},
        "flops_ratio": 2.215,
        "tokens_ratio": 4.0,
    },
}
NASTY = [
    '"</script>',
    "`code` and ``more``",
    "line\nbreak: [unclosed",
    "a | b | c",
    "- x: {y}\n---\n# title",
    "*&!%@ 'single' \"double\" #comment",
    "{{ 7 * 7 }} {% raw %}",
    "é中 \\n \\",
]


def make_recipe(output_dir="out/my-student", dataset="someone/text", **changes):
    values = {
        "teacher": "someone/teacher",
        "output_dir": str(output_dir),
        "data": {"dataset": dataset, "block_size": 256},
        "bin": {"low": 1_100_000, "high": 1_300_000},
        "search": {"seed": 5, "fitness": "perplexity"},
        "heal": False,
    }
    return Recipe.from_dict(values | changes)


def card_of(folder, recipe, results=RESULTS):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    write_card(folder, recipe, copy.deepcopy(results))
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, front, page = ("\n" + text).split("\n---\n", 2)
    return yaml.safe_load(front), page


def row(page, start):
    line = next(line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_metadata_is_that_of_the_run(tmp_path):
    metadata, _ = card_of(tmp_path, make_recipe(supernet="someone/supernet"))
    assert metadata["base_model"] == ["someone/supernet", "someone/teacher"]
    assert metadata["datasets"] == ["someone/text"]
    assert metadata["pipeline_tag"] == "text-generation" and "arxiv:2510.07227" in metadata["tags"]
    (entry,) = metadata["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "my-student" and result["dataset"] == {"name": "someone/text", "type": "someone/text"}
    assert result["metrics"] == [{"type": "perplexity", "value": 12.3457}]


def test_hub_client_reads_the_metadata_back(tmp_path):
    card_of(tmp_path, make_recipe())
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.model_name == "my-student" and card.data.eval_results[0].metric_value == 12.3457


def test_numbers_on_the_page_are_those_of_the_results(tmp_path):
    _, page = card_of(tmp_path, make_recipe(), RESULTS | BASELINE)
    assert row(page, "this student")[:4] == ["1.23M", "77.77", "12.35", "5M"]
    assert row(page, "same architecture, random initialization") == ["1.23M", "301.5", "23.45", "5M"]
    assert row(page, "teacher") == ["9.88M", "", "8.765", ""]
    assert row(page, "random initialization") == ["5M", "35T", "", ""]
    assert row(page[page.index("of which search") :], "this student") == ["1.25M", "15.8T", "3.3T", "3.75T"]
    assert "after 4 times fewer training tokens" in page and "perplexity of 23.45" in page
    assert (
        "with seed 5, made 57 evaluations of subnets of 1.1M to 1.3M parameters" in page
        and "on at most 4,096 tokens" in page
    )
    assert "0.25 x cross-entropy + 0.75 x T² x KL(teacher || student), T = 1.5" in page
    assert "batches of 24 blocks, seed 42" in page and "Training took 321 s on CPU, 1 threads" in page


def test_title_of_the_page_is_the_name_of_the_folder(tmp_path):
    _, page = card_of(tmp_path, make_recipe())
    assert page.lstrip().startswith("# my-student\n")


def test_layers_on_the_page_are_those_of_the_subnet(tmp_path):
    _, page = card_of(tmp_path, make_recipe())
    table = page[page.index("| cut from layer |") :]
    assert "It keeps 24 channels" in page
    assert [row(table, i) for i in range(3)] == [["0", "2", "64"], ["2", "4", "32"], ["3", "1", "48"]]


def test_what_is_unknown_is_left_out(tmp_path):
    student = {name: value for name, value in RESULTS["student"].items() if name != "seconds"}
    metadata, page = card_of(tmp_path, make_recipe(), RESULTS | {"student": student})
    assert not [word for word in ("None", "random initialization", "baseline", "Training took") if word in page]
    assert None not in metadata.values() and "license" not in metadata


def test_a_match_that_was_not_reached_is_said_and_not_counted(tmp_path):
    known = {name: BASELINE["to_match"][name] for name in ("perplexity", "baseline_tokens", "baseline_flops")}
    _, page = card_of(tmp_path, make_recipe(), RESULTS | BASELINE | {"to_match": known})
    assert "This student did not reach it within its 5M tokens" in page and "times fewer" not in page


SEARCHED = (
    "The search, algorithm `{algorithm}` with seed 5, made 57 evaluations of subnets of 1.1M to 1.3M parameters in the "
    "coarse layer-wise space, by {fitness} on at most 4,096 tokens each, 233,472 tokens in all."
)
COSTS = ("search", "healing", "teacher")
HEALING = {
    "is_healed": True,
    "perplexity_before": 71.5,
    "perplexity_after": 31.25,
    "tokens": 104_448,
    "held_out_tokens": 26_624,
    "flops": 4e11,
}


def how_it_was_found(page):
    """The section's text up to its first picture, in one line."""
    section = page.split("## How it was found", 1)[1]
    return " ".join(section[: section.index("![")].split())


def test_a_search_by_perplexity_is_told_in_two_sentences(tmp_path):
    _, page = card_of(tmp_path, make_recipe())
    searched = SEARCHED.format(algorithm="additive", fitness="perplexity")
    assert how_it_was_found(page) == f"{searched} The best had a perplexity of 71.23 before training."
    assert "heal" not in page


def test_a_staged_search_and_healing_are_told_in_words(tmp_path):
    search = {"algorithm": "multi-fidelity", "fitness": "staged", "seed": 5, "probe": {"steps": 30}}
    found = RESULTS["search"] | {"fitness": {"name": "staged", "value": 23.456}}
    recipe = make_recipe(search=search, heal=True)
    _, page = card_of(tmp_path, recipe, RESULTS | {"search": found, "healing": HEALING})
    assert how_it_was_found(page) == (
        f"{SEARCHED.format(algorithm='multi-fidelity', fitness='staged')} It took the subnet with the lowest "
        "perplexity of its student after 30 steps of training, among those that perplexity as sliced and then healed "
        "had not weeded out: 23.46. As sliced, it had a perplexity of 71.23. Before training it was healed: linear "
        "fits on 104,448 tokens of training text put back part of what slicing took away. On 26,624 other tokens of "
        "that text its perplexity fell from 71.5 to 31.25."
    )


def test_healing_that_was_left_out_is_told(tmp_path):
    healing = HEALING | {"is_healed": False, "perplexity_after": 90.5}
    _, page = card_of(tmp_path, make_recipe(heal=True), RESULTS | {"healing": healing})
    assert how_it_was_found(page) == (
        f"{SEARCHED.format(algorithm='additive', fitness='perplexity')} The best had a perplexity of 71.23 as sliced. "
        "Healing it before training, by linear fits on 104,448 tokens of training text, was tried and left out: on "
        "26,624 other tokens its perplexity would have gone from 71.5 to 90.5."
    )


def test_what_healing_cost_is_in_the_table(tmp_path):
    flops = {"search": 3.3e12, "healing": 4e11, "training": 8.75e12, "teacher": 3.75e12}
    match = BASELINE["to_match"] | {"student_flops": flops}
    results = RESULTS | BASELINE | {"to_match": match, "healing": HEALING}
    _, page = card_of(tmp_path, make_recipe(heal=True), results)
    table = page[page.index("| | training tokens | FLOPs |") :].splitlines()[:4]
    assert [cell.strip() for cell in table[0].split("|")[-4:-1]] == [f"of which {name}" for name in COSTS]
    assert row(page, "random initialization") == ["5M", "35T", "", "", ""]
    assert row(page[page.index("of which search") :], "this student") == ["1.25M", "16.2T", "3.3T", "400G", "3.75T"]
    assert len({line.count("|") for line in table}) == 1


@pytest.mark.parametrize("fitness", [name for name in FITNESSES if name != "perplexity"])
def test_every_fitness_but_perplexity_is_put_in_words(tmp_path, fitness):
    recipe = make_recipe(search={"fitness": fitness, "seed": 5})
    found = RESULTS["search"] | {"fitness": {"name": fitness, "value": -0.5}}
    text = how_it_was_found(card_of(tmp_path, recipe, RESULTS | {"search": found})[1])
    assert text.startswith(f"{SEARCHED.format(algorithm='additive', fitness=fitness)} It took the subnet with the low")
    assert text.endswith(": -0.5. As sliced, it had a perplexity of 71.23.") and "{" not in text


def test_plain_pretraining_names_no_teacher_as_such(tmp_path):
    student = RESULTS["student"] | {"flops_per_token": {"student": 7_000_000, "teacher": 0}}
    metadata, page = card_of(tmp_path, make_recipe(), RESULTS | {"student": student})
    assert "Loss: cross-entropy." in page and "KL(" not in page and "with knowledge distillation" not in page
    assert "knowledge-distillation" not in metadata["tags"]


@pytest.mark.parametrize("name", NASTY)
def test_names_of_a_user_break_neither_metadata_nor_page(tmp_path, name):
    recipe = make_recipe(tmp_path / "out" / name.replace("/", "_"), name, teacher=f"someone/{name}")
    metadata, page = card_of(tmp_path, recipe)
    assert metadata["datasets"] == [name] and metadata["base_model"] == [f"someone/{name}"]
    assert [line for line in page.splitlines() if line.startswith("## ")] == headings(tmp_path)
    title = next(line for line in page.splitlines() if line)
    assert title.startswith("# ") and "<" not in title and page.count("\n---\n") == 0


def headings(folder):
    _, page = card_of(folder, make_recipe())
    return [line for line in page.splitlines() if line.startswith("## ")]


@pytest.mark.parametrize("name", NASTY)
def test_a_name_in_the_page_is_a_code_span(tmp_path, name):
    _, page = card_of(tmp_path, make_recipe(dataset=name))
    line = next(line for line in page.splitlines() if "tokens of `" in line)
    span = line.split("tokens of ", 1)[1].split(" in blocks of 256")[0]
    fence = span[: len(span) - len(span.lstrip("`"))]
    assert span.endswith(fence) and fence not in span[len(fence) : -len(fence)]


def test_a_local_folder_is_shown_by_its_name_alone(tmp_path):
    (tmp_path / "my-teacher").mkdir()
    (tmp_path / "texts").mkdir()
    recipe = make_recipe(tmp_path / "out", str(tmp_path / "texts"), teacher=str(tmp_path / "my-teacher"))
    metadata, page = card_of(tmp_path, recipe)
    assert "`my-teacher`" in page and "`texts`" in page and str(tmp_path) not in page + str(metadata)
    assert "base_model" not in metadata and "datasets" not in metadata


def test_card_data_has_defaults_that_can_be_replaced():
    data = SubnetModelCardData(base_model="someone/teacher", parameters=7, tags=["mine"]).to_dict()
    assert data["tags"] == ["mine"] and data["library_name"] == "transformers" and "parameters" not in data


def test_standard_library_is_no_dataset_of_the_hub(tmp_path):
    metadata, page = card_of(tmp_path, make_recipe(dataset="python-standard-library"))
    assert "datasets" not in metadata and "`python-standard-library`" in page
