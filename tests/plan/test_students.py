"""Bounds over all students of a bin hold for those that are drawn from it."""

from random import Random

import pytest
from small_models import OTHERS

from hf_whittle import HealingConfig, ParameterBin, SearchSpace
from hf_whittle.cost import flops_per_token, num_parameters
from hf_whittle.healing.cost import healing_flops_from_moments
from hf_whittle.plan.healing import most_healing_flops
from hf_whittle.plan.students import Students


@pytest.fixture(params=["gpt_neox", "llama", "gemma3", "opt"])
def students(request, make_stock):
    config = make_stock(**OTHERS.get(request.param, {})).config
    whole = num_parameters(config)
    space = SearchSpace.from_config(config, layer_wise=True)
    return Students(space, ParameterBin(0.5 * whole, 0.6 * whole), 32)


def drawn(students, number=200):
    rng = Random(0)
    return [students.space.sample(rng, students.bin) for _ in range(number)]


@pytest.mark.slow
def test_parameters_and_flops_are_the_most_in_the_bin(students):
    for subnet in drawn(students):
        assert num_parameters(students.config, subnet) <= students.parameters <= students.bin.high
        assert flops_per_token(students.config, subnet, sequence_length=32) <= students.flops(32)
    assert flops_per_token(students.config, students.costliest, sequence_length=32) == students.flops(32)
    assert students.bin.contains(students.config, students.costliest)


@pytest.mark.slow
def test_healing_is_bounded(students):
    settings = HealingConfig()

    def moments(subnet):
        return healing_flops_from_moments(students.config, subnet, 512, 2)

    def whole(subnet):
        return most_healing_flops(students.config, subnet, settings, 16, 32)

    for cost in (moments, whole):
        most = students.most(cost)
        assert all(cost(subnet) <= most for subnet in drawn(students))


def test_a_given_student_is_its_own_bound(students):
    subnet = drawn(students, 1)[0]
    known = Students(students.space, students.bin, 32, subnet)
    assert known.is_known and known.costliest == subnet
    assert known.parameters == num_parameters(students.config, subnet)
    assert known.most(lambda each: each.shape.hidden_size) == subnet.shape.hidden_size
