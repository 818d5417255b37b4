"""Sorting: the model computes what it did, and its first entries are the most important ones."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM

from hf_whittle import ImportanceScores, SearchSpace, SubnetConfig, extract_subnet, score_importance, sort_by_importance
from hf_whittle.errors import SubnetError
from hf_whittle.importance.scores import CRITERIA
from hf_whittle.importance.sorting import Order
from hf_whittle.subnet import Shape, indices

CLOSE = {"rtol": 0, "atol": 1e-10}  # of double precision: sums in another order differ by rounding alone
RIGHT_PADDED = torch.tensor([[1] * 12, [1] * 9 + [0] * 3, [1] * 5 + [0] * 7])
LEFT_PADDED = RIGHT_PADDED.flip(1)
COARSE = {"granularity": "coarse", "layer_wise": True}


def random_scores(shape, seed=0):
    """Scores drawn at random, some of them equal."""
    rng = np.random.default_rng(seed)
    return ImportanceScores(
        layers=rng.random(shape.num_hidden_layers),
        heads=tuple(rng.random(heads) for heads in shape.num_attention_heads),
        neurons=tuple(rng.random(neurons).round(1) for neurons in shape.intermediate_size),
        channels=rng.random(shape.hidden_size).round(1),
    )


def scores_by(criterion, model, input_ids):
    if criterion == "random":
        return random_scores(Shape.from_config(model.config))
    return score_importance(model, input_ids, criterion=criterion, layer_criterion="magnitude", progress=False)


def logits(model, input_ids, **inputs):
    with torch.no_grad():
        return model(input_ids=input_ids, **inputs).logits


def cached_logits(model, input_ids):
    """Logits of one token after the other, with a cache."""
    cache, steps = None, []
    with torch.no_grad():
        for token in input_ids.T:
            output = model(input_ids=token[:, None], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    return torch.cat(steps, dim=1)


def close(model):
    """Eager attention of transformers takes its softmax in single precision, whatever that of the model."""
    return {"rtol": 0, "atol": 1e-5} if model.config._attn_implementation == "eager" else CLOSE


def best(scores, number):
    """The entries with the `number` highest scores, the first of equal ones."""
    return {entry for _, entry in sorted((-score, entry) for entry, score in enumerate(scores.tolist()))[:number]}


@pytest.fixture(scope="module")
def exact_variant(variant_supernet):
    """Super-networks of every kind in double precision."""
    return copy.deepcopy(variant_supernet).double()


@pytest.fixture(scope="module")
def exact(supernet):
    return copy.deepcopy(supernet).double()


@pytest.fixture
def exact_models(exact, stock, uneven_subnet):
    """A super-network, a stock model and a student whose layers differ."""
    student = extract_subnet(stock, uneven_subnet).double()
    return {"super-network": copy.deepcopy(exact), "stock": copy.deepcopy(stock).double(), "student": student}


# The same function


@pytest.mark.parametrize("criterion", [*CRITERIA, "random"])
def test_sorted_model_computes_what_it_did(exact_variant, input_ids, criterion):
    model = copy.deepcopy(exact_variant)
    order = sort_by_importance(model, scores_by(criterion, model, input_ids))
    assert order.channels != tuple(range(32))
    assert not torch.equal(model.gpt_neox.embed_in.weight, exact_variant.gpt_neox.embed_in.weight)
    before = logits(exact_variant, input_ids, attention_mask=RIGHT_PADDED)
    torch.testing.assert_close(logits(model, input_ids, attention_mask=RIGHT_PADDED), before, **close(model))
    torch.testing.assert_close(cached_logits(model, input_ids), logits(exact_variant, input_ids), **close(model))


def test_sorted_model_computes_what_it_did_in_single_precision(variant_supernet, input_ids):
    model = copy.deepcopy(variant_supernet)
    sort_by_importance(model, scores_by("activation", model, input_ids))
    before = logits(variant_supernet, input_ids, attention_mask=LEFT_PADDED)
    torch.testing.assert_close(logits(model, input_ids, attention_mask=LEFT_PADDED), before, rtol=0, atol=5e-5)


def test_sorted_model_generates_what_it_did(exact_variant, input_ids):
    model = copy.deepcopy(exact_variant)
    sort_by_importance(model, random_scores(Shape.from_config(model.config)))
    settings = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(input_ids, **settings), exact_variant.generate(input_ids, **settings))


@pytest.mark.parametrize("name", ["super-network", "stock", "student"])
def test_every_class_of_model_is_sorted(exact_models, input_ids, name):
    model = exact_models[name]
    before, shape = logits(model, input_ids), Shape.from_config(model.config)
    scores = random_scores(shape)
    order = sort_by_importance(model, scores)
    torch.testing.assert_close(logits(model, input_ids), before, **CLOSE)
    assert [list(np.sort(heads)[::-1]) for heads in scores.heads] == [
        list(heads[list(entries)]) for heads, entries in zip(scores.heads, order.heads, strict=True)
    ]


def test_parameters_stay_the_same_tensors_in_the_same_memory(supernet, input_ids):
    model = copy.deepcopy(supernet).train()
    model.gpt_neox.layers[0].requires_grad_(False)
    before = [(id(p), p.data_ptr(), p.requires_grad, p.is_leaf) for p in model.parameters()]
    sort_by_importance(model, scores_by("magnitude", model, input_ids))
    assert [(id(p), p.data_ptr(), p.requires_grad, p.is_leaf) for p in model.parameters()] == before
    assert all(module.training for module in model.modules())


def test_tied_model_stays_tied(make_stock, input_ids):
    model = make_stock(tie_word_embeddings=True)
    sort_by_importance(model, scores_by("magnitude", model, input_ids))
    assert model.lm_head.weight is model.gpt_neox.embed_in.weight


# The best first


@pytest.mark.parametrize("seed", range(3))
def test_coarse_subnet_of_the_sorted_network_is_the_original_subnet_of_the_unsorted_one(
    exact_variant, draw, input_ids, seed
):
    model = copy.deepcopy(exact_variant)
    order = sort_by_importance(model, random_scores(Shape.from_config(model.config), seed))
    coarse = draw(SearchSpace.from_config(model.config, **COARSE), seed)
    with model.active_subnet(coarse), exact_variant.active_subnet(order.original(coarse)):
        torch.testing.assert_close(logits(model, input_ids), logits(exact_variant, input_ids), **close(model))
    students = extract_subnet(model, coarse), extract_subnet(exact_variant, order.original(coarse))
    torch.testing.assert_close(*(logits(student, input_ids) for student in students), **close(model))


@pytest.mark.parametrize("seed", range(3))
def test_fine_subnet_of_the_sorted_network_is_its_original_too(exact, draw_within, input_ids, seed):
    model, shape = copy.deepcopy(exact), Shape.from_config(exact.config)
    order = sort_by_importance(model, random_scores(shape, seed))
    fine = draw_within(shape, seed)
    with model.active_subnet(fine), exact.active_subnet(order.original(fine)):
        torch.testing.assert_close(logits(model, input_ids), logits(exact, input_ids), **CLOSE)


def test_full_subnet_is_its_own_original(supernet):
    full = SubnetConfig.full(supernet.config)
    assert Order.by(random_scores(Shape.from_config(supernet.config))).original(full) == full


@pytest.mark.parametrize("criterion", [*CRITERIA, "random"])
def test_coarse_subnet_keeps_exactly_the_best_entries(supernet, draw, input_ids, criterion):
    model = copy.deepcopy(supernet)
    scores = scores_by(criterion, model, input_ids)
    order = sort_by_importance(model, scores)
    coarse = draw(SearchSpace.from_config(model.config, **COARSE), 5)
    original = order.original(coarse)
    assert set(indices(original.hidden_size)) == best(scores.channels, coarse.shape.hidden_size)
    assert original.layers == coarse.layers
    for position, layer in enumerate(coarse.layers):
        heads, neurons = coarse.shape.num_attention_heads[position], coarse.shape.intermediate_size[position]
        assert set(indices(original.num_attention_heads[position])) == best(scores.heads[layer], heads)
        assert set(indices(original.intermediate_size[position])) == best(scores.neurons[layer], neurons)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_of_the_sorted_model_are_the_same_ones_in_descending_order(exact, input_ids, criterion):
    model = copy.deepcopy(exact)
    before = scores_by(criterion, model, input_ids)
    sort_by_importance(model, before)
    after = scores_by(criterion, model, input_ids)
    for name in ("heads", "neurons"):
        for unsorted, now in zip(getattr(before, name), getattr(after, name), strict=True):
            np.testing.assert_allclose(now, np.sort(unsorted)[::-1], rtol=1e-4, atol=1e-6 * unsorted.max())
    channels = np.sort(before.channels)[::-1]
    np.testing.assert_allclose(after.channels, channels, rtol=1e-4, atol=1e-6 * channels[0])
    np.testing.assert_allclose(after.layers, before.layers, rtol=1e-4)


def test_sorting_twice_changes_nothing_the_second_time(supernet, input_ids):
    model = copy.deepcopy(supernet)
    sort_by_importance(model, scores_by("magnitude", model, input_ids))
    once = copy.deepcopy(model.state_dict())
    order = sort_by_importance(model, scores_by("magnitude", model, input_ids))
    assert order == Order(tuple(range(32)), (tuple(range(4)),) * 5, (tuple(range(64)),) * 5)
    assert all(torch.equal(tensor, once[name]) for name, tensor in model.state_dict().items())


def test_equal_scores_leave_entries_in_their_order():
    equal = ImportanceScores(np.ones(5), (np.ones(4),) * 5, (np.ones(64),) * 5, np.repeat([1.0, 2.0], 16))
    order = Order.by(equal)
    assert order.channels == (*range(16, 32), *range(16))
    assert order.heads == (tuple(range(4)),) * 5 and order.neurons == (tuple(range(64)),) * 5


# On disk


def test_saved_sorted_super_network_is_a_plain_checkpoint(variant_supernet, input_ids, tmp_path):
    model = copy.deepcopy(variant_supernet)
    sort_by_importance(model, scores_by("activation", model, input_ids))
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation=model.config._attn_implementation
    )
    assert type(loaded) is GPTNeoXForCausalLM and not any(info.values())
    torch.testing.assert_close(logits(loaded, input_ids), logits(model, input_ids), **CLOSE)


# Errors


def test_scores_of_a_model_of_other_sizes_are_an_error_and_leave_the_model_as_it_is(supernet, uneven_subnet):
    model = copy.deepcopy(supernet)
    with pytest.raises(
        SubnetError, match=r"these scores are for a model with Shape\(.*\), got one with .*; score this"
    ):
        sort_by_importance(model, random_scores(uneven_subnet.shape))
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), supernet.parameters(), strict=True)
    )


def test_sorting_while_a_subnet_is_active_is_an_error(supernet, uneven_subnet):
    message = "a subnet is active: leave the active_subnet block first"
    with supernet.active_subnet(uneven_subnet), pytest.raises(SubnetError, match=message):
        sort_by_importance(supernet, random_scores(Shape.from_config(supernet.full_config)))


def test_scores_of_before_the_sorting_are_an_error_the_second_time(supernet, input_ids):
    network = copy.deepcopy(supernet)
    scores = score_importance(network, input_ids, criterion="magnitude", progress=False)
    sort_by_importance(network, scores)
    with pytest.raises(SubnetError, match="these scores belong to another model, or this one was sorted since"):
        sort_by_importance(network, scores)


def test_scores_that_are_not_finite_are_an_error(supernet, input_ids):
    scores = score_importance(supernet, input_ids, criterion="magnitude", progress=False)
    scores.neurons[1][3] = float("nan")
    with pytest.raises(SubnetError, match="some of these scores are NaN or Inf; score the model in float32"):
        sort_by_importance(copy.deepcopy(supernet), scores)
