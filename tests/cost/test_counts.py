"""Counted parameters, FLOPs and cache bytes against the models themselves, and against Pythia's published sizes."""

import re
import time
from random import Random

import pytest
import torch
from fixtures_slow import slow_but
from torch.utils.flop_counter import FlopCounterMode
from transformers import FalconConfig, GPTNeoXConfig

from hf_whittle import ParameterBin, SearchSpace, SubnetConfig, WhittleGPTNeoXForCausalLM, extract_subnet
from hf_whittle.cost import (
    flops_per_token,
    kv_cache_bytes_per_token,
    num_parameters,
    padded_shape,
    parameter_polynomial,
    training_flops_per_token,
    weight_bytes,
)
from hf_whittle.errors import ArchitectureError, BinError, SubnetError
from hf_whittle.models.student import student_class, student_config
from hf_whittle.subnet import Shape

# hidden_size, num_hidden_layers, num_attention_heads, vocab_size; parameters and those outside the embeddings, from the
# table of https://github.com/EleutherAI/pythia, which leaves out the two smallest
PYTHIA = {
    "14m": ((128, 6, 4, 50304), 14_067_712, 1_189_888),
    "31m": ((256, 6, 8, 50304), 30_494_720, 4_739_072),
    "70m": ((512, 6, 8, 50304), 70_426_624, 18_915_328),
    "160m": ((768, 12, 12, 50304), 162_322_944, 85_056_000),
    "410m": ((1024, 24, 16, 50304), 405_334_016, 302_311_424),
    "1b": ((2048, 16, 8, 50304), 1_011_781_632, 805_736_448),
    "1.4b": ((2048, 24, 16, 50304), 1_414_647_808, 1_208_602_624),
    "2.8b": ((2560, 32, 32, 50304), 2_775_208_960, 2_517_652_480),
    "6.9b": ((4096, 32, 32, 50432), 6_857_302_016, 6_444_163_072),
    "12b": ((5120, 36, 40, 50688), 11_846_072_320, 11_327_027_200),
}
VARIANTS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "no attention bias": {"attention_bias": False},
    "tied, no attention bias": {"tie_word_embeddings": True, "attention_bias": False},
}


def numel(model):
    return sum(parameter.numel() for parameter in model.parameters())


def pythia_config(size):
    hidden, layers, heads, vocabulary = PYTHIA[size][0]
    return GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )


def on_meta(config):
    """A model of this configuration, its sizes without its values."""
    with torch.device("meta"):
        return student_class(config)(config)


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def model(request, make_stock):
    return make_stock(**request.param)


