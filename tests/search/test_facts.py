"""Facts of a search against its evaluations."""

import json

import pytest
from small_searches import search

from hf_whittle import SubnetConfig
from hf_whittle.record.facts import SearchFacts
from hf_whittle.search.facts import search_facts


@pytest.fixture(scope="module")
def result():
    return search("random")


def test_facts_are_those_of_the_evaluations(result):
    facts = search_facts(result)
    assert (facts.algorithm, facts.seed, facts.evaluations) == ("random", 4, len(result.evaluations))
    assert (facts.tokens, facts.flops) == (result.tokens, result.flops)
    assert facts.fitness.to_dict() == {"name": "toy", "value": result.best_evaluation.fitness}
    assert SubnetConfig.from_dict(facts.subnet) == result.best and facts.perplexity is None
    assert SearchFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts


def test_another_student_has_its_own_fitness_if_it_was_evaluated(result):
    second = result.top(2)[1]
    fitness = next(answer.fitness for answer in result.answers if answer.subnet == second)
    assert search_facts(result, second).fitness.of_student == fitness
    assert "of_student" not in search_facts(result, result.best).to_dict()["fitness"]
    assert "of_student" not in search_facts(result, SubnetConfig(1, 1, 1, 1)).to_dict()["fitness"]
