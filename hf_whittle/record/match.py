"""Tokens and FLOPs to match a baseline."""

from typing import Any

from .facts import CurvePoint, MatchFacts, StudentFlops
from .results import Results


def to_match(results: Results) -> MatchFacts | None:
    """Tokens and FLOPs that the student and the baseline need to reach the baseline's final perplexity.

    A training has reached it at the first evaluation at or below it. The student's FLOPs are those of the search, of
    healing if there was some, of its own training and of the teacher's forward passes; they are left out if it did not
    reach that perplexity.

    Returns:
        `MatchFacts`, or `None` if there is no baseline, or one that diverged, so that there is nothing to match.
    """
    student, baseline, search = results.student, results.baseline, results.search
    if search is None or student is None or baseline is None or not baseline.curve:
        return None
    if student.flops_per_token is None or baseline.flops_per_token is None:
        return None
    target = baseline.curve[-1].perplexity
    baseline_tokens, student_tokens = (_tokens_to(target, training.curve) for training in (baseline, student))
    if baseline_tokens is None:
        return None
    baseline_flops = baseline_tokens * baseline.flops_per_token.student
    known: dict[str, Any] = {
        "perplexity": target,
        "baseline_tokens": baseline_tokens,
        "baseline_flops": baseline_flops,
    }
    if student_tokens is None:
        return MatchFacts(**known)
    flops = StudentFlops(
        search=search.flops,
        healing=None if results.healing is None else results.healing.flops,
        training=student_tokens * student.flops_per_token.student,
        teacher=student_tokens * student.flops_per_token.teacher,
    )
    return MatchFacts(
        **known,
        student_tokens=student_tokens,
        student_flops=flops,
        flops_ratio=baseline_flops / flops.total,
        tokens_ratio=baseline_tokens / student_tokens if student_tokens else None,
    )


def _tokens_to(perplexity: float, curve: tuple[CurvePoint, ...]) -> int | None:
    return next((point.tokens for point in curve if point.perplexity <= perplexity), None)
