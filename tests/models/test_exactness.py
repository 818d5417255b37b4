"""A running subnet, its student and that student back from disk are one model, whatever the model and the call.

The properties hold for every kind of every architecture and every subnet of the four search spaces, and of one whose
students are stock models; hypothesis draws them.
"""

import contextlib
import copy
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from fixtures_slow import slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import CALLS, EVERY, KINDS, PROMPTS, SEEDS, SOME, SPACES, TEXTS
from small_models import draw_stock_subnet, draw_subnet
from transformers import AutoModelForCausalLM

from hf_whittle import SubnetConfig, extract_subnet
from hf_whittle.models.slicing import slice_weights
from hf_whittle.models.student import student_class
from hf_whittle.subnet import Shape

CLOSE = {"rtol": 0, "atol": 1e-5}
GRADIENTS_CLOSE = {"rtol": 1e-4, "atol": 1e-5}
TRAINED_CLOSE = {"rtol": 0, "atol": 1e-4}
EQUAL = {"rtol": 0, "atol": 0}
FEW = settings(max_examples=2)  # for each architecture and space


class Case:
    """Models of an architecture, and subnets of a space."""

    def __init__(self, model_type, space, make_stock, make_supernet):
        self.kinds = KINDS[model_type]
        self._model_type, self._space = model_type, dict(SPACES[space])
        self._is_stock_only = self._space.pop("stock_only", False)
        self._make = cache(lambda kind: make_supernet(make_stock(model_type=model_type, **kind.changes)))

    def kind(self, choice):
        return self.kinds[choice % len(self.kinds)]

    def supernet(self, choice):
        """The super-network of a kind; tests that change its weights copy it first."""
        return self._make(self.kind(choice))

    def draw(self, supernet, seed):
        """Draw a subnet of a super-network."""
        draw = draw_stock_subnet if self._is_stock_only else draw_subnet
        return draw(supernet.full_config, seed, **self._space)


@pytest.fixture(scope="module")
def make_case(make_stock, make_supernet):
    return cache(lambda model_type, space: Case(model_type, space, make_stock, make_supernet))


@pytest.fixture(scope="module", params=SOME, ids=" ".join)
def case(request, make_case):
    """Some pairs of an architecture and a space."""
    return make_case(*request.param)


every_case = pytest.mark.parametrize("case", slow_but(EVERY, *SOME), ids=" ".join, indirect=True)
each_architecture = pytest.mark.parametrize(
    "case", [(model_type, "fine layer-wise") for model_type in KINDS], ids=KINDS, indirect=True
)


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


@pytest.mark.slow
@every_case
@settings(max_examples=3)
@given(choice=SEEDS, seed=SEEDS, call=CALLS)
def test_subnet_and_student_and_reloaded_student_give_the_same_outputs(case, choice, seed, call):
    supernet = case.supernet(choice)
    subnet = case.draw(supernet, seed)
    inputs = call.inputs(case.kind(choice), subnet.shape.hidden_size)
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
@given(choice=SEEDS, seed=SEEDS, call=PROMPTS, first=st.integers(1, 12), then=st.integers(1, 3))
def test_subnet_with_a_cache_equals_its_student_with_and_without(case, choice, seed, call, first, then):
    supernet = case.supernet(choice)
    subnet = case.draw(supernet, seed)
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


@pytest.mark.slow
@FEW
@given(choice=SEEDS, seed=SEEDS, call=PROMPTS)
def test_greedy_tokens_of_a_subnet_are_its_students_and_those_of_each_row_alone_without_a_cache(
    case, choice, seed, call
):
    supernet = case.supernet(choice)
    subnet = case.draw(supernet, seed)
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
@given(choice=SEEDS, seed=SEEDS, call=PROMPTS, strategy=st.sampled_from(STRATEGIES))
def test_subnet_samples_and_searches_as_its_student(case, choice, seed, call, strategy):
    supernet = case.supernet(choice)
    subnet = case.draw(supernet, seed)

    def generate(model):
        torch.manual_seed(call.seed)
        return model.generate(call.input_ids, attention_mask=call.attention_mask, max_new_tokens=4, **strategy)

    with supernet.active_subnet(subnet):
        tokens = generate(supernet)
    assert torch.equal(tokens, generate(extract_subnet(supernet, subnet)))


