"""Tokens and FLOPs to match a baseline."""

from typing import Any


def to_match(results: dict[str, Any]) -> dict[str, Any] | None:
    """Tokens and FLOPs the student and the baseline need to reach the baseline's final perplexity.

    A run has reached it at the first evaluation that is at or below it. The student's FLOPs are those of the search, of
    healing where there was some, of its own training and of the teacher's forward passes; what it did not reach is
    left out. `None` if the baseline diverged, so that there is nothing to match.
    """
    target = results["baseline"]["curve"][-1]["perplexity"]
    tokens = {}
    for name in ("student", "baseline"):
        reached = [point["tokens"] for point in results[name]["curve"] if point["perplexity"] <= target]
        tokens[name] = reached[0] if reached else None
    if tokens["baseline"] is None:
        return None
    per_token = {name: results[name]["flops_per_token"] for name in tokens}
    facts: dict[str, Any] = {
        "perplexity": target,
        "baseline_tokens": tokens["baseline"],
        "baseline_flops": tokens["baseline"] * per_token["baseline"]["student"],
    }
    if tokens["student"] is not None:
        parts = {
            "search": results["search"]["flops"],
            **({"healing": results["healing"]["flops"]} if "healing" in results else {}),
            "training": tokens["student"] * per_token["student"]["student"],
            "teacher": tokens["student"] * per_token["student"]["teacher"],
        }
        facts |= {"student_tokens": tokens["student"], "student_flops": parts}
        facts["flops_ratio"] = facts["baseline_flops"] / sum(parts.values())
        if tokens["student"]:
            facts["tokens_ratio"] = facts["baseline_tokens"] / tokens["student"]
    return facts
