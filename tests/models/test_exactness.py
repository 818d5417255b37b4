"""A running subnet, its student and that student back from disk are one model, whatever the model and the call.

The properties hold for every kind of GPT-NeoX and every subnet of the four search spaces, and of one whose students
are stock models; hypothesis draws them.
"""

import contextlib
import copy
import shutil
import tempfile
from functools import cache
from itertools import product
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM

from hf_whittle import SearchSpace, SubnetConfig, extract_subnet
from hf_whittle.models.slicing import slice_weights

CLOSE = {"rtol": 0, "atol": 1e-5}
GRADIENTS_CLOSE = {"rtol": 1e-4, "atol": 1e-5}
TRAINED_CLOSE = {"rtol": 0, "atol": 1e-4}
EQUAL = {"rtol": 0, "atol": 0}


# Random models and calls


class Kind(NamedTuple):
    """Settings in which two GPT-NeoX models may differ."""

    attention: str
    parallel_residual: bool
    tied: bool
    attention_bias: bool
    sizes: tuple[int, int]
    rotary: float
    rope_type: str

    def changes(self):
        """Keyword arguments of `make_stock`; constant ones are no defaults, so that a student that loses one fails.

        Dropout only matters in training mode.
        """
        rope = {"rope_type": self.rope_type, "rope_theta": 500.0, "partial_rotary_factor": self.rotary}
        return {
            "num_hidden_layers": 4,
            "hidden_size": self.sizes[0],
            "num_attention_heads": self.sizes[1],
            "attn_implementation": self.attention,
            "use_parallel_residual": self.parallel_residual,
            "tie_word_embeddings": self.tied,
            "attention_bias": self.attention_bias,
            "rope_parameters": rope if self.rope_type == "default" else {**rope, "factor": 2.0},
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-3,
            "hidden_dropout": 0.1,
            "attention_dropout": 0.2,
        }


BOTH = [False, True]
SIZES = [(24, 4), (32, 4), (32, 2)]
ROTARY = [0.25, 0.5, 0.75, 1.0, 0.0]  # 0.25 and 0.5 of 6 channels are an odd number, which the stock model rounds up
ALL_KINDS = list(product(["sdpa", "eager"], BOTH, BOTH, BOTH, SIZES, ROTARY, ["default", "linear"]))
# Few enough to be built once each; in this sample every value of a field meets every value of every other field.
KINDS = st.sampled_from([Kind(*values) for values in Random(24).sample(ALL_KINDS, 24)])
SEEDS = st.integers(0, 2**16)


class Call(NamedTuple):
    """Arguments of a call of a model."""

    rows: int
    padding: str
    positions: bool
    embeds: bool
    records: bool
    tokens: int
    seed: int

    @property
    def input_ids(self):
        return torch.randint(99, (self.rows, self.tokens), generator=torch.Generator().manual_seed(self.seed))

    @property
    def attention_mask(self):
        """Attention mask; with padding, the last two rows may lack tokens."""
        mask, rng = torch.ones(self.rows, self.tokens, dtype=torch.long), Random(self.seed)
        for row in mask[-2:]:
            missing = rng.randrange(self.tokens)
            if self.padding == "left":
                row[:missing] = 0
            elif self.padding == "right":
                row[self.tokens - missing :] = 0
        return mask

    def inputs(self, kind, hidden_size):
        """Keyword arguments of a forward pass through a model of this kind, with this many channels."""
        generator = torch.Generator().manual_seed(self.seed)
        inputs = {"input_ids": self.input_ids}
        if self.embeds:
            inputs = {"inputs_embeds": torch.randn(self.rows, self.tokens, hidden_size, generator=generator)}
        if self.padding != "none":
            inputs["attention_mask"] = self.attention_mask
        if self.positions:
            inputs["position_ids"] = torch.randint(64, (self.rows, self.tokens), generator=generator)
        if self.records:
            inputs |= {"output_hidden_states": True, "output_attentions": kind.attention == "eager"}
        return inputs


def calls(paddings, choices):
    """Calls padded in one of these ways; `choices` are those of giving positions, giving embeddings and recording."""
    forms = st.sampled_from(list(product([1, 3], paddings, choices, choices, choices)))
    return st.builds(lambda form, tokens, seed: Call(*form, tokens, seed), forms, st.integers(2, 12), SEEDS)


CALLS = calls(["none", "left", "right"], BOTH)
PROMPTS = calls(["none", "left"], [False])
TEXTS = calls(["none"], [False]).map(lambda call: call.input_ids)


FEW = settings(max_examples=5)  # for each search space