# Training


@FEW
@given(choice=SEEDS, seed=SEEDS, input_ids=TEXTS)
def test_gradients_are_the_students_inside_the_slice_and_zero_outside(case, choice, seed, input_ids):
    supernet = copy.deepcopy(case.supernet(choice))
    subnet = case.draw(supernet, seed)
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


@pytest.mark.slow
@FEW
@given(choice=SEEDS, seed=SEEDS, input_ids=TEXTS)
def test_trained_subnet_is_the_trained_student_and_the_weights_outside_it_stay(case, choice, seed, input_ids):
    supernet, trained = case.supernet(choice), copy.deepcopy(case.supernet(choice))
    subnet = case.draw(supernet, seed)
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
@given(choice=SEEDS, seed=SEEDS, input_ids=TEXTS)
def test_subnet_in_training_drops_what_its_student_drops(case, choice, seed, input_ids):
    supernet = copy.deepcopy(case.supernet(choice)).train()
    subnet = case.draw(supernet, seed)
    student = extract_subnet(supernet, subnet)
    whole = run(student, input_ids=input_ids, output_hidden_states=True)

    def dropped(model):
        torch.manual_seed(seed)
        return run(model, input_ids=input_ids, output_hidden_states=True)

    with supernet.active_subnet(subnet):
        of_subnet = dropped(supernet)
    assert_same_outputs(of_subnet, dropped(student.train()), **CLOSE)
    states = zip(of_subnet.hidden_states, whole.hidden_states, strict=True)
    assert any(not torch.equal(dropped, kept) for dropped, kept in states)


@pytest.mark.slow_after(3)
@FEW
@given(choice=SEEDS, seed=SEEDS, input_ids=TEXTS, use_reentrant=st.booleans())
def test_checkpointed_gradients_of_a_subnet_are_its_students_with_and_without(
    case, choice, seed, input_ids, use_reentrant
):
    supernet = copy.deepcopy(case.supernet(choice)).train()
    subnet = case.draw(supernet, seed)
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


@pytest.mark.slow
@FEW
@given(choice=SEEDS, seed=SEEDS, call=PROMPTS, dtype=HALVES)
def test_subnet_in_half_precision_equals_its_student(case, choice, seed, call, dtype):
    exact = case.supernet(choice)
    supernet, subnet = cast(exact, dtype), case.draw(exact, seed)
    student = extract_subnet(supernet, subnet)
    assert_equal_weights(student, cast(extract_subnet(exact, subnet), dtype))
    assert_equal_weights(student, extract_subnet(exact, subnet, dtype=dtype))
    of_student = logits(student, call.input_ids, attention_mask=call.attention_mask)
    with supernet.active_subnet(subnet):
        of_subnet = logits(supernet, call.input_ids, attention_mask=call.attention_mask)
    torch.testing.assert_close(of_subnet, of_student, **rounding(of_student))


@pytest.mark.slow_after(3)
@FEW
@given(choice=SEEDS, seed=SEEDS, input_ids=TEXTS, dtype=HALVES)
def test_student_in_half_precision_survives_a_reload_in_single_precision(case, choice, seed, input_ids, dtype):
    supernet = case.supernet(choice)
    student = extract_subnet(supernet, case.draw(supernet, seed), dtype=dtype)
    single = reloaded(student, dtype=torch.float32)
    assert {parameter.dtype for parameter in single.parameters()} == {torch.float32}
    back = reloaded(cast(single, dtype))
    assert_equal_weights(back, student)
    of_student = logits(student, input_ids)
    torch.testing.assert_close(logits(back, input_ids), of_student, **rounding(of_student))


# Subnets of subnets


@pytest.mark.slow_after(3)
@FEW
@given(choice=SEEDS, seed=SEEDS, inner_seed=SEEDS, call=CALLS)
def test_subnet_of_a_subnet_is_the_composed_subnet(case, choice, seed, inner_seed, call):
    supernet = case.supernet(choice)
    outer = case.draw(supernet, seed)
    inner = draw_subnet(outer.shape.filled(Shape.from_config(supernet.config)), inner_seed)
    composed = outer.compose(inner)
    inputs = call.inputs(case.kind(choice), inner.shape.hidden_size)
    twice = extract_subnet(extract_subnet(supernet, outer), inner)
    assert_equal_weights(twice, extract_subnet(supernet, composed))
    with supernet.active_subnet(composed):
        assert_same_outputs(run(supernet, **inputs), run(twice, **inputs), **CLOSE)


