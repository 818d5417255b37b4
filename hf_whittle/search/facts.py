"""Facts of a search, for `results.json`."""

from typing import Any

from ..subnet import SubnetConfig
from .result import SearchResult


def search_facts(result: SearchResult, subnet: SubnetConfig | None = None) -> dict[str, Any]:
    """What a search was asked, what it cost and what it found.

    Args:
        result (`SearchResult`): the search.
        subnet (`SubnetConfig`, *optional*): what was made a student, if not the best.
    """
    settings, best = result.settings, result.best_evaluation
    chosen = best if subnet is None else next((each for each in result.answers if each.subnet == subnet), None)
    algorithm, fitness, space = settings["algorithm"], settings["fitness"], settings["space"]
    minimised: dict[str, Any] = {"name": fitness["name"], "value": best.fitness}
    if chosen is None or chosen.subnet != best.subnet:
        minimised["of_student"] = None if chosen is None else chosen.fitness
    stages = [fitness, *fitness.get("stages", {}).values()]
    for stage in stages:
        if "steps" in stage:
            minimised["steps"] = stage["steps"]
        if "scores" in stage:
            minimised["criterion"] = stage["scores"]["criterion"]
    of_space = {name: space[name] for name in ("granularity", "layer_wise")}
    if "importance" in space:
        of_space["importance"] = space["importance"]["criterion"]
    return {
        "algorithm": algorithm["name"],
        **({"seed": algorithm["seed"]} if "seed" in algorithm else {}),
        "space": of_space,
        "bins": [{name: bin[name] for name in ("cost", "low", "high")} for bin in settings["bins"]],
        "fitness": minimised,
        "evaluations": len(result.evaluations),
        "tokens_per_evaluation": max(evaluation.tokens for evaluation in result.evaluations),
        "tokens": result.tokens,
        "flops": result.flops,
        **({"perplexity": best.fitness} if fitness["name"] == "perplexity" else {}),
        "subnet": best.subnet.to_dict(),
        "parameters": best.parameters,
    }
