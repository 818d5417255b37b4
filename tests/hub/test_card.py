"""Model cards: no name of a user's breaks them, and every number is one of the results."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from matplotlib.image import imread

from hf_whittle import SubnetConfig, SubnetModelCardData, extract_subnet, save_student
from hf_whittle.architectures.dimensions import QUERIES
from hf_whittle.architectures.registry import ARCHITECTURES, get_architecture
from hf_whittle.files.text import write_json, write_text
from hf_whittle.hub.card import is_as_rendered, render_card
from hf_whittle.hub.student_folder import StudentFolder
from hf_whittle.plots import plot_architecture
from hf_whittle.recipe.sections import FITNESSES
from hf_whittle.record.lineage import Lineage
from hf_whittle.record.results import Results

SUBNET = SubnetConfig(24, [0, 2, 3], [2, 4, 1], [64, 32, 48])
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESULTS = {
    "supernet": {"name": "someone/teacher", "on_hub": True, "commit": COMMIT},
    "data": {"dataset": "someone/text", "block_size": 256},
    "search": {
        "algorithm": "additive",
        "seed": 5,
        "space": {"granularity": "coarse", "layer_wise": True},
        "bins": [{"cost": "parameters", "low": 1_100_000, "high": 1_300_000}],
        "fitness": {"name": "perplexity", "value": 71.23},
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
        "steps": 9,
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
        "environment": {"hardware": "CPU, 1 thread"},
    },
    "teacher": {
        "name": "someone/teacher",
        "on_hub": True,
        "commit": COMMIT,
        "parameters": 9_876_543,
        "perplexity": 8.765,
        "test_tokens": 16384,
    },
    "environment": {
        "hf_whittle": "0.1",
        "transformers": "5.23",
        "torch": "2.13",
        "python": "3.11.7",
        "hardware": "CPU, 1 thread",
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


def changed(**sections):
    """The results with other values in some sections; a section that is `None` is left out."""
    results = {name: value for name, value in RESULTS.items() if sections.get(name, value) is not None}
    for name, values in sections.items():
        if values is not None:
            results[name] = {**results.get(name, {}), **values}
    return results


def make_folder(folder, results=RESULTS, **config):
    """The small files of a student's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    Lineage(SUBNET).save(folder)
    write_json(folder / "results.json", results)
    return folder


def card_of(folder, results=RESULTS):
    text = rendered(make_folder(folder, results))
    write_text(folder / "README.md", text)
    _, front, page = ("\n" + text).split("\n---\n", 2)
    return yaml.safe_load(front), page


def rendered(folder, **options):
    return render_card(StudentFolder.load(folder), **options)


