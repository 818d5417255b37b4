"""Training and compilation of a student whose layers differ."""

import copy
from collections import Counter

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
)
from uneven_student import (
    ATTENDING,
    CLOSE,
    VOCABULARY,
    anew,
    attention_of,
    first,
    gradients,
    greedy,
    heads_of,
    layers_of,
)

# Training


def test_every_weight_gets_a_gradient(student, input_ids):
    for name, gradient in gradients(anew(student), input_ids).items():
        assert gradient.any(), name


@pytest.mark.slow
def test_student_learns_a_sentence_by_heart(student, input_ids):
    torch.manual_seed(0)
    model = anew(student, initializer_range=0.02).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(input_ids, labels=input_ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(float(VOCABULARY)).log().item(), rel=0.05)
    assert losses[-1] < 0.05 * losses[0]
    sentence = input_ids[:1]
    assert torch.equal(greedy(model.eval(), sentence[:, :1], max_new_tokens=11), sentence)


CHECKPOINTING = {
    "default": {},
    "reentrant": {"activation_checkpointing_kwargs": {"use_reentrant": True}},
    "not reentrant": {"activation_checkpointing_kwargs": {"use_reentrant": False}},
    "every second layer": {"every_n_layers": 2},
}


@pytest.mark.parametrize("settings", CHECKPOINTING.values(), ids=CHECKPOINTING)
def test_gradients_with_checkpoints_are_those_without(student, input_ids, settings):
    model = anew(student, attention_dropout=0.1).train()
    torch.manual_seed(0)
    expected = gradients(model, input_ids)
    calls = Counter()
    for index, layer in enumerate(layers_of(model)):
        attention_of(layer).register_forward_hook(lambda *_, index=index: calls.update([index]))
    model.activation_checkpointing_enable(**settings)
    torch.manual_seed(0)
    for name, gradient in gradients(model, input_ids).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    recomputed = (0, 2) if "every_n_layers" in settings else (0, 1, 2)
    assert calls == {layer: 2 if layer in recomputed else 1 for layer in range(3)}


def test_checkpoints_are_switched_on_and_off(student):
    model = copy.deepcopy(student)
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing
    assert not any(module.gradient_checkpointing for module in layers_of(model))


def test_inputs_of_a_frozen_student_can_require_gradients(student, input_ids):
    model = copy.deepcopy(student).requires_grad_(False)
    assert not model(input_ids).logits.requires_grad
    model.enable_input_require_grads()
    assert model(input_ids).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(input_ids).logits.requires_grad


ATTENTION = (("query_key_value", "dense"), ("c_attn", "c_proj"), ("q_proj", "o_proj"), ("q_proj", "out_proj"))
"""Names of the matrices into and out of attention."""


def test_lora_adapters_attach_to_layers_of_every_width_and_are_saved_apart(student, saved, input_ids, tmp_path):
    peft = pytest.importorskip("peft")
    names = dict(attention_of(layers_of(student)[0]).named_children())
    into, out = next(pair for pair in ATTENTION if set(pair) <= names.keys())
    adapters = peft.LoraConfig(
        r=2, target_modules=rf".*\.({'|'.join(ATTENDING)})\.({into}|{out})", init_lora_weights=False
    )
    torch.manual_seed(0)
    model = copy.deepcopy(student)
    model.add_adapter(adapters)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    widths = [6 * heads for heads in heads_of(student)]
    copies = 1 if into == "q_proj" else 3  # of the width: queries alone, or with keys and values
    assert trainable == sum(2 * (22 + copies * width) + 2 * (width + 22) for width in widths)
    adapted = first(model, input_ids)
    assert (adapted - first(student, input_ids)).abs().max() > 0.1
    model.save_pretrained(tmp_path / "adapters")
    model.disable_adapters()
    torch.testing.assert_close(first(model, input_ids), first(student, input_ids), **CLOSE)
    reloaded = AutoModelForCausalLM.from_pretrained(saved)
    reloaded.load_adapter(str(tmp_path / "adapters"))
    torch.testing.assert_close(first(reloaded, input_ids), adapted, **CLOSE)


# Compilation: `aot_eager` traces the forward and the backward as `inductor` does, and does not wait for a C++ compiler


@pytest.fixture
def compiled():
    """A function that compiles a copy of a model into one graph."""
    torch._dynamo.reset()
    yield lambda model, backend="aot_eager", **settings: torch.compile(
        copy.deepcopy(model), fullgraph=True, backend=backend, **settings
    )
    torch._dynamo.reset()


TRACED = [("gpt_neox", "aot_eager"), ("gemma3_text", "aot_eager")]
"""GPT-NeoX, and the architecture that differs most from it, with norms and sliding windows of its own."""


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "backend"), [*TRACED, ("gpt_neox", "inductor")], indirect=["architecture"])
def test_compiled_student_is_one_graph_with_the_same_loss_and_gradients(student, input_ids, compiled, backend):
    model = compiled(student, backend)
    output = model(input_ids, labels=input_ids, use_cache=False)
    output.loss.backward()
    torch.testing.assert_close(output.logits, first(student, input_ids), rtol=0, atol=2e-5)
    expected = gradients(copy.deepcopy(student), input_ids)
    for name, parameter in model._orig_mod.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "backend"), TRACED, indirect=["architecture"])
def test_student_compiled_with_a_static_cache_generates_the_same_tokens(student, input_ids, compiled, backend):
    model = copy.deepcopy(student)
    model.forward = torch.compile(model.forward, fullgraph=True, backend=backend)
    generated = greedy(model, input_ids, cache_implementation="static")
    assert torch.equal(generated, greedy(student, input_ids))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "backend"), [("gpt_neox", "aot_eager"), ("gemma3_text", "eager")], indirect=["architecture"]
)
def test_student_compiled_for_any_length_is_compiled_once(student, input_ids, compiled, backend):
    model = compiled(student, backend, dynamic=True)
    first(model, input_ids[:, :5].contiguous(), use_cache=False)
    with torch.compiler.set_stance("fail_on_recompile"):
        for length in (7, 12):
            ids = input_ids[:2, :length].contiguous()
            torch.testing.assert_close(first(model, ids, use_cache=False), first(student, ids), **CLOSE)


@pytest.mark.slow
def test_exported_student_gives_the_same_logits(student, input_ids):
    exported = torch.export.export(student, (), {"input_ids": input_ids, "use_cache": False}, strict=False)
    other = input_ids.flip(1)
    torch.testing.assert_close(
        exported.module()(input_ids=other, use_cache=False).logits, first(student, other), **CLOSE
    )
