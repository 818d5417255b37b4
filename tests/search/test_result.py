"""Result of a search: its best, its front, its bins and its files."""

import json
import math
from dataclasses import replace
from random import Random

import pytest
from fixtures_search import BIN, CONFIG
from small_searches import Toy, search

import hf_whittle.plots
import hf_whittle.search.plots
from hf_whittle import ParameterBin, SearchResult, SubnetConfig
from hf_whittle.cost import FlopsBin
from hf_whittle.errors import OutputError, WhittleError
from hf_whittle.search.algorithm import Evaluation


def evaluation(size, fitness, cost=None, bins=(0,), **others):
    cost = size if cost is None else cost
    return Evaluation(SubnetConfig(size, 1, 1, 1), fitness, size, cost, bins, 0, "sample", (), **others)


@pytest.fixture(scope="module")
def result():
    """A search in which not all evaluations are answers."""
    return search("multi-fidelity", bin=[BIN, ParameterBin(21_000, 24_000)])


def test_result_round_trips_through_its_folder(result, tmp_path):
    result.save(tmp_path / "saved")
    loaded = SearchResult.load(tmp_path / "saved")
    assert loaded == result
    assert loaded.best == result.best


def test_infinite_fitness_round_trips(tmp_path):
    SearchResult(evaluations=[evaluation(1, math.inf)]).save(tmp_path)
    assert SearchResult.load(tmp_path).evaluations[0].fitness == math.inf


def test_summary_holds_the_settings_and_the_best(result, tmp_path):
    result.save(tmp_path)
    summary = json.loads((tmp_path / "search.json").read_text())
    assert summary["settings"] == result.settings
    assert summary["evaluations"] == len(result.evaluations)
    assert summary["best"]["digest"] == result.best.digest


def test_answers_are_on_all_tokens_and_in_a_bin():
    kept = [evaluation(1, 1.0), evaluation(4, 1.0, bins=(1,))]
    others = [evaluation(2, 0.1, share=0.5), evaluation(3, 0.1, bins=())]
    result = SearchResult(evaluations=[others[0], kept[0], others[1], kept[1]])
    assert result.answers == kept
    assert result.best_evaluation is kept[0]


def test_top_is_in_the_order_of_fitness():
    result = SearchResult(evaluations=[evaluation(i, fitness) for i, fitness in enumerate((5.0, 2.0, 9.0, 1.0), 1)])
    assert [subnet.hidden_size for subnet in result.top(3)] == [4, 2, 1]
    assert result.top(1) == [result.best]
    assert len(result.top(9)) == 4


@pytest.mark.parametrize("index", [0, 1])
def test_in_bin_gives_what_lies_in_one_bin(result, index):
    bin = (BIN, ParameterBin(21_000, 24_000))[index]
    inside = result.in_bin(index)
    belonging = [replace(e, bins=(0,)) for e in result.evaluations if bin.contains(CONFIG, e.subnet)]
    assert inside.evaluations == inside.in_bin(0).evaluations == belonging
    assert inside.settings == {**result.settings, "bins": [bin.to_dict()]}


@pytest.mark.parametrize("index", [-1, 2])
def test_bin_the_search_does_not_have_is_an_error(result, index):
    with pytest.raises(WhittleError, match=f"the search has 2 bins, counted from 0; there is no bin {index}"):
        result.in_bin(index)


@pytest.mark.parametrize("cost", ["parameters", "cost"])
def test_pareto_front_is_what_no_other_evaluation_dominates(cost):
    rng = Random(0)
    evaluations = [evaluation(rng.randint(1, 12), rng.randint(1, 12), rng.randint(1, 12)) for _ in range(40)]
    evaluations += [evaluation(1, 0, 1, share=0.5), evaluation(1, 0, 1, bins=())]
    points = {(getattr(e, cost), e.fitness) for e in evaluations[:40]}
    expected = sorted(p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points))
    front = SearchResult(evaluations=evaluations).pareto_front(cost)
    assert [(getattr(e, cost), e.fitness) for e in front] == expected


def test_best_so_far_falls_to_the_best():
    result = SearchResult(evaluations=[evaluation(1, fitness) for fitness in (5.0, 7.0, 3.0, 3.0, 4.0)])
    assert result.best_so_far() == [5.0, 5.0, 3.0, 3.0, 3.0]
    assert result.best_evaluation is result.evaluations[2]


def test_best_so_far_counts_answers_alone():
    evaluations = [evaluation(1, 1.0, share=0.5), evaluation(2, 4.0), evaluation(3, 2.0, bins=()), evaluation(4, 3.0)]
    assert SearchResult(evaluations=evaluations).best_so_far() == [math.inf, 4.0, 4.0, 3.0]


def test_tokens_and_flops_are_summed():
    result = SearchResult(evaluations=[evaluation(1, 1.0, tokens=3, flops=10), evaluation(2, 1.0, tokens=4, flops=5)])
    assert (result.tokens, result.flops) == (7, 15)


