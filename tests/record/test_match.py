"""Cost to match a baseline, from curves made up for it."""

import math
from dataclasses import replace

import pytest

from hf_whittle.record.facts import (
    BinFacts,
    CurvePoint,
    FitnessFacts,
    FlopsPerToken,
    HealingFacts,
    SearchFacts,
    SpaceFacts,
    TrainingFacts,
)
from hf_whittle.record.match import to_match
from hf_whittle.record.results import Results

SEARCH = SearchFacts(
    algorithm="random",
    space=SpaceFacts(granularity="coarse", layer_wise=False),
    bins=(BinFacts(cost="parameters", low=1, high=2),),
    fitness=FitnessFacts(name="perplexity", value=90.0),
    evaluations=1,
    tokens_per_evaluation=1,
    tokens=1,
    flops=100,
    subnet={},
    parameters=1,
)
HEALING = HealingFacts(
    is_healed=True, perplexity_before=95.0, perplexity_after=90.0, tokens=8, held_out_tokens=2, flops=20
)


def training(points, teacher):
    curve = tuple(CurvePoint(step=tokens, tokens=tokens, perplexity=perplexity) for tokens, perplexity in points)
    return TrainingFacts(curve=curve, flops_per_token=FlopsPerToken(student=6, teacher=teacher))


def made_up(student, baseline):
    return Results(search=SEARCH, student=training(student, 4), baseline=training(baseline, 0))


def test_matching_counts_search_training_and_teacher():
    match = to_match(made_up([(0, 90), (10, 29), (20, 20)], [(0, 99), (20, 50), (40, 30)]))
    assert match.student_flops.to_dict() == {"search": 100, "training": 60, "teacher": 40}
    assert (match.student_tokens, match.baseline_tokens, match.tokens_ratio) == (10, 40, 4.0)
    assert match.flops_ratio == pytest.approx(240 / 200)


def test_matching_counts_healing():
    results = replace(made_up([(0, 90), (10, 29)], [(0, 99), (40, 30)]), healing=HEALING)
    match = to_match(results)
    assert match.student_flops.to_dict() == {"search": 100, "healing": 20, "training": 60, "teacher": 40}
    assert match.flops_ratio == pytest.approx(240 / 220)


def test_matching_leaves_out_what_was_not_reached():
    match = to_match(made_up([(0, 90), (20, 40)], [(0, 99), (40, 30)]))
    assert match.to_dict() == {"perplexity": 30, "baseline_tokens": 40, "baseline_flops": 240}


def test_matching_without_training_has_no_ratio_of_tokens():
    match = to_match(made_up([(0, 25)], [(0, 99), (40, 30)]))
    assert match.student_tokens == 0 and "tokens_ratio" not in match.to_dict()
    assert match.flops_ratio == pytest.approx(2.4)


def test_a_baseline_that_diverged_is_matched_by_nothing():
    assert to_match(made_up([(0, 50), (64, 40)], [(0, 300), (64, math.nan)])) is None


@pytest.mark.parametrize("missing", ["search", "student", "baseline"])
def test_without_a_section_there_is_nothing_to_match(missing):
    results = made_up([(0, 50), (64, 40)], [(0, 300), (64, 200)])
    assert to_match(results) is not None and to_match(replace(results, **{missing: None})) is None