def row(page, start):
    line = next(line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_metadata_is_that_of_the_run(tmp_path):
    supernet = {"name": "someone/supernet", "on_hub": True, "commit": COMMIT, "license": "mit", "language": ["en"]}
    metadata, _ = card_of(tmp_path / "my-student", changed(supernet=supernet))
    assert metadata["base_model"] == ["someone/supernet", "someone/teacher"]
    assert metadata["base_model_relation"] == "finetune"  # two base models would make it a merge
    assert metadata["license"] == "mit" and metadata["language"] == ["en"]
    assert metadata["datasets"] == ["someone/text"]
    assert metadata["pipeline_tag"] == "text-generation" and "arxiv:2510.07227" in metadata["tags"]
    (entry,) = metadata["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "my-student" and result["dataset"] == {"name": "someone/text", "type": "someone/text"}
    assert result["metrics"] == [{"type": "perplexity", "value": 12.3457}]


def test_hub_client_reads_the_metadata_back(tmp_path):
    card_of(tmp_path / "my-student")
    card = ModelCard.load(tmp_path / "my-student" / "README.md")
    assert card.data.model_name == "my-student" and card.data.eval_results[0].metric_value == 12.3457


def test_numbers_on_the_page_are_those_of_the_results(tmp_path):
    _, page = card_of(tmp_path, RESULTS | BASELINE)
    assert row(page, "this student")[:4] == ["1.23M", "77.77", "12.35", "5M"]
    assert row(page, "same architecture, random initialization") == ["1.23M", "301.5", "23.45", "5M"]
    assert row(page, "teacher") == ["9.88M", "", "8.765", ""]
    assert row(page, "random initialization") == ["5M", "35T", "", ""]
    assert row(page[page.index("of which search") :], "this student") == ["1.25M", "15.8T", "3.3T", "3.75T"]
    assert "with 4 times fewer training tokens. In FLOPs," in page and "the random initialization, 23.45:" in page
    assert "with seed 5, made 57 evaluations of subnets of 1.1M to 1.3M parameters" in page
    assert "read 233,472 tokens in all, at most 4,096 in an evaluation" in page
    assert "0.25 x cross-entropy + 0.75 x T² x KL(teacher || student), T = 1.5" in page
    assert "batches of 24 blocks and seed 42" in page and "Training took 321 s on CPU, 1 thread" in page


def test_title_of_the_page_is_the_name_of_the_folder_or_of_the_repository(tmp_path):
    folder = tmp_path / "my-student"
    _, page = card_of(folder)
    assert page.lstrip().startswith("# my-student\n") and 'from_pretrained(".")' in page
    published = rendered(folder, repo_id="me/another-name")
    assert "# another-name\n" in published and 'from_pretrained("me/another-name")' in published
    assert '"."' not in published


def test_layers_on_the_page_are_those_of_the_subnet(tmp_path):
    _, page = card_of(tmp_path)
    table = page[page.index("| extracted from layer |") :]
    assert "It keeps 24 channels" in page
    assert [row(table, i) for i in range(3)] == [["0", "2", "64"], ["2", "4", "32"], ["3", "1", "48"]]


def test_what_is_unknown_is_left_out(tmp_path):
    student = {name: value for name, value in RESULTS["student"].items() if name != "seconds"}
    metadata, page = card_of(tmp_path, RESULTS | {"student": student})
    assert not [word for word in ("None", "random initialization", "baseline", "Training took", "png") if word in page]
    assert None not in metadata.values() and "license" not in metadata


SECTIONS = ["Use", "Results", "How it was found", "How it was trained", "Limitations", "Reproduce", "Citation"]


@pytest.mark.parametrize("missing", [*RESULTS, tuple(RESULTS)])
def test_a_section_of_which_nothing_is_known_is_left_out(tmp_path, missing):
    missing = (missing,) if isinstance(missing, str) else missing
    metadata, page = card_of(tmp_path, {name: facts for name, facts in RESULTS.items() if name not in missing})
    assert not [word for word in ("None", "Undefined", "{{", "{%", "\n\n\n\n") if word in page]
    without = {"student": {"Results", "How it was trained"}, "environment": {"Reproduce"}}
    absent = set().union(*(without.get(name, set()) for name in missing))
    assert headings(page) == [name for name in SECTIONS if name not in absent]
    assert "model-index" in metadata or "student" in missing


def headings(page):
    return [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]


def test_a_student_that_was_only_extracted_claims_nothing(tmp_path):
    folder = make_folder(tmp_path, {"supernet": RESULTS["supernet"]})
    page = rendered(folder)
    assert "extracted from [someone/teacher](https://huggingface.co/someone/teacher)." in page
    assert "has not been evaluated" in page and not [
        word for word in ("model-index", "model_name", "perp") if word in page
    ]


def test_a_match_that_was_not_reached_is_stated_and_not_counted(tmp_path):
    known = {name: BASELINE["to_match"][name] for name in ("perplexity", "baseline_tokens", "baseline_flops")}
    _, page = card_of(tmp_path, RESULTS | BASELINE | {"to_match": known})
    assert "This student did not reach it within its 5M tokens" in page and "times fewer" not in page


@pytest.mark.parametrize("tokens", [0, 1_250_000])
def test_a_match_says_what_its_flops_leave_out(tmp_path, tokens):
    match = {**BASELINE["to_match"], "student_tokens": tokens}
    _, page = card_of(tmp_path, RESULTS | BASELINE | {"to_match": match})
    assert "The teacher's own training is not counted." in page
    assert ("as good before any training, so that the ratio of these FLOPs grows" in page) == (tokens == 0)


SEARCHED = (
    "The search, algorithm `{algorithm}` with seed 5, made 57 evaluations of subnets of 1.1M to 1.3M parameters in the "
    "coarse layer-wise space. The search read 233,472 tokens in all, at most 4,096 in an evaluation. It minimized "
    "{fitness}"
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
    """The section's text before the kept parts, in one line."""
    section = page.split("## How it was found", 1)[1]
    return " ".join(section[: section.index("Parts of the super-network")].split())


def test_a_search_by_perplexity_is_described(tmp_path):
    _, page = card_of(tmp_path)
    searched = SEARCHED.format(algorithm="additive", fitness="perplexity")
    assert (
        how_it_was_found(page)
        == f"{searched}. The best subnet, this student, has a perplexity of 71.23 before training."
    )
    assert "heal" not in page


def test_a_staged_search_and_healing_are_described(tmp_path):
    search = {"algorithm": "multi-fidelity", "fitness": {"name": "staged", "value": 23.456, "steps": 30}}
    _, page = card_of(tmp_path, changed(search=search, healing=HEALING))
    assert how_it_was_found(page) == (
        f"{SEARCHED.format(algorithm='multi-fidelity', fitness='`staged`')}, the perplexity of the student after 30 "
        "steps of training, among the candidates left by perplexity as sliced and then as healed. The best subnet, "
        "this student, has a fitness of 23.46 and, as sliced, a perplexity of 71.23. Before training it was healed: "
        "linear fits on 104,448 tokens of training text recovered part of what slicing lost. On 26,624 other tokens of "
        "that text, its perplexity fell from 71.5 to 31.25."
    )


def test_healing_that_was_left_out_is_stated(tmp_path):
    healing = HEALING | {"is_healed": False, "perplexity_after": 90.5}
    _, page = card_of(tmp_path, changed(healing=healing))
    assert how_it_was_found(page) == (
        f"{SEARCHED.format(algorithm='additive', fitness='perplexity')}. The best subnet, this student, has a "
        "perplexity of 71.23 as sliced. Healing by linear fits on 104,448 tokens of training text was tried before "
        "training and left out: on 26,624 other tokens, perplexity would have gone from 71.5 to 90.5."
    )


def test_hidden_states_of_principal_components_are_not_called_channels(tmp_path):
    folder = make_folder(tmp_path, changed(healing=HEALING))
    write_json(folder / "healing.json", {**HEALING, "settings": {"basis": "principal"}})
    assert "carry 24 principal components" in rendered(folder)
    write_json(folder / "healing.json", {**HEALING, "settings": {"basis": "principal"}, "basis": "channels"})
    assert "It keeps 24 channels" in rendered(folder)


def test_what_healing_cost_is_in_the_table(tmp_path):
    flops = {"search": 3.3e12, "healing": 4e11, "training": 8.75e12, "teacher": 3.75e12}
    match = BASELINE["to_match"] | {"student_flops": flops}
    _, page = card_of(tmp_path, RESULTS | BASELINE | {"to_match": match, "healing": HEALING})
    table = page[page.index("| | training tokens | FLOPs |") :].splitlines()[:4]
    assert [cell.strip() for cell in table[0].split("|")[-4:-1]] == [f"of which {name}" for name in COSTS]
    assert row(page, "random initialization") == ["5M", "35T", "", "", ""]
    assert row(page[page.index("of which search") :], "this student") == ["1.25M", "16.2T", "3.3T", "400G", "3.75T"]
    assert len({line.count("|") for line in table}) == 1


@pytest.mark.parametrize("fitness", [name for name in FITNESSES if name != "perplexity"])
def test_every_fitness_but_perplexity_is_put_in_words(tmp_path, fitness):
    found = {"fitness": {"name": fitness, "value": -0.5, "steps": 7, "criterion": "taylor"}}
    text = how_it_was_found(card_of(tmp_path, changed(search=found))[1])
    assert text.startswith(f"{SEARCHED.format(algorithm='additive', fitness=f'`{fitness}`')}, the ")
    assert text.endswith("has a fitness of -0.5 and, as sliced, a perplexity of 71.23.") and "{" not in text


def test_a_fitness_of_the_user_is_named(tmp_path):
    found = {"fitness": {"name": "my `own` one", "value": 2.5}}
    text = how_it_was_found(card_of(tmp_path, changed(search=found))[1])
    assert "It minimized ``my `own` one``. The best subnet, this student, has a fitness of 2.5" in text


def test_plain_pretraining_names_no_teacher_as_such(tmp_path):
    arguments = RESULTS["student"]["arguments"] | {"beta": 0}
    metadata, page = card_of(tmp_path, changed(student={"arguments": arguments}))
    assert "Loss: cross-entropy." in page and "KL(" not in page and "with knowledge distillation" not in page
    assert "knowledge-distillation" not in metadata["tags"]


def test_adapters_that_were_merged_are_stated(tmp_path):
    adapters = {"type": "LoRA", "parameters": 65_536, "r": 8, "alpha": 16}
    _, page = card_of(tmp_path, changed(student={"adapters": adapters}))
    assert "trained by way of adapters" in page and "and pretrained" not in page
    assert "LoRA adapters (65,536 parameters, rank 8, alpha 16) were trained; they are merged into the weights." in page


def test_adapters_alone_name_their_student(tmp_path):
    folder = make_folder(tmp_path, changed(student={"adapters": {"type": "LoRA", "parameters": 65_536}}))
    (folder / "config.json").unlink()
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "someone/student", "peft_type": "LORA"})
    card = ModelCard(rendered(folder))
    assert card.data.base_model == "someone/student" and card.data.base_model_relation == "adapter"
    assert card.data.library_name == "peft" and "AutoPeftModelForCausalLM" in card.text


LM_EVAL = {
    "results": {
        "arc_easy": {"alias": "arc_easy", "acc,none": 0.4321, "acc_stderr,none": 0.0102, "acc_norm,none": 0.4},
        "lambada": {"alias": " - lambada", "perplexity,none": 25.5, "perplexity_stderr,none": "N/A"},
    },
    "n-shot": {"arc_easy": 5, "lambada": 0},
    "config": {"model_args": "pretrained=/home/somebody/secret"},
}


def test_results_of_lm_eval_are_on_the_page_and_in_the_metadata(tmp_path):
    folder = make_folder(tmp_path)
    write_json(folder / "lm_eval.json", LM_EVAL)
    card = ModelCard(rendered(folder))
    assert row(card.text, "`arc_easy`") == ["5", "`acc`", "0.4321 ± 0.01"]
    assert row(card.text, "`lambada`") == ["0", "`perplexity`", "25.5"]
    measured = {(each.dataset_type, each.metric_type): each.metric_value for each in card.data.eval_results}
    assert measured["arc_easy", "acc"] == 0.4321 and measured["arc_easy", "acc_norm"] == 0.4
    assert measured["someone/text", "perplexity"] == 12.3457


@pytest.mark.parametrize("name", NASTY)
def test_names_of_a_user_break_neither_metadata_nor_page(tmp_path, name):
    supernet = {"name": f"someone/{name}", "on_hub": True, "commit": COMMIT}
    results = changed(data={"dataset": name}, supernet=supernet, teacher=supernet)
    metadata, page = card_of(tmp_path / name.replace("/", "_"), results)
    assert metadata["datasets"] == [name] and metadata["base_model"] == f"someone/{name}"
    assert headings(page) == SECTIONS
    title = next(line for line in page.splitlines() if line)
    assert title.startswith("# ") and "<" not in title and page.count("\n---\n") == 0


@pytest.mark.parametrize("name", NASTY)
def test_a_name_in_the_page_is_a_code_span(tmp_path, name):
    _, page = card_of(tmp_path, changed(data={"dataset": name}))
    line = next(line for line in page.splitlines() if "tokens of `" in line)
    span = line.split("tokens of ", 1)[1].split(" in blocks of 256")[0]
    fence = span[: len(span) - len(span.lstrip("`"))]
    assert span.endswith(fence) and fence not in span[len(fence) : -len(fence)]


def test_a_local_folder_is_shown_but_no_metadata(tmp_path):
    local = {"supernet": {"name": "my-teacher"}, "teacher": {"name": "my-teacher", "perplexity": 8.0, "parameters": 9}}
    metadata, page = card_of(tmp_path, RESULTS | local | {"data": {"folder": "texts", "block_size": 256}})
    assert "`my-teacher`" in page and "`texts`" in page
    assert not {"base_model", "base_model_relation", "datasets"} & set(metadata)


def test_card_data_has_defaults_that_can_be_replaced():
    data = SubnetModelCardData(base_model="someone/teacher", tags=["mine"]).to_dict()
    assert data["tags"] == ["mine"] and data["library_name"] == "transformers"


def test_card_data_given_count_more_than_what_is_known(tmp_path):
    folder = make_folder(tmp_path, changed(supernet={"license": "mit", "language": "en"}))
    given = SubnetModelCardData(license="apache-2.0", tags=["mine"], datasets=["someone/else"])
    data = ModelCard(rendered(folder, card_data=given)).data
    assert data.license == "apache-2.0" and data.language == "en" and data.datasets == ["someone/else"]
    assert data.tags[-1] == "mine" and "hf_whittle" in data.tags and len(data.eval_results) == 1
    assert data.base_model == "someone/teacher"


def test_standard_library_is_no_dataset_of_the_hub(tmp_path):
    metadata, page = card_of(tmp_path, changed(data={"dataset": "python-standard-library"}))
    assert "datasets" not in metadata and "`python-standard-library`" in page


def test_a_card_that_somebody_changed_differs_from_one_as_rendered(tmp_path):
    card = rendered(make_folder(tmp_path))
    assert is_as_rendered(card) and is_as_rendered(card.rstrip())
    assert not is_as_rendered(card.replace("## Use", "## How to use"))
    assert not is_as_rendered(card + "More.\n") and not is_as_rendered("# A card of mine\n")


def test_facts_that_another_program_wrote_by_the_same_name_are_passed_over(tmp_path):
    folder = make_folder(tmp_path)
    for values in ([1, 2], {"accuracy": 0.5}):
        (folder / "results.json").write_text(json.dumps(values))
        assert "has not been evaluated" in rendered(folder)


def test_a_teacher_that_was_stored_differs_from_one_with_all_logits(tmp_path):
    targets = "12 samples of the teacher's distribution for each token"
    assert f"T = 1.5, on {targets}." in card_of(tmp_path, changed(student={"targets": targets}))[1]
    assert "T = 1.5, on all logits." in card_of(tmp_path)[1]


def test_a_loss_between_hidden_states_is_stated(tmp_path):
    arguments = RESULTS["student"]["arguments"] | {"beta": 0, "hidden_weight": 0.5, "hidden_loss": "mse"}
    metadata, page = card_of(tmp_path, changed(student={"arguments": arguments}))
    assert "Loss: 0.25 x cross-entropy + 0.5 x mse of hidden states." in page
    assert "knowledge-distillation" in metadata["tags"]


def test_a_loss_that_is_not_known_is_not_stated(tmp_path):
    unknown = {name: value for name, value in RESULTS["student"]["arguments"].items() if name not in ("alpha", "beta")}
    _, page = card_of(tmp_path, changed(student={"arguments": unknown}))
    assert "Loss" not in page and "5M tokens of `someone/text`" in page


def test_perplexity_is_that_of_the_weights_published(tmp_path):
    curve = [{"step": step, "tokens": step, "perplexity": 10.0 * step} for step in (1, 3, 6)]
    best = {"steps": 6, "best_step": 3, "curve": curve}
    metadata, page = card_of(tmp_path / "best", changed(student=best))
    assert (
        row(page, "this student")[2] == "30" and metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 30
    )
    metadata, page = card_of(tmp_path / "between", changed(student={"steps": 5, "curve": curve}))
    assert row(page, "this student")[2] == "" and "model-index" not in metadata


def test_a_student_that_is_not_the_best_of_its_search_is_not_called_the_best(tmp_path):
    found = {"fitness": {"name": "kl", "value": 0.5, "of_student": 0.75}}
    text = how_it_was_found(card_of(tmp_path, changed(search=found))[1])
    assert "best subnet has a fitness of 0.5" in text and "best subnet, this student" not in text
    assert text.endswith("This student is another subnet of the search, with a fitness of 0.75.")


def test_a_student_of_unknown_fitness_is_not_called_the_best(tmp_path):
    best = SubnetConfig(24, [0, 1, 3], [2, 4, 1], [64, 32, 48]).to_dict()
    text = how_it_was_found(card_of(tmp_path, changed(search={"subnet": best}))[1])
    assert "best subnet, this student" not in text and text.endswith("This student is another subnet of the search.")


def test_a_model_that_was_not_extracted_is_not_called_extracted(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "gpt2"})
    Results.from_dict({"student": RESULTS["student"]}).save(tmp_path)
    page = rendered(tmp_path)
    assert not [word for word in ("extracted", "GPT-NeoX", "super-network") if word in page.split("## Citation")[0]]
    assert "A language model of 1.23M parameters, pretrained with knowledge distillation" in page


