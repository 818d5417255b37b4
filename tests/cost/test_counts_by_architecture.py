"""Counts of every architecture's students against the students themselves, and polynomials on their own."""

import itertools
import json

import pytest
import torch
from small_models import ALL_VARIANTS, draw_subnet, settings_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from hf_whittle.architectures.registry import ARCHITECTURES, get_architecture
from hf_whittle.cost import (
    Polynomial,
    flops_per_token,
    flops_polynomial,
    kv_cache_bytes_per_token,
    kv_cache_polynomial,
    num_parameters,
    parameter_polynomial,
)
from hf_whittle.models.student import student_class, student_config
from hf_whittle.subnet import Shape

KINDS = list(itertools.product((False, True), (False, True)))


def make_config(model_type="gpt_neox", **changes):
    return AutoConfig.for_model(model_type, **settings_of(model_type, **changes))


@pytest.fixture(scope="module", params=ALL_VARIANTS.values(), ids=ALL_VARIANTS)
def config(request):
    return make_config(**request.param)


def subnets(config):
    """Subnets of every kind, with and without optional dimensions, the vocabulary among them."""
    for seed, (layer_wise, optional) in enumerate(KINDS):
        yield draw_subnet(config, seed, layer_wise=layer_wise, names_optional=optional, names_tokens=optional)


def student(config, subnet, device="meta"):
    with torch.device(device):
        own = student_config(config, subnet)
        return student_class(own)(own).eval()


def test_parameters_are_those_of_the_student(config):
    for subnet in subnets(config):
        model = student(config, subnet)
        parameters = list(model.parameters())
        assert num_parameters(config, subnet) == sum(parameter.numel() for parameter in parameters)
        tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
        outer = {id(module.weight) for module in (*tables, model.get_output_embeddings())}
        inner = [parameter for parameter in parameters if id(parameter) not in outer]
        assert num_parameters(config, subnet, embeddings=False) == sum(parameter.numel() for parameter in inner)


def test_parameters_of_a_student_follow_from_its_own_config(config):
    for seed, subnet in enumerate(subnets(config)):
        own = student_config(config, subnet)
        assert num_parameters(own) == num_parameters(config, subnet)
        inner = draw_subnet(own, seed)
        assert num_parameters(own, inner) == num_parameters(config, subnet.compose(inner))


def test_flops_are_those_that_pytorch_counts(config):
    ids = torch.ones(2, 7, dtype=torch.long)
    for subnet in subnets(config):
        model = student(config, subnet, "cpu")
        model.set_attn_implementation("eager")  # what PyTorch's counter sees
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, use_cache=False)
        assert flops_per_token(config, subnet, sequence_length=7) * ids.numel() == counter.get_total_flops()


def test_cache_bytes_are_those_of_the_cache(config):
    ids = torch.ones(2, 3, dtype=torch.long)
    for subnet in subnets(config):
        with torch.no_grad():
            cache = student(config, subnet, "cpu")(input_ids=ids, use_cache=True).past_key_values
        measured = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
        assert kv_cache_bytes_per_token(config, subnet, bytes_per_value=4) * ids.numel() == measured


# Polynomials


def polynomials(config):
    yield from (parameter_polynomial(config), parameter_polynomial(config, embeddings=False))
    yield from (flops_polynomial(config, 12), kv_cache_polynomial(config), parameter_polynomial(config) * 2)


def test_optional_dimensions_that_a_shape_does_not_name_are_whole(config):
    full = Shape.from_config(config)
    for polynomial, subnet in itertools.product(polynomials(config), subnets(config)):
        assert polynomial(subnet) == polynomial(subnet.shape) == polynomial(subnet.shape.filled(full))


def test_prices_of_shared_sizes_add_up_to_the_cost(config):
    architecture = get_architecture(config)
    for polynomial, subnet in itertools.product(polynomials(config), subnets(config)):
        shape = subnet.shape.filled(Shape.from_config(config))
        prices = polynomial.prices(tuple(shape.size(dimension) for dimension in architecture.shared))
        cost = prices.base(shape.num_hidden_layers)
        for dimension in architecture.per_layer:
            cost += prices.of(dimension) * sum(getattr(shape, dimension.name))
        assert cost == polynomial(shape)
        assert type(cost) is int and polynomial.is_exact


def test_costs_do_not_fall_as_a_size_grows(config):
    for polynomial in polynomials(config):
        assert min(polynomial.terms.values()) > 0


def test_polynomials_survive_json(config):
    for polynomial in (*polynomials(config), parameter_polynomial(config) * 1e-9):
        restored = Polynomial.from_dict(json.loads(json.dumps(polynomial.to_dict())))
        assert restored == polynomial and hash(restored) == hash(polynomial)
        assert restored.is_exact == polynomial.is_exact


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_polynomial_of_equal_sizes_is_made_once(model_type):
    config = make_config(model_type)
    assert parameter_polynomial(config) is parameter_polynomial(make_config(model_type, hidden_size=config.hidden_size))
    assert parameter_polynomial(config) != parameter_polynomial(make_config(model_type, vocab_size=98))
    assert flops_polynomial(config, 3) != flops_polynomial(config, 4)


def test_product_of_two_sizes_of_a_layer_is_no_cost():
    with pytest.raises(AssertionError, match="no cost is a product of two sizes of a layer"):
        Polynomial({("num_attention_heads", "intermediate_size"): 1})


def test_polynomial_of_hand_made_terms_is_worked_out():
    terms = {("intermediate_size", "hidden_size"): 2, ("num_hidden_layers",): 5, ("head_dim", "hidden_size"): 1, (): 7}
    polynomial = Polynomial(terms, shared={"hidden_size": None, "head_dim": 4})
    shape = Shape(3, (1, 1), (10, 20))
    assert polynomial(shape) == 2 * 3 * 30 + 5 * 2 + 4 * 3 + 7
    assert (polynomial * 3)(shape) == 3 * polynomial(shape)


def test_counting_imports_no_torch(run_python):
    script = """
        import sys
        from types import SimpleNamespace
        from hf_whittle import ParameterBin, SearchSpace
        from hf_whittle.cost import num_parameters
        from random import Random
        config = SimpleNamespace(
            model_type="llama", vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=16, attention_bias=False, mlp_bias=False, tie_word_embeddings=True,
        )
        space = SearchSpace.from_config(config)
        print(num_parameters(config, space.sample(Random(0), ParameterBin(0, 1e9))) > 0, "torch" in sys.modules)
    """
    assert run_python(script) == "True False\n"