# The full subnet; equal bits can be expected only of the same operations on the same memory


def stock_on_the_weights_of(supernet):
    """A stock model whose parameters and buffers are those of the super-network."""
    with torch.device("meta"):
        stock = student_class(supernet.config)(supernet.config)
    stock.load_state_dict(supernet.state_dict(keep_vars=True), assign=True)
    for name, buffer in supernet.named_buffers():
        module, _, own = name.rpartition(".")
        setattr(stock.get_submodule(module), own, buffer)
    assert memory(stock) == memory(supernet)
    stock.generation_config = supernet.generation_config
    return stock.eval()


@pytest.mark.slow
@each_architecture
@settings(max_examples=6)
@given(choice=SEEDS, call=CALLS)
def test_full_subnet_is_the_stock_model_bit_by_bit(case, choice, call):
    supernet = case.supernet(choice)
    stock = stock_on_the_weights_of(supernet)
    full = SubnetConfig.full(supernet.config)
    inputs = {"labels": call.input_ids, **call.inputs(case.kind(choice), supernet.config.hidden_size)}
    expected = run(stock, **inputs)
    student = extract_subnet(supernet, full)
    assert type(student) is type(stock)
    assert_equal_weights(student, stock)
    with supernet.active_subnet(full):
        active = run(supernet, **inputs)
    for outputs in (active, run(supernet, **inputs)):
        assert torch.equal(outputs.loss, expected.loss)
        assert_same_outputs(outputs, expected, **EQUAL)
    assert_same_outputs(run(student, **inputs), expected, **CLOSE)


@pytest.mark.slow
@each_architecture
@settings(max_examples=6)
@given(choice=SEEDS, call=PROMPTS)
def test_full_subnet_trains_and_generates_as_the_stock_model_bit_by_bit(case, choice, call):
    supernet = copy.deepcopy(case.supernet(choice))
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


@pytest.mark.slow
@FEW
@given(choice=SEEDS, seed=SEEDS)
def test_students_share_no_memory_with_their_super_network_or_each_other(case, choice, seed):
    supernet = case.supernet(choice)
    subnet = case.draw(supernet, seed)
    student = extract_subnet(supernet, subnet)
    others = [extract_subnet(model, SubnetConfig.full(model.config)) for model in (supernet, student)]
    taken = [memory(model) for model in (supernet, student, extract_subnet(supernet, subnet), *others)]
    assert len(set.union(*taken)) == sum(map(len, taken))


@pytest.mark.slow_after(3)
@FEW
@given(choice=SEEDS, seed=SEEDS, cut_seed=SEEDS, input_ids=TEXTS)
def test_extraction_inside_a_block_is_that_outside_and_leaves_the_subnet_active(
    case, choice, seed, cut_seed, input_ids
):
    supernet = case.supernet(choice)
    active, cut = case.draw(supernet, seed), case.draw(supernet, cut_seed)
    outside = extract_subnet(supernet, cut)
    with supernet.active_subnet(active):
        before = logits(supernet, input_ids)
        inside = extract_subnet(supernet, cut)
        assert inside.config.to_dict() == outside.config.to_dict()
        assert_equal_weights(inside, outside)
        torch.testing.assert_close(logits(inside, input_ids), logits(outside, input_ids), **CLOSE)
        assert torch.equal(logits(supernet, input_ids), before)


@FEW
@given(choice=SEEDS, seed=SEEDS, others=st.lists(SEEDS, min_size=1, max_size=3), input_ids=TEXTS)
def test_what_a_subnet_computes_does_not_depend_on_the_subnets_before_it(case, choice, seed, others, input_ids):
    supernet = case.supernet(choice)
    subnet = case.draw(supernet, seed)
    with supernet.active_subnet(subnet):
        alone = logits(supernet, input_ids)
    for other in others:
        with supernet.active_subnet(case.draw(supernet, other)), torch.inference_mode():
            supernet.generate(input_ids, max_new_tokens=2)
    with supernet.active_subnet(subnet):
        assert torch.equal(logits(supernet, input_ids), alone)