SPACES = {
    "coarse uniform": {"granularity": "coarse"},
    "coarse layer-wise": {"granularity": "coarse", "layer_wise": True},
    "fine uniform": {"granularity": "fine"},
    "fine layer-wise": {"granularity": "fine", "layer_wise": True},
    "stock only": {"granularity": "fine", "stock_only": True},
}


@pytest.fixture(scope="module")
def stock_of(make_stock):
    """A function that gives the stock model of a kind."""
    return cache(lambda kind: make_stock(**kind.changes()))


@pytest.fixture(scope="module")
def supernet_of(stock_of, make_supernet):
    """A function that gives the super-network of a kind; tests that change its weights copy it first."""
    return cache(lambda kind: make_supernet(stock_of(kind)))


@pytest.fixture(scope="module", params=SPACES.values(), ids=SPACES)
def draw_from(request, draw):
    """A function that draws a subnet of a super-network, from each of the search spaces."""
    return lambda supernet, seed: draw(SearchSpace.from_config(supernet.config, **request.param), seed)


# Comparisons


@torch.no_grad()
def run(model, **inputs):
    return model(**inputs)


def logits(model, input_ids, **inputs):
    return run(model, input_ids=input_ids, **inputs).logits


def reloaded(student, **loading):
    """The student, saved in one folder, moved to another and loaded there."""
    with tempfile.TemporaryDirectory() as parent:
        saved, moved = Path(parent, "saved"), Path(parent, "moved")
        student.save_pretrained(saved)
        shutil.move(saved, moved)
        attention = student.config._attn_implementation
        return AutoModelForCausalLM.from_pretrained(moved, attn_implementation=attention, **loading)


def assert_same_outputs(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours.logits, theirs.logits, **tolerance)
    for name in {"hidden_states", "attentions"} & ours.keys():
        for our_tensor, their_tensor in zip(ours[name], theirs[name], strict=True):
            torch.testing.assert_close(our_tensor, their_tensor, **tolerance)


def assert_equal_weights(first, second):
    assert type(first) is type(second)
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def backward(model, **inputs):
    """Gradients of the mean loss, 0 where there are none."""
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }


def assert_close_gradients(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, **(tolerance or GRADIENTS_CLOSE))


def nonzero(tensors):
    return sum(map(torch.count_nonzero, tensors.values()))


# Forward


@settings(max_examples=10)
@given(kind=KINDS, seed=SEEDS, call=CALLS)
def test_subnet_and_student_and_reloaded_student_give_the_same_outputs(supernet_of, draw_from, kind, seed, call):
    supernet = supernet_of(kind)
    subnet = draw_from(supernet, seed)
    inputs = call.inputs(kind, subnet.shape.hidden_size)
    with supernet.active_subnet(subnet):
        of_subnet = run(supernet, **inputs)
    student = extract_subnet(supernet, subnet)
    assert_same_outputs(of_subnet, run(student, **inputs), **CLOSE)
    again = reloaded(student)
    assert_equal_weights(again, student)
    assert_same_outputs(run(again, **inputs), run(student, **inputs), **CLOSE)


def cached_logits(model, input_ids, attention_mask, lengths):
    """Logits of pieces of these lengths, one after the other, with a cache."""
    past, steps, done = None, [], 0
    for length in lengths:
        piece, done = input_ids[:, done : done + length], done + length
        output = run(
            model, input_ids=piece, attention_mask=attention_mask[:, :done], past_key_values=past, use_cache=True
        )
        past = output.past_key_values
        steps.append(output.logits)
    assert done == input_ids.shape[1]
    return torch.cat(steps, dim=1)


@FEW
@given(kind=KINDS, seed=SEEDS, call=PROMPTS, first=st.integers(1, 12), then=st.integers(1, 3))
def test_subnet_with_a_cache_equals_its_student_with_and_without(supernet_of, draw_from, kind, seed, call, first, then):
    supernet = supernet_of(kind)
    subnet = draw_from(supernet, seed)
    input_ids, mask, first = call.input_ids, call.attention_mask, min(first, call.tokens)
    lengths = [first, *(min(then, call.tokens - done) for done in range(first, call.tokens, then))]
    with supernet.active_subnet(subnet):
        of_subnet = cached_logits(supernet, input_ids, mask, lengths)
    student = extract_subnet(supernet, subnet)
    torch.testing.assert_close(of_subnet, cached_logits(student, input_ids, mask, lengths), **CLOSE)
    whole, real = logits(student, input_ids, attention_mask=mask, use_cache=False), mask.bool()
    torch.testing.assert_close(of_subnet[real], whole[real], **CLOSE)