def test_a_license_that_is_given_takes_the_place_of_the_whole_one_known(tmp_path):
    known = {"license": "other", "license_name": "foo", "license_link": "https://foo.org"}
    folder = make_folder(tmp_path, changed(supernet=known))
    data = ModelCard(rendered(folder, card_data=SubnetModelCardData(license="mit"))).data
    assert data.license == "mit" and data.license_name is None and data.license_link is None


def test_results_of_an_older_version_break_nothing_and_name_no_path(tmp_path):
    old = changed(teacher={"name": "/home/me/teacher"})
    del old["search"]["space"]
    page = rendered(make_folder(tmp_path, old))
    assert "/home/me" not in page and "`teacher`" not in page.split("## Use")[0] and "The search" not in page


# Other architectures

LLAMA = SubnetConfig(24, [0, 2], None, [64, 32], [2, [1]], [0, 2], [2, 3, 6, 7])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_page_names_the_stock_class_that_holds_the_student_or_not(tmp_path, model_type):
    stock = f"`{get_architecture(model_type).causal_class}`"
    write_json(tmp_path / "config.json", {"model_type": model_type})
    assert f"The student is a stock {stock}: it needs" in render_card(StudentFolder.load(tmp_path))
    write_json(tmp_path / "config.json", {"model_type": f"whittle_{model_type}", "auto_map": {}})
    assert f"A stock {stock} cannot hold this student" in render_card(StudentFolder.load(tmp_path))


