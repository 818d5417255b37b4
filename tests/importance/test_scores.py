"""Importance scores against other formulas: weights gathered by hand, gates, recorded activations, real removal."""

import copy
import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors.numpy import save_file
from torch.func import functional_call
from transformers import GPTNeoXModel

from hf_whittle import ImportanceScores, SubnetConfig, extract_subnet, score_importance
from hf_whittle.architectures.dimensions import (
    CHANNELS,
    HEAD_CHANNELS,
    HEADS,
    KEY_VALUE_HEADS,
    LAYERS,
    NEURONS,
    QUERIES,
)
from hf_whittle.architectures.registry import get_architecture
from hf_whittle.errors import CheckpointError, DataError, SubnetError, VocabularyError
from hf_whittle.importance.scores import CRITERIA, LAYER_CRITERIA
from hf_whittle.subnet import Shape

KINDS = {
    "parallel": {},
    "sequential": {"use_parallel_residual": False},
    "tied": {"tie_word_embeddings": True},
    "no attention bias": {"attention_bias": False},
    "llama": {"model_type": "llama", "attention_bias": True},
    "llama tied": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "gemma3": {"model_type": "gemma3_text"},
    "cohere": {"model_type": "cohere", "use_qk_norm": True},
}
WIDTH = 8  # channels of a head
OWNED = {  # by the end of a weight's name, the factors of each of its axes: "c" channels, "d" channels of a head, ...
    "key_value.weight": ("h3d", "c"),
    "key_value.bias": ("h3d",),
    "q_proj.weight": ("gqd", "c"),
    "q_proj.bias": ("gqd",),
    "k_proj.weight": ("gd", "c"),
    "k_proj.bias": ("gd",),
    "v_proj.weight": ("gd", "c"),
    "v_proj.bias": ("gd",),
    "o_proj.weight": ("c", "gqd"),
    "o_proj.bias": ("c",),
    "attention.dense.weight": ("c", "hd"),
    "attention.dense.bias": ("c",),
    "dense_h_to_4h.weight": ("n", "c"),
    "dense_h_to_4h.bias": ("n",),
    "dense_4h_to_h.weight": ("c", "n"),
    "dense_4h_to_h.bias": ("c",),
    "gate_proj.weight": ("n", "c"),
    "up_proj.weight": ("n", "c"),
    "down_proj.weight": ("c", "n"),
    "embed_in.weight": ("v", "c"),
    "embed_tokens.weight": ("v", "c"),
    "lm_head.weight": ("v", "c"),
    "q_norm.weight": ("d",),
    "k_norm.weight": ("d",),
    "norm.weight": ("c",),
    "norm.bias": ("c",),
}
OF_OTHERS = {
    "gpt2": {
        "wte.weight": ("v", "c"), "wpe.weight": ("v", "c"), "c_attn.weight": ("c", "3hd"), "c_attn.bias": ("3hd",),
        "attn.c_proj.weight": ("hd", "c"), "mlp.c_proj.weight": ("n", "c"), "c_proj.bias": ("c",),
        "c_fc.weight": ("c", "n"), "c_fc.bias": ("n",), "weight": ("c",), "bias": ("c",),
    },
    "opt": {
        "embed_tokens.weight": ("v", "c"), "embed_positions.weight": ("v", "c"), "out_proj.weight": ("c", "hd"),
        "out_proj.bias": ("c",), "norm.weight": ("c",), "norm.bias": ("c",), "_proj.weight": ("hd", "c"),
        "_proj.bias": ("hd",), "fc1.weight": ("n", "c"), "fc1.bias": ("n",), "fc2.weight": ("c", "n"),
        "fc2.bias": ("c",), "lm_head.weight": ("v", "c"),
    },
    "cohere": {**OWNED, "q_norm.weight": ("gq", "d"), "k_norm.weight": ("g", "d")},
}  # fmt: skip
FACTORS = {CHANNELS: "c", HEAD_CHANNELS: "d", HEADS: "h", KEY_VALUE_HEADS: "g", QUERIES: "q", NEURONS: "n"}
OFFSET = {"gemma3_text": 1.0}  # of the weights of norms, by architecture
ROTATED = {"gpt_neox": 2}  # channels of a head that are rotated, by architecture; by default all
PAIRS = [("magnitude", "magnitude"), ("activation", "cosine"), ("taylor", "taylor"), ("magnitude", "removal")]
each_pair = pytest.mark.parametrize(("criterion", "layer_criterion"), PAIRS)


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def kind(request, make_stock, make_supernet):
    return make_supernet(make_stock(**request.param))


