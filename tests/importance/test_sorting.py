"""Sorting: the model computes what it did, and its first entries are the most important ones."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_whittle import ImportanceScores, SearchSpace, SubnetConfig, extract_subnet, score_importance, sort_by_importance
from hf_whittle.architectures.dimensions import CHANNELS, HEAD_CHANNELS, HEADS, LAYERS, NEURONS, VOCABULARY
from hf_whittle.architectures.registry import get_architecture
from hf_whittle.errors import SubnetError
from hf_whittle.importance.scores import CRITERIA
from hf_whittle.importance.sorting import Order
from hf_whittle.models.elastic import ElasticNorm
from hf_whittle.subnet import Shape, indices

CLOSE = {"rtol": 0, "atol": 1e-10}  # of double precision: sums in another order differ by rounding alone
SINGLE = {"rtol": 0, "atol": 2e-4}
RIGHT_PADDED = torch.tensor([[1] * 12, [1] * 9 + [0] * 3, [1] * 5 + [0] * 7])
LEFT_PADDED = RIGHT_PADDED.flip(1)
COARSE = {"granularity": "coarse", "layer_wise": True}


def random_scores(shape, seed=0):
    """Scores drawn at random, some of them equal."""
    rng = np.random.default_rng(seed)
    layers, entries = rng.random(shape.num_hidden_layers), {}
    for dimension in shape.dimensions:
        sizes = getattr(shape, dimension.name)
        drawn = [rng.random(size).round(1) for size in (sizes if dimension.per_layer else [sizes])]
        entries[dimension.name] = tuple(drawn) if dimension.per_layer else drawn[0]
    return ImportanceScores(layers, entries)


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
    """Tolerances: norms and eager attention of transformers compute in single precision, whatever the model's."""
    has_own_norms = any(isinstance(module, ElasticNorm) for module in model.modules())
    return SINGLE if has_own_norms or model.config._attn_implementation == "eager" else CLOSE


def best(scores, number):
    """The entries with the `number` highest scores, the first of equal ones."""
    return {entry for _, entry in sorted((-score, entry) for entry, score in enumerate(scores.tolist()))[:number]}


@pytest.fixture(scope="module")
def exact_variant(any_supernet):
    """Super-networks of every kind in double precision."""
    return copy.deepcopy(any_supernet).double()


@pytest.fixture(scope="module")
def exact(supernet):
    return copy.deepcopy(supernet).double()


@pytest.fixture
def exact_models(exact, stock, uneven_subnet):
    """A super-network, a stock model and a student whose layers differ."""
    student = extract_subnet(stock, uneven_subnet).double()
    return {"super-network": copy.deepcopy(exact), "stock": copy.deepcopy(stock).double(), "student": student}


# The same function


@pytest.mark.slow_after(6)
@pytest.mark.parametrize("criterion", ["activation", "random"])
def test_sorted_model_computes_what_it_did(exact_variant, input_ids, criterion):
    model = copy.deepcopy(exact_variant)
    order = sort_by_importance(model, scores_by(criterion, model, input_ids))
    assert order.of(CHANNELS) != tuple(range(32))
    assert not torch.equal(model.get_input_embeddings().weight, exact_variant.get_input_embeddings().weight)
    before = logits(exact_variant, input_ids, attention_mask=RIGHT_PADDED)
    after = logits(model, input_ids, attention_mask=RIGHT_PADDED)
    # Eager attention of transformers gives NaN where a window holds only padding, in both models.
    torch.testing.assert_close(after, before, **close(model), equal_nan=True)
    assert torch.isfinite(before[0]).all()
    torch.testing.assert_close(cached_logits(model, input_ids), logits(exact_variant, input_ids), **close(model))


def test_sorted_model_computes_what_it_did_in_single_precision(any_supernet, input_ids):
    model = copy.deepcopy(any_supernet)
    sort_by_importance(model, scores_by("activation", model, input_ids))
    before, after = (logits(each, input_ids, attention_mask=LEFT_PADDED) for each in (any_supernet, model))
    torch.testing.assert_close(after[LEFT_PADDED == 1], before[LEFT_PADDED == 1], **SINGLE)


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
    for layer, heads in enumerate(scores.of(HEADS)):
        assert list(heads[list(order.of(HEADS, layer))]) == sorted(heads, reverse=True)


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


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("seed", range(2))
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