# Generation


def greedy_without_cache(model, input_ids, new_tokens):
    for _ in range(new_tokens):
        input_ids = torch.cat([input_ids, logits(model, input_ids, use_cache=False)[:, -1:].argmax(-1)], dim=1)
    return input_ids


@FEW
@given(kind=KINDS, seed=SEEDS, call=PROMPTS)
def test_greedy_tokens_of_a_subnet_are_its_students_and_those_of_each_row_alone_without_a_cache(
    supernet_of, draw_from, kind, seed, call
):
    supernet = supernet_of(kind)
    subnet = draw_from(supernet, seed)
    input_ids, mask = call.input_ids, call.attention_mask
    greedy = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    with supernet.active_subnet(subnet):
        tokens = supernet.generate(input_ids, **greedy)
        assert torch.equal(tokens, supernet.generate(input_ids, **greedy, use_cache=False))
        for row, ids, kept in zip(tokens, input_ids, mask, strict=True):
            assert torch.equal(row[-4:], greedy_without_cache(supernet, ids[kept.bool()][None], 4)[0, -4:])
    student = extract_subnet(supernet, subnet)
    assert torch.equal(tokens, student.generate(input_ids, **greedy))
    assert torch.equal(tokens, student.generate(input_ids, **greedy, use_cache=False))
    assert torch.equal(tokens, reloaded(student).generate(input_ids, **greedy))


STRATEGIES = [{"do_sample": True}, {"num_beams": 3}, {"cache_implementation": "static"}]


@FEW
@given(kind=KINDS, seed=SEEDS, call=PROMPTS, strategy=st.sampled_from(STRATEGIES))
def test_subnet_samples_and_searches_as_its_student(supernet_of, draw_from, kind, seed, call, strategy):
    supernet = supernet_of(kind)
    subnet = draw_from(supernet, seed)

    def generate(model):
        torch.manual_seed(call.seed)
        return model.generate(call.input_ids, attention_mask=call.attention_mask, max_new_tokens=4, **strategy)

    with supernet.active_subnet(subnet):
        tokens = generate(supernet)
    assert torch.equal(tokens, generate(extract_subnet(supernet, subnet)))


# Training


@FEW
@given(kind=KINDS, seed=SEEDS, input_ids=TEXTS)
def test_gradients_are_the_students_inside_the_slice_and_zero_outside(supernet_of, draw_from, kind, seed, input_ids):
    supernet = copy.deepcopy(supernet_of(kind))
    subnet = draw_from(supernet, seed)
    of_student = backward(extract_subnet(supernet, subnet), input_ids=input_ids)
    with supernet.active_subnet(subnet):
        of_supernet = backward(supernet, input_ids=input_ids)
    inside = slice_weights(of_supernet, supernet.config, subnet)
    assert_close_gradients(inside, of_student)
    assert nonzero(of_supernet) == nonzero(inside) > 0


def train(model, input_ids):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(3):
        backward(model, input_ids=input_ids)
        optimizer.step()


@FEW
@given(kind=KINDS, seed=SEEDS, input_ids=TEXTS)
def test_trained_subnet_is_the_trained_student_and_the_weights_outside_it_stay(
    supernet_of, draw_from, kind, seed, input_ids
):
    supernet, trained = supernet_of(kind), copy.deepcopy(supernet_of(kind))
    subnet = draw_from(supernet, seed)
    student = extract_subnet(supernet, subnet)
    train(student, input_ids)
    with trained.active_subnet(subnet):
        train(trained, input_ids)
        torch.testing.assert_close(logits(trained, input_ids), logits(student, input_ids), **TRAINED_CLOSE)
    for name, weight in extract_subnet(trained, subnet).named_parameters():
        torch.testing.assert_close(weight, student.get_parameter(name), **CLOSE)
    changed = {name: weight != supernet.get_parameter(name) for name, weight in trained.named_parameters()}
    assert nonzero(changed) == nonzero(slice_weights(changed, supernet.config, subnet)) > 0


@FEW
@given(kind=KINDS, seed=SEEDS, input_ids=TEXTS)
def test_subnet_in_training_drops_what_its_student_drops(supernet_of, draw_from, kind, seed, input_ids):
    supernet = copy.deepcopy(supernet_of(kind)).train()
    subnet = draw_from(supernet, seed)
    student = extract_subnet(supernet, subnet)
    whole = run(student, input_ids=input_ids, output_hidden_states=True)

    def dropped(model):
        torch.manual_seed(seed)
        return run(model, input_ids=input_ids, output_hidden_states=True)

    with supernet.active_subnet(subnet):
        of_subnet = dropped(supernet)
    assert_same_outputs(of_subnet, dropped(student.train()), **CLOSE)
    assert not torch.allclose(of_subnet.hidden_states[0], whole.hidden_states[0])