@pytest.fixture(scope="module")
def uneven_student(stock, uneven_subnet):
    """A student whose layers differ."""
    return extract_subnet(stock, uneven_subnet)


@pytest.fixture(scope="module", params=[*KINDS, "uneven student"])
def model(request, make_stock, make_supernet, uneven_student):
    if request.param == "uneven student":
        return uneven_student
    return make_supernet(make_stock(**KINDS[request.param]))


@pytest.fixture(scope="module")
def one_layer(make_stock, make_supernet):
    return make_supernet(make_stock(num_hidden_layers=1))


def score(model, blocks, criterion="activation", layer_criterion="cosine", **settings):
    return score_importance(
        model, blocks, criterion=criterion, layer_criterion=layer_criterion, progress=False, **settings
    )


def every_array(scores):
    return [values for _, _, values in of_entries(scores)]


def assert_same(first, second):
    for ours, theirs in zip(every_array(first), every_array(second), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def assert_close(scores, expected):
    np.testing.assert_allclose(scores, torch.as_tensor(expected).numpy(), rtol=1e-4, atol=1e-5 * float(max(expected)))


def of_entries(scores):
    """The scores of every dimension: the dimension, the layer, the values."""
    yield LAYERS, None, scores.layers
    for dimension in FACTORS:
        values = scores.of(dimension)
        if isinstance(values, tuple):
            yield from ((dimension, layer, of_layer) for layer, of_layer in enumerate(values))
        elif values is not None:
            yield dimension, None, values


def together(model, dimension, entries):
    """Indices of the entries that are scored together, of each entry; of channels of a head, where they lie in it."""
    if dimension is not HEAD_CHANNELS:
        return [[entry] for entry in range(entries)]
    is_interleaved = get_architecture(model.config).is_interleaved
    half = 0 if is_interleaved else ROTATED.get(model.config.model_type.removeprefix("whittle_"), entries) // 2
    pairs = [[first, first + half] for first in range(half)]
    pairs += [[first, first + 1] for first in range(2 * half, entries, 2)]
    return [pair for pair in pairs for _ in pair]


def owned(model, dimension, layer):
    """The weights that belong to entries of a dimension: the name, and axes and factors to unflatten and gate."""
    sizes = {"d": WIDTH, "3": 3, "q": 2}
    for name, parameter in model.named_parameters():
        if layer is not None and not re.search(rf"\.(layers|h)\.{layer}\.", name):
            continue
        known = OF_OTHERS.get(model.config.model_type, OWNED)
        axes = next(axes for end, axes in known.items() if name.endswith(end))
        for axis, factors in enumerate(axes):
            if FACTORS[dimension] in factors:
                shape = [sizes.get(factor, -1) for factor in factors]
                yield name, parameter, axis, shape, factors.index(FACTORS[dimension])


def gated(model, dimension, layer, gates):
    """The weights, all that belongs to entry `i` multiplied by `gates[i]`, and the names of those with a gate."""
    weights, names = dict(model.named_parameters()), []
    offset = OFFSET.get(model.config.model_type, 0)
    if dimension is LAYERS:
        names = [name for name in weights if ".layers." in name]
        factors = {name: gates[int(name.split(".layers.")[1].split(".")[0])] for name in names}
    else:
        factors = {}
        for name, parameter, axis, sizes, factor in owned(model, dimension, layer):
            shape = parameter.unflatten(axis, sizes).shape
            along = torch.ones(len(shape), dtype=int)
            along[axis + factor] = -1
            factors[name] = gates.view(*along.tolist()).expand(shape).reshape(parameter.shape)
        names = list(factors)
    for name in names:
        added = offset if "norm" in name else 0
        weights[name] = (weights[name] + added) * factors[name] - added
    return weights, names


# Magnitude


def test_magnitude_is_the_norm_of_the_rows_and_columns_of_an_entry(stock, input_ids):
    scores, state = score(stock, input_ids, "magnitude", "magnitude"), stock.state_dict()
    layer = {name.removeprefix("gpt_neox.layers.2."): tensor for name, tensor in state.items() if ".layers.2." in name}
    head = [
        layer["attention.query_key_value.weight"].view(4, 3 * WIDTH, 32)[3],
        layer["attention.query_key_value.bias"].view(4, 3 * WIDTH)[3],
        layer["attention.dense.weight"][:, 24:32],
    ]
    neuron = [layer["mlp.dense_h_to_4h.weight"][7], layer["mlp.dense_h_to_4h.bias"][7:8]]
    neuron += [layer["mlp.dense_4h_to_h.weight"][:, 7]]

    def norm(tensors):
        return pytest.approx(torch.cat([tensor.flatten() for tensor in tensors]).norm().item(), rel=1e-5)

    assert scores.of(HEADS)[2][3] == norm(head)
    assert scores.of(NEURONS)[2][7] == norm(neuron)
    assert scores.layers[2] == norm(layer.values())


@pytest.mark.slow
def test_every_magnitude_is_the_norm_of_what_a_gate_leaves(model, input_ids):
    offset = OFFSET.get(model.config.model_type, 0)
    for dimension, layer, values in of_entries(score(model, input_ids, "magnitude", "magnitude")):
        expected = []
        for entries in together(model, dimension, len(values)):
            only = torch.zeros(len(values)).index_fill(0, torch.tensor(entries), 1)
            weights, names = gated(model, dimension, layer, only)
            left = [weights[name].detach().flatten() + (offset if "norm" in name else 0) for name in names]
            expected.append(torch.cat(left).norm())
        assert_close(values, expected)


# Taylor


def slopes(model, batch, dimension, layer, entries):
    """Slope of the loss of a batch along a gate at every entry."""
    gates = torch.ones(entries, requires_grad=True)
    inputs = {"input_ids": batch, "labels": batch}
    loss = functional_call(model, gated(model, dimension, layer, gates)[0], (), inputs).loss
    return torch.autograd.grad(loss, gates)[0]


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("batch_size", [2, 16])
def test_taylor_is_the_mean_over_batches_of_the_squared_slope_along_a_gate(model, input_ids, batch_size):
    batches = torch.split(input_ids, batch_size)
    for dimension, layer, values in of_entries(score(model, input_ids, "taylor", "taylor", batch_size=batch_size)):
        groups = torch.tensor(together(model, dimension, len(values)))
        squares = [slopes(model, batch, dimension, layer, len(values))[groups].sum(1) ** 2 for batch in batches]
        assert_close(values, torch.stack(squares).mean(0))


def test_taylor_is_the_squared_difference_of_the_loss_for_a_small_change(stock, input_ids):
    exact, scores = copy.deepcopy(stock).double(), score(stock, input_ids, "taylor")

    def loss(factor):
        gates = torch.ones(4, dtype=torch.double).index_fill(0, torch.tensor(1), factor)
        with torch.no_grad():
            logits = functional_call(exact, gated(exact, HEADS, 3, gates)[0], (input_ids,)).logits[:, :-1]
            return F.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten()).item()

    assert scores.of(HEADS)[3][1] == pytest.approx(((loss(1 + 1e-4) - loss(1 - 1e-4)) / 2e-4) ** 2, rel=1e-3)