def spaces(config):
    for granularity in ("coarse", "fine"):
        for layer_wise in (False, True):
            yield SearchSpace.from_config(config, granularity, layer_wise=layer_wise)
    yield SearchSpace.from_config(config, "fine", stock_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", slow_but(range(3), 0))
def test_parameters_are_those_of_the_student(model, draw, seed):
    for space in spaces(model.config):
        subnet = draw(space, seed)
        counted = num_parameters(model.config, subnet)
        student = extract_subnet(model, subnet)
        assert counted == numel(student)
        assert counted == numel(extract_subnet(model, subnet, format="whittle"))
        inner = [parameter for parameter in student.parameters() if model.config.vocab_size not in parameter.shape]
        assert num_parameters(model.config, subnet, embeddings=False) == sum(p.numel() for p in inner)


def test_parameters_of_the_whole_model_need_no_subnet(model):
    assert num_parameters(model.config) == numel(model)
    assert num_parameters(model.config, SubnetConfig.full(model.config)) == numel(model)


def test_parameters_without_embeddings_leave_out_what_has_a_vocabulary_axis(model, uneven_subnet):
    student = extract_subnet(model, uneven_subnet)
    embeddings = {id(p): p for p in (student.gpt_neox.embed_in.weight, student.lm_head.weight)}
    expected = numel(student) - sum(parameter.numel() for parameter in embeddings.values())
    assert num_parameters(model.config, uneven_subnet, embeddings=False) == expected


def test_parameters_of_an_uneven_student_follow_from_its_own_config(model, uneven_subnet, draw_within):
    student = extract_subnet(model, uneven_subnet)
    inner = draw_within(uneven_subnet.shape, 0)
    assert num_parameters(student.config) == numel(student)
    assert num_parameters(student.config, inner) == numel(extract_subnet(student, inner))


@pytest.mark.parametrize("size", PYTHIA)
def test_parameters_of_pythia_are_the_published_ones(size):
    _, total, outside_embeddings = PYTHIA[size]
    assert num_parameters(pythia_config(size)) == total
    assert num_parameters(pythia_config(size), embeddings=False) == outside_embeddings


@pytest.mark.parametrize("size", PYTHIA)
def test_parameters_of_pythia_are_those_of_the_model(size):
    config = pythia_config(size)
    assert num_parameters(config) == numel(on_meta(config))


def paper_bins():
    """5% around the sizes that the paper compares its students with."""
    for size in ("410m", "1b", "2.8b"):
        yield ParameterBin(0.95 * PYTHIA[size][1], 1.05 * PYTHIA[size][1])


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("size", ["6.9b", "12b"])
@pytest.mark.parametrize("layer_wise", [False, True])
@pytest.mark.parametrize("granularity", ["coarse", "fine"])
def test_bins_of_the_paper_are_reached_by_students_of_these_sizes(size, granularity, layer_wise):
    config = pythia_config(size)
    space = SearchSpace.from_config(config, granularity, layer_wise=layer_wise)
    for bin in paper_bins():
        subnet = space.sample(Random(0), bin)
        student = on_meta(student_config(config, subnet))
        assert bin.low <= numel(student) == num_parameters(config, subnet) <= bin.high
        assert layer_wise <= isinstance(student, WhittleGPTNeoXForCausalLM)


def seconds(run, times):
    started = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - started) / times


def test_counting_with_a_polynomial_is_far_faster_than_building_the_model(draw):
    config = pythia_config("410m")
    subnet = draw(SearchSpace.from_config(config, "coarse", layer_wise=True), 0)
    count = parameter_polynomial(config)
    build = lambda: numel(on_meta(student_config(config, subnet)))  # noqa: E731
    assert count(subnet) == build()
    assert 100 * seconds(lambda: count(subnet), 100) < seconds(build, 1)