def test_tokens_and_flops_are_asked_of_the_fitness():
    class Priced(Toy):
        def tokens(self, share):
            return round(64 * share)

        def flops(self, subnet, share):
            return round(64 * share) * subnet.shape.hidden_size

    for e in search("multi-fidelity", Priced()).evaluations:
        assert (e.tokens, e.flops) == (64 * e.share, 64 * e.share * e.subnet.shape.hidden_size)


def test_candidates_are_the_dataset_of_the_lines(result, tmp_path):
    from datasets import load_dataset

    result.save(tmp_path)
    read = load_dataset(
        "json", data_files=str(tmp_path / "candidates.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert read.to_list() == result.candidates.to_list()
    assert read["digest"] == [e.subnet.digest for e in result.evaluations]


def test_search_of_another_cost_round_trips(tmp_path):
    result = search("random", bin=FlopsBin(40_000, 44_000, sequence_length=16), folder=tmp_path)
    assert SearchResult.load(tmp_path) == result


# Errors


def test_empty_result_has_no_best():
    with pytest.raises(WhittleError, match="the search has evaluated no subnet of its bin on all tokens yet"):
        _ = SearchResult().best


def test_folder_without_a_search_is_an_error(tmp_path):
    with pytest.raises(OutputError, match=r"holds no search: search\.json is missing"):
        SearchResult.load(tmp_path)


@pytest.mark.parametrize("damaged", [b"{}\n", b"not JSON\n", b"[1]\n", b"\n", b"\xff\n", b'"text"\n'])
def test_damaged_line_in_the_middle_is_an_error(result, tmp_path, damaged):
    result.save(tmp_path)
    path = tmp_path / "candidates.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damaged, *lines[3:]]))
    with pytest.raises(OutputError, match=r"line 3 of .* is not an evaluation of this version"):
        SearchResult.load(tmp_path)


PERPLEXITY, PROBE = {"name": "perplexity"}, {"name": "probe", "steps": 20}


@pytest.fixture
def drawn(monkeypatch):
    """Figures that are drawn instead of written."""
    figures = []
    monkeypatch.setattr(hf_whittle.plots, "_save", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize(
    "fitness, axis",
    [
        (PERPLEXITY, "held-out perplexity before training"),
        ({"name": "kl"}, "KL divergence from the teacher, in nats per token"),
        (PROBE, "held-out perplexity after 20 training steps"),
        ({"name": "mine"}, "mine"),
        (
            {"name": "staged", "stages": {"0.5": PERPLEXITY, "1.0": PROBE}},
            "held-out perplexity after 20 training steps",
        ),
    ],
)
def test_pictures_name_the_fitness(drawn, fitness, axis):
    result = SearchResult({"fitness": fitness}, [evaluation(1, 2.0), evaluation(2, 1.5)])
    hf_whittle.search.plots.plot_search(result, "search.png")
    hf_whittle.search.plots.plot_pareto(result, "pareto.png")
    assert [figure.axes[0].get_ylabel() for figure in drawn] == [axis, axis]


def test_picture_of_a_search_has_a_panel_for_each_share_of_the_tokens(drawn):
    shares = [1.0, 0.25, 0.0625, 0.25, 1.0]
    found = [evaluation(size, 3.0 - size / 5, share=share) for size, share in enumerate(shares, 1)]
    outside, failed = evaluation(6, 0.1, bins=()), evaluation(7, math.inf)
    hf_whittle.search.plots.plot_search(SearchResult({"fitness": PERPLEXITY}, [*found, outside, failed]), "search.png")
    points = [[tuple(at) for each in axes.collections for at in each.get_offsets()] for axes in drawn[0].axes]
    assert points == [[(1, 2.8), (5, 2.0)], [(2, 2.6), (4, 2.2)], [(3, 2.4)]]
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert titles == [
        "on all tokens: the best of these is the answer",
        "on 1/4 of the tokens: these compare only with each other",
        "on 1/16 of the tokens: these compare only with each other",
    ]
    curves = [[*line.get_ydata()] for axes in drawn[0].axes for line in axes.lines]
    assert curves == [[2.8, 2.8, 2.8, 2.8, 2.0, 2.0, 2.0]]


def test_panels_of_a_staged_fitness_name_their_stages(drawn):
    fitness = {"name": "staged", "stages": {"0.5": PERPLEXITY, "1.0": PROBE}}
    result = SearchResult({"fitness": fitness}, [evaluation(1, 2.0), evaluation(2, 1.5, share=0.5)])
    hf_whittle.search.plots.plot_search(result, "search.png")
    first, second = (axes.get_title(loc="left") for axes in drawn[0].axes)
    assert first.startswith("held-out perplexity after 20 training steps: ")
    assert second == "held-out perplexity before training: these compare only with each other"