def test_taylor_works_where_gradients_are_switched_off(stock, input_ids):
    expected = score(stock, input_ids, "taylor", "taylor")
    with torch.no_grad():
        assert_same(score(stock, input_ids, "taylor", "taylor"), expected)


def test_taylor_of_a_frozen_model_is_that_of_a_trainable_one(stock, input_ids):
    frozen = copy.deepcopy(stock).requires_grad_(False)
    assert_same(score(frozen, input_ids, "taylor", "taylor"), score(stock, input_ids, "taylor", "taylor"))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


# Activation and cosine


@pytest.fixture(scope="module")
def states(model, input_ids):
    """Input and output of each norm and matrix by its name, each `(blocks, tokens, features)`."""
    seen = {}
    modules = {model.get_submodule(name.removesuffix(".weight")): name.removesuffix(".weight")
               for name, _ in model.named_parameters() if name.endswith(".weight")}  # fmt: skip

    def note(module, inputs, output):
        seen[modules[module]] = inputs[0], output

    handles = [module.register_forward_hook(note) for module in modules]
    with torch.no_grad():
        model(input_ids)
    for handle in handles:
        handle.remove()
    return seen


def typical(states):
    """Norm of each entry over its features, averaged over tokens, and the norm of these averages over blocks.

    Args:
        states (`torch.Tensor`): `(blocks, tokens, entries, features)`.
    """
    return states.norm(dim=-1).mean(1).norm(dim=0)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_activation_is_the_typical_size_of_what_a_matrix_reads(model, states, input_ids, batch_size):
    scores = score(model, input_ids, batch_size=batch_size)
    attending = [read for name, (read, _) in states.items() if name.endswith(("attention.dense", "o_proj"))]
    hidden = [read for name, (read, _) in states.items() if name.endswith(("dense_4h_to_h", "down_proj"))]
    is_grouped = scores.of(HEADS) is None
    queries = [read.unflatten(-1, (-1, 2 if is_grouped else 1, WIDTH)) for read in attending]
    for layer in range(len(scores.layers)):
        heads = scores.of(KEY_VALUE_HEADS if is_grouped else HEADS)[layer]
        assert_close(heads, typical(queries[layer].flatten(3)))
        assert_close(scores.of(NEURONS)[layer], typical(hidden[layer][..., None]))
    if is_grouped:
        assert_close(scores.of(QUERIES), sum(typical(read.transpose(2, 3).flatten(3)) for read in queries))
    groups = together(model, HEAD_CHANNELS, WIDTH)
    channels = [read[..., groups].flatten(2, 3).transpose(2, 3).flatten(3) for read in queries]
    assert_close(scores.of(HEAD_CHANNELS), sum(map(typical, channels)))
    read_by_matrices = ("input_layernorm", "pre_feedforward_layernorm", "final_layer_norm", "model.norm")
    if model.config.model_type != "gemma3_text":
        read_by_matrices += ("post_attention_layernorm",)
    norms = [output for name, (_, output) in states.items() if name.endswith(read_by_matrices)]
    norms_of_a_layer = 1 if model.config.model_type == "cohere" else 2
    assert len(norms) == norms_of_a_layer * len(scores.layers) + 1
    assert_close(scores.of(CHANNELS), sum(typical(norm[..., None]) for norm in norms))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_cosine_is_how_far_a_layer_turns_its_input(model, states, input_ids, batch_size):
    between = ("input_layernorm", "final_layer_norm", "model.norm")
    hidden_states = [read.double() for name, (read, _) in states.items() if name.endswith(between)]
    expected = []
    for before, after in pairwise(hidden_states):
        cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
        expected.append(1 - cosine.mean())
    assert_close(score(model, input_ids, batch_size=batch_size).layers, expected)