def test_a_page_has_a_column_for_each_dimension_of_layers_and_names_what_heads_keep(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "whittle_llama", "auto_map": {}})
    LLAMA.save_pretrained(tmp_path)
    page = render_card(StudentFolder.load(tmp_path))
    assert "It keeps 24 channels, 2 queries of each key-value head, 4 channels of each head, and in each layer:" in page
    LLAMA.replaced({QUERIES: 1}).save_pretrained(tmp_path)
    assert "24 channels, 1 query of each key-value head, 4" in render_card(StudentFolder.load(tmp_path))
    table = page[page.index("| layer |") :].split("\n\n")[0].splitlines()
    assert table == [
        "| layer | extracted from layer | key-value heads | neurons |",
        "| ---: | ---: | ---: | ---: |",
        "| 0 | 0 | 2 | 64 |",
        "| 1 | 2 | 1 | 32 |",
    ]


@pytest.mark.parametrize("kept", [{}, {"num_key_value_heads": [2, 1], "head_dim": [2, 3, 6, 7]}], ids=["stock", "own"])
def test_the_snippet_of_a_llama_student_runs(make_stock, tokenizer, tmp_path, capsys, monkeypatch, kept):
    llama = make_stock(model_type="llama", vocab_size=len(tokenizer))
    subnet = SubnetConfig(**{"hidden_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 1, **kept,
                             "intermediate_size": 32})  # fmt: skip
    student = extract_subnet(llama, subnet)
    save_student(student, tmp_path, tokenizer=tokenizer)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page.count("trust_remote_code=True") == (2 if kept else 0)  # for model and tokenizer, or neither
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    assert capsys.readouterr().out.startswith("The")


@pytest.mark.slow
def test_a_picture_of_every_dimension_is_drawn(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 64}
    plot_architecture(LLAMA, sizes, tmp_path / "main.png")
    plot_architecture(LLAMA, {**sizes, "num_key_value_groups": 3, "head_dim": 8}, tmp_path / "all.png")
    main, every = (imread(tmp_path / name) for name in ("main.png", "all.png"))
    assert every.shape[1] / main.shape[1] == pytest.approx(5 / 3, rel=0.01) and main.std() > 0.1