@pytest.mark.parametrize(("dtype", "bytes_per_value"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_weight_bytes_are_those_in_memory_and_on_disk(model, draw, tmp_path, dtype, bytes_per_value):
    for position, space in enumerate(spaces(model.config)):
        subnet = draw(space, position)
        counted = weight_bytes(model.config, subnet, bytes_per_value=bytes_per_value)
        student = extract_subnet(model, subnet, dtype=dtype)
        assert counted == sum(parameter.nbytes for parameter in student.parameters())
        student.save_pretrained(tmp_path / str(position))
        header = (tmp_path / str(position) / "model.safetensors").stat().st_size - counted
        assert 0 < header < 10_000


def test_weight_bytes_are_of_two_bytes_by_default(tiny_config):
    assert weight_bytes(tiny_config) == 2 * num_parameters(tiny_config)


def measured_flops(student, input_ids, backward=False):
    """FLOPs that PyTorch counts; its counter sees eager attention only."""
    student.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        output = student(input_ids=input_ids, labels=input_ids, use_cache=False)
        if backward:
            output.loss.backward()
    return counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("seed", slow_but(range(2), 0))
def test_flops_are_those_that_pytorch_counts(model, draw, input_ids, seed):
    for space in spaces(model.config):
        subnet = draw(space, seed)
        student = extract_subnet(model, subnet)
        for ids in (input_ids, input_ids[:1, :5]):
            counted = flops_per_token(model.config, subnet, sequence_length=ids.shape[1]) * ids.numel()
            assert counted == measured_flops(student, ids)


@pytest.mark.parametrize(
    ("subnet", "formats"),
    [
        (SubnetConfig(24, [0, 2, 4], [[0, 1, 3], 3, [1, 2, 3]], 40), ["stock", "whittle", "padded"]),
        (SubnetConfig(24, [0, 2, 4], [[1, 3], 3, 1], [40, [5, 7, 60], 9]), ["whittle", "padded"]),
    ],
)
def test_flops_are_those_of_every_format(model, subnet, formats, input_ids):
    for format in formats:
        sizes = padded_shape(model.config, subnet) if format == "padded" else subnet
        counted = flops_per_token(model.config, sizes, sequence_length=input_ids.shape[1]) * input_ids.numel()
        assert counted == measured_flops(extract_subnet(model, subnet, format=format), input_ids)


def test_flops_of_the_whole_model_need_no_subnet(model, input_ids):
    student = extract_subnet(model, SubnetConfig.full(model.config))
    assert flops_per_token(model.config, sequence_length=12) * input_ids.numel() == measured_flops(student, input_ids)


@pytest.mark.slow
def test_training_flops_are_those_of_a_forward_and_a_backward_pass(model, draw, input_ids):
    for space in spaces(model.config):
        subnet = draw(space, 2)
        measured = measured_flops(extract_subnet(model, subnet), input_ids, backward=True)
        per_token = training_flops_per_token(model.config, subnet, sequence_length=input_ids.shape[1])
        assert per_token * input_ids.numel() == measured


@pytest.mark.parametrize(("dtype", "bytes_per_value"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_cache_bytes_are_those_of_the_cache(model, draw, input_ids, dtype, bytes_per_value):
    for space in spaces(model.config):
        subnet = draw(space, bytes_per_value)
        student = extract_subnet(model, subnet, dtype=dtype)
        with torch.no_grad():
            cache = student(input_ids, use_cache=True).past_key_values
        measured = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
        counted = kv_cache_bytes_per_token(model.config, subnet, bytes_per_value=bytes_per_value)
        assert counted * input_ids.numel() == measured


COSTS = {
    "parameters": num_parameters,
    "weight bytes": weight_bytes,
    "cache bytes": kv_cache_bytes_per_token,
    "FLOPs": lambda config, subnet: flops_per_token(config, subnet, sequence_length=8),
    "training FLOPs": lambda config, subnet: training_flops_per_token(config, subnet, sequence_length=8),
}
each_cost = pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)


@each_cost
def test_sizes_cost_what_a_subnet_of_these_sizes_does(model, uneven_subnet, cost):
    assert cost(model.config, uneven_subnet.shape) == cost(model.config, uneven_subnet)
    assert cost(model.config, Shape.from_config(model.config)) == cost(model.config, None)


@each_cost
def test_costs_are_whole_numbers(model, uneven_subnet, cost):
    assert type(cost(model.config, uneven_subnet)) is int


@each_cost
def test_subnet_that_does_not_fit_is_an_error(tiny_config, cost):
    with pytest.raises(SubnetError, match="hidden_size: cannot keep 33 channels, the super-network has 32"):
        cost(tiny_config, SubnetConfig(33, 2, 2, 5))


def test_another_architecture_is_an_error():
    with pytest.raises(ArchitectureError, match="the architecture is 'falcon'; hf_whittle knows"):
        num_parameters(FalconConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))


def test_bin_includes_both_ends(tiny_config, uneven_subnet):
    parameters = num_parameters(tiny_config, uneven_subnet)
    assert ParameterBin(parameters, parameters).contains(tiny_config, uneven_subnet)
    assert not ParameterBin(parameters + 1, parameters + 9).contains(tiny_config, uneven_subnet)
    assert not ParameterBin(parameters - 9, parameters - 1).contains(tiny_config, uneven_subnet)


@pytest.mark.parametrize(("low", "high"), [(2, 1), (-1, 5), (float("nan"), 5)])
def test_bin_whose_ends_are_the_wrong_way_round_is_an_error(low, high):
    message = f"a bin needs 0 <= low <= high, got low={low:g}, high={high:g}"
    with pytest.raises(BinError, match=re.escape(message)):
        ParameterBin(low, high)
