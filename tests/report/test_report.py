"""A report has the facts of its folders, and nothing that they inject."""

import base64
import hashlib
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hf_whittle import SearchResult
from hf_whittle.cli import main
from hf_whittle.errors import CheckpointError, DataError, OutputError
from hf_whittle.hub.card import opening
from hf_whittle.hub.student_folder import StudentFolder
from hf_whittle.record.results import Results
from hf_whittle.record.samples import Sample, load_samples, save_samples
from hf_whittle.report import write_report
from hf_whittle.report.costs import stage_costs
from hf_whittle.report.curves import curve_figures
from hf_whittle.report.folder import load_runs
from hf_whittle.report.layers import architecture_figure
from hf_whittle.report.samples import continue_prompts
from hf_whittle.report.searches import pareto_figures, search_figure

CARDS = Path(__file__).parents[2] / "model_cards"
NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<b>{{ 7 * 7 }}"


class Elements(HTMLParser):
    """The elements of a page with their attributes, the text of its scripts, and all other text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.scripts, self.text, self._inside = [], [], "", None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def attributes(self, tag, name):
        return [attributes.get(name) for found, attributes in self.elements if found == tag]


def page_of(*folders, **how):
    """The elements of a report on folders, and its source without the library that draws."""
    path = write_report(folders, Path(folders[0]).parent / "report.html", **how)
    source = path.read_text(encoding="utf-8")
    page = Elements(source)
    return page, source.replace(max(page.scripts, key=len), "")


def one(folder):
    (run,) = load_runs([folder])
    return run


@pytest.mark.slow
def test_page_has_the_facts_of_every_section(copy_of):
    folder = copy_of("demo")
    save_samples(folder, [Sample(prompt="def f", continuation="(x): return x")])
    page, _ = page_of(folder)
    sections = [id for id in page.attributes("section", "id") if id]
    assert sections == [
        "headline", "curves", "search", "pareto", "layers", "healing", "costs", "samples", "environment", "recipe",
    ]  # fmt: skip
    figures = [id for id in page.attributes("div", "id") if id]
    assert figures == [
        "curves-tokens", "curves-flops", "search-1", "pareto-1", "layers-1", "healing-1", "costs-flops",
    ]  # fmt: skip
    results = Results.load(folder)
    for fact in (
        f"{results.student.final_perplexity:.4g}", f"{results.baseline.final_perplexity:.4g}",
        f"{results.teacher.perplexity:.4g}", f"{results.to_match.flops_ratio:.3g}", "additive, seed 0",
        "800,000 to 880,000 parameters", "def f", "(x): return x", results.environment.hardware, "max_steps: 320",
    ):  # fmt: skip
        assert fact in page.text, fact


@pytest.mark.slow
def test_page_loads_nothing_and_runs_only_its_own_scripts(copy_of):
    page, _ = page_of(copy_of("demo"))
    assert not {"img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    assert page.attributes("script", "src") == [None] * len(page.scripts)
    assert page.attributes("link", "href") == ["data:,"]
    (policy,) = filter(None, (each.get("content", "") for tag, each in page.elements if each.get("http-equiv")))
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    assert allowed == {base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in page.scripts}
    assert "default-src 'none'" in policy and "unsafe" not in policy.partition("script-src")[2]


@pytest.mark.slow
def test_names_in_the_files_of_a_folder_are_text_alone(copy_of):
    folder = copy_of("demo", NASTY.replace("/", ""))
    results = json.loads((folder / "results.json").read_text())
    results["supernet"]["name"] = results["teacher"]["name"] = results["search"]["algorithm"] = NASTY
    results["environment"]["torch"] = results["student"]["environment"]["hardware"] = NASTY
    results["search"]["bins"][0]["cost"] = results["search"]["fitness"]["name"] = results["data"]["dataset"] = NASTY
    (folder / "results.json").write_text(json.dumps(results))
    search = json.loads((folder / "search.json").read_text())
    search["settings"]["fitness"]["name"] = search["settings"]["bins"][0]["cost"] = NASTY
    (folder / "search.json").write_text(json.dumps(search))
    rows = [json.loads(line) | {"origin": NASTY} for line in (folder / "candidates.jsonl").read_text().splitlines()]
    (folder / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    healing = json.loads((folder / "healing.json").read_text())
    healing["fits"][0]["weights"] = NASTY
    (folder / "healing.json").write_text(json.dumps(healing))
    (folder / "recipe.yaml").write_text(f"teacher: {json.dumps(NASTY)}\n")
    save_samples(folder, [Sample(prompt=NASTY, continuation=NASTY)])
    kept, _ = page_of(copy_of("demo"))
    page, source = page_of(folder)
    of_sample = [("pre", {"class": "sample"}), ("b", {})]
    assert [tag for tag, _ in page.elements if tag in {"script", "img", "b"}] == ["script"] * len(kept.scripts) + ["b"]
    assert all(element in page.elements for element in of_sample)
    assert not [name for _, each in page.elements for name in each if name.startswith("on")]
    assert source.count("<script") == source.count("</script") == len(kept.scripts)
    assert "{{ 7 * 7 }}" in page.text
    drawn = "".join(page.scripts[1:])
    assert "alert(1)" in drawn and not re.search(r"(<|\\u003c)/?(script|img)", drawn)  # plotly reads a part of HTML


def test_facts_that_a_folder_lacks_are_left_out(copy_of, tmp_path):
    folder = copy_of("demo")
    for path in folder.iterdir():
        if path.name not in ("search.json", "candidates.jsonl"):
            path.unlink()
    page, source = page_of(folder)
    assert [id for id in page.attributes("section", "id") if id] == ["search", "pareto", "layers", "costs"]
    assert "None" not in source and "null" not in page.text
    (folder / "results.json").write_text(json.dumps({"teacher": {"name": "t", "perplexity": 3.5}}))
    (folder / "search.json").unlink()
    with pytest.raises(CheckpointError, match="the files of demo have no facts to report"):
        page_of(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "results.json").write_text("{"), "cannot report on .*demo: a file of it is damaged"),
        (lambda folder: (folder / "samples.json").write_text("[3]"), "cannot report on .*samples.json: it is damaged"),
        (lambda folder: (folder / "search.json").write_text("{}"), "cannot report on .*search.json: it is damaged"),
        (lambda folder: (folder / "config.json").write_text("3"), "holds no keys and values"),
        (
            lambda folder: (folder / "results.json").write_text('{"student": {"steps": 1, "parameters": "many"}}'),
            "cannot report on demo: facts are damaged",
        ),
    ],
)
def test_damaged_files_are_errors_that_name_them(copy_of, change, message):
    folder = copy_of("demo")
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        page_of(folder)
    assert not (folder.parent / "report.html").exists()


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a folder; give a folder written by `hf-whittle run`"):
        load_runs([tmp_path / "nowhere"])
    with pytest.raises(CheckpointError, match=r"holds nothing to report: it has none of results\.json, search\.json"):
        load_runs([tmp_path])


def test_missing_plotly_is_said_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ImportError, match=r"a report needs plotly: pip install 'hf_whittle\[report\]'"):
        write_report([tmp_path / "nowhere"])


@pytest.mark.slow
def test_only_an_earlier_report_is_replaced(copy_of, tmp_path):
    folder, other = copy_of("demo-lora"), tmp_path / "notes.html"
    other.write_text("<h1>my notes</h1>")
    with pytest.raises(OutputError, match=r"notes.html is no report of hf_whittle; remove it, or give another"):
        write_report([folder], other)
    assert other.read_text() == "<h1>my notes</h1>"
    with pytest.raises(OutputError, match="is a folder; give the name of a file, such as"):
        write_report([folder], tmp_path)
    first = write_report([folder], tmp_path / "report.html").read_bytes()
    assert write_report([folder], tmp_path / "report.html").read_bytes() == first
    assert not list(tmp_path.glob("_partial*"))


@pytest.mark.slow
def test_command_prints_where_the_page_is(copy_of, capsys, monkeypatch, tmp_path):
    copy_of("demo-lora")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "demo-lora"]) == 0
    assert capsys.readouterr().out == f"The report is in {tmp_path / 'report.html'}\n"
    assert main(["report", "demo-lora", "nowhere", "--output", "other.html"]) == 1
    assert "nowhere is not a folder" in capsys.readouterr().err and not (tmp_path / "other.html").exists()


@pytest.mark.slow
def test_runs_are_compared_side_by_side(copy_of):
    folders = [copy_of("demo"), copy_of("demo-stock"), copy_of("demo", "again/demo")]
    page, _ = page_of(*folders)
    base = folders[0].parent.name
    names = [f"{base}/demo", f"{base}/demo-stock", "again/demo"]
    assert ", ".join(names) in page.text
    assert "Keys that differ" in page.text and "search.algorithm" in page.text
    assert "data.block_size" not in page.text.partition("Keys that differ")[2].partition("Show the recipe")[0]
    same, stock = pareto_figures([(run, run.search) for run in load_runs(folders)])
    assert same.title == f"{names[0]}, {names[2]}" and stock.title == names[1]
    assert "need not compare" not in page.text


@pytest.mark.slow
def test_perplexities_of_other_text_are_said_not_to_compare(copy_of):
    folders = [copy_of("demo"), copy_of("demo-stock")]
    results = json.loads((folders[1] / "results.json").read_text())
    results["teacher"]["test_tokens"] = 1024
    (folders[1] / "results.json").write_text(json.dumps(results))
    page, _ = page_of(*folders)
    assert "The runs differ in text, teacher or test tokens: their perplexities need not compare." in page.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "demo-stock", "demo-lora"])
def test_headline_has_the_words_of_the_model_card(name, copy_of):
    page, _ = page_of(copy_of(name))
    in_markdown = opening(StudentFolder.load(CARDS / name))
    in_words = " ".join(re.sub(r"\[(.+?)\]\(.+?\)|`", r"\1", in_markdown).split())
    assert in_words in " ".join(page.text.split())
    assert in_markdown in (CARDS / name / "README.md").read_text(encoding="utf-8")


def test_curve_over_flops_starts_with_search_and_healing():
    run = one(CARDS / "demo")
    tokens, flops = (figure.figure.data for figure in curve_figures([run]))
    results = run.results
    assert list(tokens[0].x) == [point.tokens for point in results.student.curve]
    assert list(tokens[0].y) == [point.perplexity for point in results.student.curve]
    assert flops[0].x[0] == results.search.flops + results.healing.flops
    assert flops[1].x[0] == 0 and flops[1].x[-1] == results.to_match.baseline_flops
    stock = one(CARDS / "demo-stock")
    match = stock.results.to_match
    tokens, flops = (figure.figure.data[0].x for figure in curve_figures([stock]))
    of_student = dict(zip(tokens, flops, strict=True))
    assert of_student[match.student_tokens] == match.student_flops.total


def test_costs_by_stage_add_up_to_those_of_the_match():
    run = one(CARDS / "demo")
    costs = {cost.stage: cost for cost in stage_costs(run)}
    results = run.results
    assert costs["search"].tokens == results.search.tokens and costs["healing"].flops == results.healing.flops
    assert costs["random initialization's training"].flops == results.to_match.baseline_flops
    assert costs["student's training"].seconds == results.student.seconds
    spent = sum(cost.flops for stage, cost in costs.items() if not stage.startswith("random"))
    assert spent == curve_figures([run])[1].figure.data[0].x[-1]


def test_candidates_on_a_part_of_the_tokens_have_axes_of_their_own():
    run = one(CARDS / "demo")
    figure = search_figure(run.search, "search-1").figure
    shares = sorted({evaluation.share for evaluation in run.search.evaluations}, reverse=True)
    drawn = dict.fromkeys(shares, 0)
    for trace in figure.data:
        if trace.mode == "markers":
            share = shares[int((trace.yaxis or "y")[1:] or 1) - 1]
            drawn[share] += len(trace.x)
            for x, y in zip(trace.x, trace.y, strict=True):
                evaluation = run.search.evaluations[x - 1]
                assert (evaluation.share, evaluation.fitness) == (share, y)
            assert trace.marker.symbol == ("circle" if share == 1 else "circle-open") or "outside" in trace.name
    assert sum(drawn.values()) == len(run.search.evaluations) == 268
    (best,) = [trace for trace in figure.data if trace.name == "best so far"]
    assert (best.yaxis or "y") == "y" and best.y[-1] == run.search.best_evaluation.fitness
    assert all(math.isfinite(y) for y in best.y)


def test_hover_over_a_candidate_shows_its_subnet():
    run = one(CARDS / "demo")
    figure = search_figure(run.search, "search-1").figure
    number = 1 + run.search.evaluations.index(run.search.best_evaluation)
    labels = {
        x: label
        for trace in figure.data
        if trace.mode == "markers"
        for x, label in zip(trace.x, trace.hovertext, strict=True)
    }
    assert labels[number].split("<br>") == [
        "candidate 268, crossover", "held-out perplexity after healing:", "  24.597", "evaluated on 4,096 tokens",
        "879,792 parameters", "layers: 6 (0-5)", "channels: 92", "heads: 8 8 6 8 6 8", "neurons: 334 2 240 172 300 240",
    ]  # fmt: skip
    assert max(len(line) for label in labels.values() for line in label.split("<br>")) <= 40


def test_pareto_front_is_that_of_the_cost_which_the_bin_bounds():
    run = one(CARDS / "demo")
    costly = [
        type(each)(**{**vars(each), "cost": 3 * each.parameters}) for each in run.search.evaluations
    ]  # fmt: skip
    bins = [{**run.search.settings["bins"][0], "cost": "bytes of weights"}]
    search = SearchResult({**run.search.settings, "bins": bins}, costly)
    (figure,) = pareto_figures([(run, search)])
    (front,) = [trace for trace in figure.figure.data if trace.name == "Pareto front"]
    assert list(front.x) == [each.cost for each in search.pareto_front("cost")]
    assert figure.figure.layout.xaxis.title.text == "bytes of weights"


def test_architecture_shows_the_share_kept_of_each_layer():
    run = one(CARDS / "demo-stock")
    subnet, supernet = run.subnet, run.search.settings["space"]["supernet"]
    heads, neurons, channels = architecture_figure(subnet, supernet, "layers-1", "").figure.data
    for trace, dimension, sizes in (
        (heads, "num_attention_heads", subnet.shape.num_attention_heads),
        (neurons, "intermediate_size", subnet.shape.intermediate_size),
        (channels, "hidden_size", (subnet.shape.hidden_size,) * len(subnet.layers)),
    ):
        of_layer = dict(zip(subnet.layers, sizes, strict=True))
        assert len(trace.z) == supernet["num_hidden_layers"]
        for layer, row in enumerate(trace.z):
            kept = sum(row) * supernet[dimension] / len(row)
            assert kept == pytest.approx(of_layer.get(layer, 0), rel=0.03)
            assert f"layer {layer}: " in trace.hovertext[layer][0]


def test_samples_are_read_as_they_were_saved(tmp_path):
    samples = [Sample(prompt="a\n", continuation="b"), Sample(prompt="", continuation="<i>")]
    save_samples(tmp_path, samples)
    assert load_samples(tmp_path / "samples.json") == samples and load_samples(tmp_path / "none.json") == []


@pytest.mark.slow
def test_prompts_are_continued_by_the_students(teacher_folder, tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    for path in Path(teacher_folder).iterdir():
        (folder / path.name).symlink_to(path)
    save_samples(folder, [Sample(prompt="kept", continuation="in the folder")])
    page, _ = page_of(folder, prompts=["In the <b>eginning"])
    assert "In the <b>eginning" in page.text and "in the folder" not in page.text
    assert load_samples(folder / "samples.json")[0].prompt == "kept"


@pytest.mark.parametrize("prompt, tokens", [("", "0"), ("In the beginning " * 200, r"[\d,]+")])
def test_a_prompt_without_tokens_or_with_too_many_is_an_error(teacher_folder, prompt, tokens):
    with pytest.raises(DataError, match=f"has {tokens} tokens; give 1 to"):
        continue_prompts(teacher_folder, [prompt])