# Removal


def loss_of(model, input_ids):
    with torch.no_grad():
        return model(input_ids, labels=input_ids).loss.item()


@pytest.mark.slow
def test_removal_is_how_much_worse_the_student_without_the_layer_is(kind, input_ids):
    scores = score(kind, input_ids, layer_criterion="removal", batch_size=2)
    for layer in range(5):
        without = SubnetConfig.full(kind.config).with_layers([other for other in range(5) if other != layer])
        expected = loss_of(extract_subnet(kind, without), input_ids) - loss_of(kind, input_ids)
        assert scores.layers[layer] == pytest.approx(expected, rel=1e-4, abs=1e-5)


# Every criterion


@pytest.mark.parametrize("criterion", CRITERIA)
def test_entry_that_does_nothing_scores_nothing(each_supernet, input_ids, criterion):
    idle = copy.deepcopy(each_supernet)
    by_dimension = ((HEADS, 1, 2), (KEY_VALUE_HEADS, 2, 1), (QUERIES, None, 1), (NEURONS, 3, 40), (CHANNELS, None, 5))
    idlers = [each for each in by_dimension if each[0] in get_architecture(idle.config).dimensions]
    if criterion == "activation":  # attention without queries is uniform, and passes on values
        idlers = [each for each in idlers if each[0] is not QUERIES]
    with torch.no_grad():
        for dimension, layer, entry in idlers:
            gates = torch.ones(Shape.from_config(idle.config).size(dimension)).index_fill(0, torch.tensor(entry), 0)
            weights, names = gated(idle, dimension, layer, gates)
            for name in names:
                idle.get_parameter(name).copy_(weights[name])
    scores = score(idle, input_ids, criterion)
    for dimension, layer, entry in idlers:
        values = scores.of(dimension) if layer is None else scores.of(dimension)[layer]
        assert values[entry] == 0 and np.count_nonzero(values) == len(values) - 1