@pytest.mark.parametrize("seed", range(2))
def test_fine_subnet_of_the_sorted_network_is_its_original_too(exact_variant, draw_within, input_ids, seed):
    model, shape = copy.deepcopy(exact_variant), Shape.from_config(exact_variant.config)
    order = sort_by_importance(model, random_scores(shape, seed))
    fine = draw_within(shape, seed)
    with model.active_subnet(fine), exact_variant.active_subnet(order.original(fine)):
        torch.testing.assert_close(logits(model, input_ids), logits(exact_variant, input_ids), **close(model))


def test_full_subnet_is_its_own_original(each_supernet):
    full, shape = SubnetConfig.full(each_supernet.config), Shape.from_config(each_supernet.config)
    order = Order.by(random_scores(shape))
    assert order.original(full) == full
    named = full.replaced({d: shape.size(d) for d in shape.dimensions if d.is_optional})
    assert order.original(named) == named


@pytest.mark.parametrize("criterion", [*CRITERIA, "random"])
def test_coarse_subnet_keeps_exactly_the_best_entries(each_supernet, draw_within, input_ids, criterion):
    model = copy.deepcopy(each_supernet)
    scores = scores_by(criterion, model, input_ids)
    order = sort_by_importance(model, scores)
    coarse = draw_within(model.config, 5, granularity="coarse")
    original, shape = order.original(coarse), coarse.shape
    assert original.layers == coarse.layers
    for dimension in shape.dimensions:
        kept, of_dimension = original.kept(dimension), scores.of(dimension)
        if dimension is HEAD_CHANNELS:
            assert kept == coarse.kept(dimension)
        elif not dimension.per_layer:
            assert set(indices(kept)) == best(of_dimension, shape.size(dimension))
        else:
            for position, layer in enumerate(coarse.layers):
                most = best(of_dimension[layer], shape.size(dimension, position))
                assert set(indices(kept[position])) == most


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_of_the_sorted_model_are_the_same_ones_in_descending_order(each_supernet, input_ids, criterion):
    model = copy.deepcopy(each_supernet).double()
    before = scores_by(criterion, model, input_ids)
    sort_by_importance(model, before)
    after = scores_by(criterion, model, input_ids)
    for dimension in set(Shape.from_config(model.config).dimensions) - {VOCABULARY}:
        unsorted, now = before.of(dimension), after.of(dimension)
        for earlier, later in zip(unsorted, now, strict=True) if dimension.per_layer else [(unsorted, now)]:
            expected = earlier if dimension is HEAD_CHANNELS else np.sort(earlier)[::-1]
            np.testing.assert_allclose(later, expected, rtol=1e-4, atol=1e-6 * expected.max())
    np.testing.assert_allclose(after.layers, before.layers, rtol=1e-4)


def test_sorting_twice_changes_nothing_the_second_time(each_supernet, input_ids):
    model, shape = copy.deepcopy(each_supernet), Shape.from_config(each_supernet.config)
    sort_by_importance(model, scores_by("magnitude", model, input_ids))
    once = copy.deepcopy(model.state_dict())
    order = sort_by_importance(model, scores_by("magnitude", model, input_ids))
    for dimension in shape.dimensions:
        if dimension not in (HEAD_CHANNELS, VOCABULARY):
            assert order.of(dimension, 3) == tuple(range(shape.size(dimension, 3)))
    assert all(torch.equal(tensor, once[name]) for name, tensor in model.state_dict().items())


def test_equal_scores_leave_entries_in_their_order():
    channels, heads = np.repeat([1.0, 2.0], 16), (np.ones(4),) * 5
    order = Order.by(ImportanceScores(np.ones(5), {"hidden_size": channels, "num_attention_heads": heads}))
    assert order.of(CHANNELS) == (*range(16, 32), *range(16))
    assert order.of(HEADS, 2) == tuple(range(4))


def test_layers_channels_of_a_head_and_tokens_are_not_sorted(each_supernet):
    order = Order.by(random_scores(Shape.from_config(each_supernet.config)))
    assert all(order.of(dimension) is None for dimension in (LAYERS, HEAD_CHANNELS, VOCABULARY))


# On disk


def test_saved_sorted_super_network_is_a_plain_checkpoint(any_supernet, input_ids, tmp_path):
    model = copy.deepcopy(any_supernet)
    sort_by_importance(model, scores_by("activation", model, input_ids))
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation=model.config._attn_implementation
    )
    assert type(loaded).__name__ == get_architecture(model.config).causal_class and not any(info.values())
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
    scores.of(NEURONS)[1][3] = float("nan")
    with pytest.raises(SubnetError, match="some of these scores are NaN or Inf; score the model in float32"):
        sort_by_importance(copy.deepcopy(supernet), scores)