@FEW
@given(kind=KINDS, seed=SEEDS, input_ids=TEXTS, use_reentrant=st.booleans())
def test_checkpointed_gradients_of_a_subnet_are_its_students_with_and_without(
    supernet_of, draw_from, kind, seed, input_ids, use_reentrant
):
    supernet = copy.deepcopy(supernet_of(kind)).train()
    subnet = draw_from(supernet, seed)
    student = extract_subnet(supernet, subnet).train()

    def gradients(model):
        torch.manual_seed(seed)
        return backward(model, input_ids=input_ids)

    of_student = gradients(student)
    student.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_close_gradients(gradients(student), of_student)
    supernet.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
    with supernet.active_subnet(subnet):
        checkpointed = gradients(supernet)
    assert_close_gradients(slice_weights(checkpointed, supernet.config, subnet), of_student)
    assert nonzero(checkpointed) == nonzero(slice_weights(checkpointed, supernet.config, subnet))


# Precision

HALVES = st.sampled_from([torch.bfloat16, torch.float16])


def cast(supernet, dtype):
    """A copy with weights of another dtype; the rotary frequencies stay as they are, as in `from_pretrained`."""
    supernet = copy.deepcopy(supernet)
    for parameter in supernet.parameters():
        parameter.data = parameter.data.to(dtype)
    return supernet


def rounding(expected):
    """Both multiply and round the same numbers, but a kernel may add them in another order where the rows of a weight
    lie further apart, or begin elsewhere: a few roundings, each at most eps of the largest number.
    """
    return {"rtol": 0, "atol": 8 * torch.finfo(expected.dtype).eps * expected.abs().max().item()}


@FEW
@given(kind=KINDS, seed=SEEDS, call=PROMPTS, dtype=HALVES)
def test_subnet_in_half_precision_equals_its_student(supernet_of, draw_from, kind, seed, call, dtype):
    exact = supernet_of(kind)
    supernet, subnet = cast(exact, dtype), draw_from(exact, seed)
    student = extract_subnet(supernet, subnet)
    assert_equal_weights(student, cast(extract_subnet(exact, subnet), dtype))
    assert_equal_weights(student, extract_subnet(exact, subnet, dtype=dtype))
    of_student = logits(student, call.input_ids, attention_mask=call.attention_mask)
    with supernet.active_subnet(subnet):
        of_subnet = logits(supernet, call.input_ids, attention_mask=call.attention_mask)
    torch.testing.assert_close(of_subnet, of_student, **rounding(of_student))


@FEW
@given(kind=KINDS, seed=SEEDS, input_ids=TEXTS, dtype=HALVES)
def test_student_in_half_precision_survives_a_reload_in_single_precision(
    supernet_of, draw_from, kind, seed, input_ids, dtype
):
    supernet = supernet_of(kind)
    student = extract_subnet(supernet, draw_from(supernet, seed), dtype=dtype)
    single = reloaded(student, dtype=torch.float32)
    assert {parameter.dtype for parameter in single.parameters()} == {torch.float32}
    back = reloaded(cast(single, dtype))
    assert_equal_weights(back, student)
    of_student = logits(student, input_ids)
    torch.testing.assert_close(logits(back, input_ids), of_student, **rounding(of_student))


# Subnets of subnets


@FEW
@given(kind=KINDS, seed=SEEDS, inner_seed=SEEDS, call=CALLS)
def test_subnet_of_a_subnet_is_the_composed_subnet(supernet_of, draw_from, draw_within, kind, seed, inner_seed, call):
    supernet = supernet_of(kind)
    outer = draw_from(supernet, seed)
    inner = draw_within(outer.shape, inner_seed)
    composed = outer.compose(inner)
    inputs = call.inputs(kind, inner.shape.hidden_size)
    twice = extract_subnet(extract_subnet(supernet, outer), inner)
    assert_equal_weights(twice, extract_subnet(supernet, composed))
    with supernet.active_subnet(composed):
        assert_same_outputs(run(supernet, **inputs), run(twice, **inputs), **CLOSE)


# The full subnet; equal bits can be expected only of the same operations on the same memory