@pytest.mark.parametrize("layer_criterion", ["cosine", "removal"])
def test_layer_that_adds_nothing_scores_nothing(supernet, input_ids, layer_criterion):
    idle = copy.deepcopy(supernet)
    with torch.no_grad():
        for module in (idle.gpt_neox.layers[2].attention.dense, idle.gpt_neox.layers[2].mlp.dense_4h_to_h):
            module.weight.zero_()
            module.bias.zero_()
    layers = score(idle, input_ids, layer_criterion=layer_criterion).layers
    assert abs(layers[2]) < 1e-6 and all(abs(layers[[0, 1, 3, 4]]) > 1e-3)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("layer_criterion", LAYER_CRITERIA)
def test_criteria_of_widths_and_layers_do_not_mix(supernet, input_ids, criterion, layer_criterion):
    both = score(supernet, input_ids, criterion, layer_criterion)
    widths, layers = score(supernet, input_ids, criterion), score(supernet, input_ids, layer_criterion=layer_criterion)
    assert_same(both, ImportanceScores(layers.layers, widths.entries))
    assert (both.settings["criterion"], both.settings["layer_criterion"]) == (criterion, layer_criterion)


@each_pair
def test_scores_of_every_entry_in_half_precision_are_finite(supernet, input_ids, criterion, layer_criterion):
    half = copy.deepcopy(supernet).bfloat16()
    scores = score(half, input_ids, criterion, layer_criterion)
    scores.check(Shape.from_config(half.config))
    assert all(values.dtype == np.float32 and np.isfinite(values).all() for values in every_array(scores))


@each_pair
def test_dropout_is_off_while_scores_are_taken(make_stock, make_supernet, input_ids, criterion, layer_criterion):
    dropping = make_supernet(make_stock(hidden_dropout=0.5))
    expected = score(dropping, input_ids, criterion, layer_criterion)
    assert_same(score(dropping.train(), input_ids, criterion, layer_criterion), expected)


def test_dataset_and_tensor_give_the_same_scores(supernet, input_ids):
    from_dataset = score(supernet, Dataset.from_dict({"input_ids": input_ids.tolist()}))
    from_tensor = score(supernet, input_ids)
    assert from_dataset.settings == from_tensor.settings
    assert_same(from_dataset, from_tensor)


def test_super_network_and_stock_model_give_the_same_scores(supernet, stock, input_ids):
    assert_same(score(supernet, input_ids), score(stock, input_ids))


# The model is left as it was


def state_of(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "training": [module.training for module in model.modules()],
        "needs gradient": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "hooks": [len(getattr(module, name)) for module in model.modules() for name in hooks],
        "weights": [tensor.tolist() for tensor in model.state_dict().values()],
    }


@pytest.fixture
def half_frozen(supernet):
    """A super-network in training, some of it frozen, one parameter with a gradient."""
    model = copy.deepcopy(supernet).train()
    model.gpt_neox.layers[1].requires_grad_(False)
    model.gpt_neox.embed_in.weight.grad = torch.ones(99, 32)
    return model


@each_pair
@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_it_was(half_frozen, input_ids, criterion, layer_criterion, training):
    half_frozen.train(training)
    before = state_of(half_frozen)
    score(half_frozen, input_ids, criterion, layer_criterion)
    assert state_of(half_frozen) == before
    assert torch.equal(half_frozen.gpt_neox.embed_in.weight.grad, torch.ones(99, 32))


@pytest.mark.parametrize(("criterion", "layer_criterion"), PAIRS[1:])
def test_model_is_left_as_it_was_by_an_interruption(half_frozen, input_ids, criterion, layer_criterion):
    def interrupt(*_):
        raise KeyboardInterrupt

    half_frozen.gpt_neox.layers[3].register_forward_hook(interrupt)
    before = state_of(half_frozen)
    with pytest.raises(KeyboardInterrupt):
        score(half_frozen, input_ids, criterion, layer_criterion)
    assert state_of(half_frozen) == before


@pytest.mark.parametrize("layer_criterion", ["cosine", "taylor", "removal"])
def test_part_in_evaluation_of_a_model_in_training_stays_in_evaluation(half_frozen, input_ids, layer_criterion):
    half_frozen.gpt_neox.layers[1].eval()
    before = state_of(half_frozen)
    score(half_frozen, input_ids, "magnitude", layer_criterion)
    assert state_of(half_frozen) == before


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("layer_criterion", ["cosine", "taylor", "removal"])
def test_progress_bar_can_be_silenced(supernet, input_ids, capsys, monkeypatch, layer_criterion, progress):
    monkeypatch.setattr("hf_whittle.progress.LINES_EVERY", 0)
    score_importance(supernet, input_ids, layer_criterion=layer_criterion, progress=progress)
    printed = capsys.readouterr()
    assert printed.out == "" and ("importance" in printed.err) is progress
    assert progress or printed.err == ""


