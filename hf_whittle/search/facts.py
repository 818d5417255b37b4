"""Facts of a search, for `results.json`."""

import json
from typing import Any

from ..record.facts import BinFacts, FitnessFacts, SearchFacts, SpaceFacts
from ..subnet import SubnetConfig
from .result import SearchResult


def search_facts(result: SearchResult, subnet: SubnetConfig | None = None) -> SearchFacts:
    """Settings, cost and outcome of a search.

    Args:
        result (`SearchResult`): the search.
        subnet (`SubnetConfig`, *optional*): the student's subnet, if not the best.
    """
    settings, best = result.settings, result.best_evaluation
    algorithm, space, name = settings["algorithm"], settings["space"], settings["fitness"]["name"]
    return SearchFacts(
        algorithm=algorithm["name"],
        seed=algorithm.get("seed"),
        space=SpaceFacts(
            granularity=space["granularity"],
            layer_wise=space["layer_wise"],
            importance=space["importance"]["criterion"] if "importance" in space else None,
        ),
        bins=tuple(BinFacts(**{name: bin[name] for name in ("cost", "low", "high")}) for bin in settings["bins"]),
        fitness=_fitness_facts(result, best.subnet if subnet is None else subnet),
        evaluations=len(result.evaluations),
        tokens_per_evaluation=max(evaluation.tokens for evaluation in result.evaluations),
        tokens=result.tokens,
        flops=result.flops,
        subnet=json.loads(best.subnet.to_json()),
        parameters=best.parameters,
        perplexity=best.fitness if name == "perplexity" else None,
    )


def _fitness_facts(result: SearchResult, subnet: SubnetConfig) -> FitnessFacts:
    fitness, best = result.settings["fitness"], result.best_evaluation
    known: dict[str, Any] = {"name": fitness["name"], "value": best.fitness}
    if subnet != best.subnet:
        known["of_student"] = next((each.fitness for each in result.answers if each.subnet == subnet), None)
    for stage in (fitness, *fitness.get("stages", {}).values()):
        if "steps" in stage:
            known["steps"] = stage["steps"]
        if "scores" in stage:
            known["criterion"] = stage["scores"]["criterion"]
    return FitnessFacts(**known)