def stock_on_the_weights_of(supernet):
    """A stock model whose parameters are those of the super-network."""
    with torch.device("meta"):
        stock = GPTNeoXForCausalLM(supernet.config)
    stock.load_state_dict(supernet.state_dict(keep_vars=True), assign=True)
    stock.gpt_neox.rotary_emb = supernet.gpt_neox.rotary_emb
    assert memory(stock) == memory(supernet)
    stock.generation_config = supernet.generation_config
    return stock.eval()


@given(kind=KINDS, call=CALLS)
def test_full_subnet_is_the_stock_model_bit_by_bit(supernet_of, kind, call):
    supernet = supernet_of(kind)
    stock = stock_on_the_weights_of(supernet)
    full = SubnetConfig.full(supernet.config)
    inputs = {"labels": call.input_ids, **call.inputs(kind, supernet.config.hidden_size)}
    expected = run(stock, **inputs)
    student = extract_subnet(supernet, full)
    assert type(student) is GPTNeoXForCausalLM
    assert_equal_weights(student, stock)
    with supernet.active_subnet(full):
        active = run(supernet, **inputs)
    for outputs in (active, run(supernet, **inputs)):
        assert torch.equal(outputs.loss, expected.loss)
        assert_same_outputs(outputs, expected, **EQUAL)
    assert_same_outputs(run(student, **inputs), expected, **CLOSE)


@given(kind=KINDS, call=PROMPTS)
def test_full_subnet_trains_and_generates_as_the_stock_model_bit_by_bit(supernet_of, kind, call):
    supernet = copy.deepcopy(supernet_of(kind))
    stock = stock_on_the_weights_of(supernet)
    inputs = {"input_ids": call.input_ids, "attention_mask": call.attention_mask}
    greedy = {**inputs, "max_new_tokens": 4, "do_sample": False}
    gradients, tokens = backward(stock, **inputs), stock.generate(**greedy)
    steps = cached_logits(stock, **inputs, lengths=[1] * call.tokens)
    for block in (contextlib.nullcontext(), supernet.active_subnet(SubnetConfig.full(supernet.config))):
        with block:
            assert_close_gradients(backward(supernet, **inputs), gradients, **EQUAL)
            assert torch.equal(supernet.generate(**greedy), tokens)
            assert torch.equal(cached_logits(supernet, **inputs, lengths=[1] * call.tokens), steps)


# Memory that the models share, and state after a block


def memory(model):
    """Addresses of the tensors of a model."""
    tensors = [*model.parameters(), *model.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


@FEW
@given(kind=KINDS, seed=SEEDS)
def test_students_share_no_memory_with_their_super_network_or_each_other(supernet_of, draw_from, kind, seed):
    supernet = supernet_of(kind)
    subnet = draw_from(supernet, seed)
    student = extract_subnet(supernet, subnet)
    others = [extract_subnet(model, SubnetConfig.full(model.config)) for model in (supernet, student)]
    taken = [memory(model) for model in (supernet, student, extract_subnet(supernet, subnet), *others)]
    assert len(set.union(*taken)) == sum(map(len, taken))


@FEW
@given(kind=KINDS, seed=SEEDS, cut_seed=SEEDS, input_ids=TEXTS)
def test_extraction_inside_a_block_is_that_outside_and_leaves_the_subnet_active(
    supernet_of, draw_from, kind, seed, cut_seed, input_ids
):
    supernet = supernet_of(kind)
    active, cut = draw_from(supernet, seed), draw_from(supernet, cut_seed)
    outside = extract_subnet(supernet, cut)
    with supernet.active_subnet(active):
        before = logits(supernet, input_ids)
        inside = extract_subnet(supernet, cut)
        assert inside.config.to_dict() == outside.config.to_dict()
        assert_equal_weights(inside, outside)
        torch.testing.assert_close(logits(inside, input_ids), logits(outside, input_ids), **CLOSE)
        assert torch.equal(logits(supernet, input_ids), before)


@FEW
@given(kind=KINDS, seed=SEEDS, others=st.lists(SEEDS, min_size=1, max_size=3), input_ids=TEXTS)
def test_what_a_subnet_computes_does_not_depend_on_the_subnets_before_it(
    supernet_of, draw_from, kind, seed, others, input_ids
):
    supernet = supernet_of(kind)
    subnet = draw_from(supernet, seed)
    with supernet.active_subnet(subnet):
        alone = logits(supernet, input_ids)
    for other in others:
        with supernet.active_subnet(draw_from(supernet, other)), torch.inference_mode():
            supernet.generate(input_ids, max_new_tokens=2)
    with supernet.active_subnet(subnet):
        assert torch.equal(logits(supernet, input_ids), alone)