# On disk


@pytest.fixture
def forbid_running(monkeypatch):
    """A function after whose call no GPT-NeoX model runs any more."""

    def refuse(*_, **__):
        raise AssertionError("the model was run")

    return lambda: monkeypatch.setattr(GPTNeoXModel, "forward", refuse)


@each_pair
def test_cached_scores_are_read_without_running_the_model(
    supernet, input_ids, tmp_path, forbid_running, criterion, layer_criterion
):
    folder = tmp_path / "new" / "folder"
    first = score(supernet, input_ids, criterion, layer_criterion, cache_dir=folder)
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]
    forbid_running()
    second = score(copy.deepcopy(supernet), input_ids.clone(), criterion, layer_criterion, cache_dir=folder)
    assert_same(first, second)
    assert first.settings == second.settings


def test_without_the_cache_the_model_is_run_again(supernet, input_ids, tmp_path, forbid_running):
    score(supernet, input_ids, cache_dir=tmp_path)
    forbid_running()
    with pytest.raises(AssertionError, match="the model was run"):
        score(supernet, input_ids)


@pytest.mark.slow
def test_anything_else_scored_has_another_file(supernet, make_stock, input_ids, tmp_path):
    others = [
        (supernet, input_ids, {}),
        (supernet, input_ids.flip(0), {}),
        (supernet, input_ids[:2], {}),
        (supernet, input_ids.reshape(6, 6), {}),
        (make_stock(seed=1), input_ids, {}),
        (supernet, input_ids, {"criterion": "magnitude"}),
        (supernet, input_ids, {"layer_criterion": "removal"}),
        (supernet, input_ids, {"criterion": "taylor"}),
        (supernet, input_ids, {"criterion": "taylor", "batch_size": 2}),
    ]
    for number, (model, blocks, settings) in enumerate(others, start=1):
        cached = score(model, blocks, **settings, cache_dir=tmp_path)
        assert len(list(tmp_path.iterdir())) == number
        assert_same(cached, score(model, blocks, **settings))
    score(supernet, input_ids, batch_size=2, cache_dir=tmp_path)  # on which the other criteria do not depend
    assert len(list(tmp_path.iterdir())) == len(others)


def test_saved_scores_load_as_the_same(supernet, uneven_student, input_ids, tmp_path):
    for model in (supernet, uneven_student):
        scores = score(model, input_ids)
        scores.save(tmp_path / "scores.safetensors")
        loaded = ImportanceScores.load(tmp_path / "scores.safetensors")
        assert_same(loaded, scores)
        assert loaded.settings == scores.settings == json.loads(json.dumps(scores.settings))


def test_scores_that_are_views_are_saved_as_they_read(tmp_path):
    ascending = np.arange(64, dtype=np.float32)
    of_layers = {"num_attention_heads": (ascending[:4],) * 5, "intermediate_size": (ascending[::-1],) * 5}
    scores = ImportanceScores(ascending[4::-1], {"hidden_size": ascending[::2], **of_layers})
    scores.save(tmp_path / "scores.safetensors")
    assert_same(ImportanceScores.load(tmp_path / "scores.safetensors"), scores)


NOT_SCORES = {"settings": "{}"}
DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "cut off in its header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "no safetensors": lambda path: path.write_bytes(b"These are no scores. " * 50),
    "without settings": lambda path: save_file({"layers": np.zeros(1), "hidden_size": np.zeros(1)}, path),
    "settings of another kind": lambda path: save_file(
        {name: np.zeros(1) for name in ("layers", "hidden_size")}, path, {"settings": "{"}
    ),
    "without a layer": lambda path: save_file(
        {"layers": np.zeros(2), "hidden_size": np.zeros(4), "intermediate_size.0": np.zeros(4)}, path, NOT_SCORES
    ),
    "without channels": lambda path: save_file({"layers": np.zeros(2)}, path, NOT_SCORES),
    "of an earlier version": lambda path: save_file(
        {name: np.zeros(1) for name in ("layers", "heads.0", "neurons.0", "channels")}, path, NOT_SCORES
    ),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_file_of_scores_is_an_error(supernet, input_ids, tmp_path, damage):
    path = tmp_path / "scores.safetensors"
    score(supernet, input_ids).save(path)
    damage(path)
    with pytest.raises(CheckpointError, match=f"cannot read importance scores from {re.escape(str(path))}: .*score"):
        ImportanceScores.load(path)


