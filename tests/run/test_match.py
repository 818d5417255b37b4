"""Tokens and FLOPs to match a baseline, from made-up curves."""

import math

import pytest
from small_results import curve, made_up_results

from hf_whittle.record.match import to_match


def test_matching_counts_search_training_and_teacher():
    match = to_match(made_up_results(curve((0, 90), (10, 29), (20, 20)), curve((0, 99), (20, 50), (40, 30))))
    assert match["student_flops"] == {"search": 100, "training": 60, "teacher": 40}
    assert (match["student_tokens"], match["baseline_tokens"], match["tokens_ratio"]) == (10, 40, 4.0)
    assert match["flops_ratio"] == pytest.approx(240 / 200)


def test_matching_counts_healing():
    made_up = made_up_results(curve((0, 90), (10, 29)), curve((0, 99), (40, 30)))
    match = to_match(made_up | {"healing": {"flops": 20}})
    assert match["student_flops"] == {"search": 100, "healing": 20, "training": 60, "teacher": 40}
    assert match["flops_ratio"] == pytest.approx(240 / 220)


def test_matching_leaves_out_what_was_not_reached():
    match = to_match(made_up_results(curve((0, 90), (20, 40)), curve((0, 99), (40, 30))))
    assert match == {"perplexity": 30, "baseline_tokens": 40, "baseline_flops": 240}


def test_matching_without_training_has_no_ratio_of_tokens():
    match = to_match(made_up_results(curve((0, 25)), curve((0, 99), (40, 30))))
    assert match["student_tokens"] == 0 and "tokens_ratio" not in match
    assert match["flops_ratio"] == pytest.approx(2.4)


def test_a_baseline_that_diverged_is_matched_by_nothing():
    assert to_match(made_up_results(curve((0, 50), (64, 40)), curve((0, 300), (64, math.nan)))) is None