def test_damaged_cache_is_an_error(supernet, input_ids, tmp_path):
    score(supernet, input_ids, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    DAMAGE["cut off"](path)
    with pytest.raises(CheckpointError, match=f"cannot read importance scores from {re.escape(str(path))}"):
        score(supernet, input_ids, cache_dir=tmp_path)


# Errors


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ({"criterion": "norm"}, "criterion must be one of magnitude, activation, taylor, got 'norm'"),
        ({"criterion": "cosine"}, "criterion must be one of magnitude, activation, taylor, got 'cosine'"),
        (
            {"layer_criterion": "activation"},
            "layer_criterion must be one of magnitude, cosine, taylor, removal, got 'activation'",
        ),
    ],
)
def test_unknown_criterion_is_an_error(supernet, input_ids, criteria, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        score(supernet, input_ids, **criteria)


def test_removal_without_a_super_network_is_an_error(stock, uneven_student, input_ids):
    for model in (stock, uneven_student):
        with pytest.raises(SubnetError, match="'removal' runs the model without a layer: load it as a super-network"):
            score(model, input_ids, layer_criterion="removal")


def test_removal_of_the_only_layer_is_an_error(one_layer, input_ids):
    with pytest.raises(SubnetError, match="'removal' needs a model of at least two layers"):
        score(one_layer, input_ids, layer_criterion="removal")


def test_active_subnet_is_an_error(supernet, input_ids, uneven_subnet):
    message = "a subnet is active: leave the active_subnet block first"
    with supernet.active_subnet(uneven_subnet), pytest.raises(SubnetError, match=message):
        score(supernet, input_ids)


@pytest.mark.parametrize("blocks", [None, Dataset.from_dict({"input_ids": []})], ids=["none", "empty"])
def test_no_text_is_an_error(supernet, blocks):
    with pytest.raises(DataError, match="there are no blocks of text"):
        score(supernet, blocks)


@pytest.mark.parametrize("shape", [(0, 12), (3, 1), (12,)])
def test_text_that_is_not_in_blocks_is_an_error(supernet, shape):
    with pytest.raises(DataError, match=re.escape(f"expected token ids of shape (blocks, block_size), got {shape}")):
        score(supernet, torch.zeros(shape, dtype=torch.long))


def test_text_of_another_vocabulary_is_an_error(supernet):
    with pytest.raises(VocabularyError, match="token ids from 1 to 99, the model's vocabulary has 99 entries"):
        score(supernet, torch.tensor([[1, 2, 99]]))


CUTS = {
    "layers": lambda scores: {"layers": scores.layers[:4]},
    "a layer's heads": lambda scores: {"num_attention_heads": (*scores.of(HEADS)[:4], scores.of(HEADS)[4][:3])},
    "neurons of all layers": lambda scores: {"intermediate_size": tuple(values[:60] for values in scores.of(NEURONS))},
    "channels": lambda scores: {"hidden_size": scores.of(CHANNELS)[:22]},
    "another architecture": lambda scores: {"num_key_value_heads": scores.of(HEADS)},
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_scores_of_a_model_of_other_sizes_are_an_error(supernet, input_ids, cut):
    scores = score(supernet, input_ids)
    changed = cut(scores)
    other = ImportanceScores(changed.pop("layers", scores.layers), {**scores.entries, **changed})
    message = re.escape("these scores are for a model with Shape(") + ".*score this model"
    with pytest.raises(SubnetError, match=message):
        other.check(Shape.from_config(supernet.config))


def test_scores_without_those_of_optional_dimensions_are_whole(each_supernet, input_ids):
    scores = score(each_supernet, input_ids)
    needed = {
        name: values for name, values in scores.entries.items() if name not in ("head_dim", "num_key_value_groups")
    }
    ImportanceScores(scores.layers, needed).check(Shape.from_config(each_supernet.config))
    assert ImportanceScores(scores.layers, needed).of(HEAD_CHANNELS) is None
