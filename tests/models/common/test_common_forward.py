"""Initialization, embeddings, forward pass and attention kernels of a student whose layers differ."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from small_students import student_of, uneven_subnet_of
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    DynamicCache,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from uneven_student import (
    CLOSE,
    MASKS,
    VOCABULARY,
    anew,
    attention_of,
    first,
    gradients,
    greedy,
    heads_of,
    key_value_heads_of,
    layers_of,
    names_of,
    norm_of,
)

from hf_whittle.architectures.registry import get_architecture

# Initialization


def _built(kind, config):
    return kind(config)


def _loaded_from_nothing(kind, config):
    return kind.from_pretrained(None, config=config, state_dict={})


@pytest.mark.parametrize("build", [_built, _loaded_from_nothing])
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_fresh_weights_are_normal_biases_zero_and_norms_neutral(student, build, std):
    config = copy.deepcopy(student.config)
    config.initializer_range = std
    torch.manual_seed(0)
    model = build(type(student), config)
    neutral = get_architecture(config).norms.neutral
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == neutral).all(), name
        else:
            error = std / parameter.numel() ** 0.5
            assert parameter.mean().item() == pytest.approx(0, abs=5 * error), name
            assert parameter.std().item() == pytest.approx(std, abs=5 * error), name
    for ours, theirs in zip(model.buffers(), student.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("build", [_built, _loaded_from_nothing])
def test_fresh_weights_depend_on_the_seed_alone(student, build):
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(build(type(student), student.config).get_input_embeddings().weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# Embeddings


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("size", [120, 50], ids=["bigger", "smaller"])
def test_resized_vocabulary_keeps_what_it_had_and_is_saved(student, input_ids, tmp_path, tied, size):
    model = anew(student, tie_word_embeddings=tied)
    input_ids, kept = input_ids % min(size, VOCABULARY), min(size, VOCABULARY)
    before = first(model, input_ids)
    model.resize_token_embeddings(size)
    after = first(model, input_ids)
    assert after.shape[-1] == model.config.vocab_size == model.get_input_embeddings().num_embeddings == size
    torch.testing.assert_close(after[..., :kept], before[..., :kept], **CLOSE)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied

    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(first(reloaded, input_ids), after, **CLOSE)
    assert torch.equal(greedy(reloaded, input_ids), greedy(model, input_ids))


def test_new_entries_of_a_resized_vocabulary_run_and_learn(student):
    model = copy.deepcopy(student)
    model.resize_token_embeddings(VOCABULARY + 1)
    new = torch.full((1, 4), VOCABULARY)
    computed = gradients(model, new)
    assert computed[f"{names_of(model).embedding}.weight"][VOCABULARY].any()
    assert computed["lm_head.weight"][VOCABULARY].any()


def test_resized_vocabulary_is_padded_to_a_multiple(student, input_ids):
    model = copy.deepcopy(student)
    model.resize_token_embeddings(pad_to_multiple_of=64)
    assert model.config.vocab_size == 128
    torch.testing.assert_close(first(model, input_ids)[..., :VOCABULARY], first(student, input_ids), **CLOSE)


def test_backbone_with_a_resized_vocabulary_gives_the_same_states(student, input_ids):
    backbone = copy.deepcopy(student.base_model)
    backbone.resize_token_embeddings(120)
    assert backbone.config.vocab_size == 120
    torch.testing.assert_close(first(backbone, input_ids), first(student.base_model, input_ids), **CLOSE)


def test_embeddings_that_are_set_are_the_ones_that_run(student, input_ids):
    model, other = copy.deepcopy(student), anew(student)
    model.set_input_embeddings(other.get_input_embeddings())
    model.set_output_embeddings(other.get_output_embeddings())
    assert model.get_input_embeddings() is model.base_model.get_input_embeddings() is other.get_input_embeddings()
    assert model.get_output_embeddings() is other.lm_head
    assert model.base_model.get_output_embeddings() is None
    states = first(student.base_model, inputs_embeds=other.get_input_embeddings()(input_ids))
    factor = get_architecture(model.config).logit_factor(model.config)
    torch.testing.assert_close(first(model, input_ids), factor * states @ other.lm_head.weight.T, **CLOSE)


def test_tied_output_matrix_is_saved_once_and_tied_again(student, input_ids, tmp_path):
    model = anew(student, tie_word_embeddings=True)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys() - {"lm_head.weight"}
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert reloaded.lm_head.weight is reloaded.get_input_embeddings().weight
    torch.testing.assert_close(first(reloaded, input_ids), first(model, input_ids), **CLOSE)


def test_tied_weight_gets_the_gradients_of_both_its_uses(student, input_ids):
    tied = anew(student, tie_word_embeddings=True)
    untied = anew(student)
    untied.load_state_dict(tied.state_dict())
    assert untied.lm_head.weight is not untied.get_input_embeddings().weight
    of_untied = gradients(untied, input_ids)
    name = f"{names_of(tied).embedding}.weight"
    both = of_untied[name] + of_untied["lm_head.weight"]
    torch.testing.assert_close(gradients(tied, input_ids)[name], both, **CLOSE)


# The forward


def test_embeddings_as_inputs_equal_their_tokens(model, student, input_ids):
    embeddings = student.get_input_embeddings()(input_ids)
    torch.testing.assert_close(first(model, inputs_embeds=embeddings), first(model, input_ids), **CLOSE)


@pytest.mark.parametrize("both", [True, False], ids=["both", "neither"])
def test_tokens_and_embeddings_exclude_each_other(model, student, input_ids, both):
    inputs = {"input_ids": input_ids, "inputs_embeds": student.get_input_embeddings()(input_ids)} if both else {}
    with pytest.raises(ValueError, match="You must specify exactly one of input_ids or inputs_embeds"):
        model(**inputs)


def test_hidden_states_are_the_embeddings_and_what_each_layer_gives(model, student, input_ids):
    given = []
    hooks = [layer.register_forward_hook(lambda *call: given.append(call[-1])) for layer in layers_of(student)]
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    norm = norm_of(student)
    expected = [student.get_input_embeddings()(input_ids), *given[:-1], norm(given[-1])]
    for ours, theirs in zip(states, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_attentions_are_causal_distributions_of_as_many_heads_as_the_layer_has(model, input_ids):
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(input_ids, output_attentions=True).attentions
    assert [tuple(attention.shape) for attention in attentions] == [(3, heads, 12, 12) for heads in heads_of(model)]
    for attention in attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
        assert not attention.triu(1).any()


def test_tuple_of_outputs_equals_the_named_outputs(model, input_ids):
    wanted = {"output_hidden_states": True, "output_attentions": True}
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    named = model(input_ids, **wanted).to_tuple()
    unnamed = model(input_ids, **wanted, return_dict=False)
    assert type(unnamed) is tuple and len(unnamed) == len(named) == 4
    for ours, theirs in ((unnamed[0], named[0]), *zip(unnamed[2] + unnamed[3], named[2] + named[3], strict=True)):
        assert torch.equal(ours, theirs)


def test_what_to_return_may_be_set_in_the_configuration(student, input_ids):
    model = copy.deepcopy(student)
    model.config.output_hidden_states = True
    model.config.use_cache = False
    output = model(input_ids)
    assert len(output.hidden_states) == 4
    assert output.past_key_values is None
    assert model(input_ids, use_cache=True).past_key_values.get_seq_length() == 12


def test_gradients_of_hidden_states_and_attentions_are_kept(model, input_ids):
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    output = model(input_ids, output_hidden_states=True, output_attentions=True)
    inner = (*output.hidden_states, *output.attentions)
    for tensor in inner:
        tensor.retain_grad()
    output[0].square().sum().backward()
    assert len(inner) == 7 and all(tensor.grad.any() for tensor in inner)


def test_logits_to_keep_are_those_of_the_full_output(student, input_ids):
    logits = first(student, input_ids)
    torch.testing.assert_close(first(student, input_ids, logits_to_keep=2), logits[:, -2:], **CLOSE)
    chosen = torch.tensor([0, 5, 7])
    torch.testing.assert_close(first(student, input_ids, logits_to_keep=chosen), logits[:, chosen], **CLOSE)


def test_output_depends_on_differences_of_positions_alone(student, input_ids):
    positions = torch.arange(12)[None]
    logits = first(student, input_ids)
    torch.testing.assert_close(first(student, input_ids, position_ids=positions), logits, **CLOSE)
    torch.testing.assert_close(first(student, input_ids, position_ids=positions + 20), logits, rtol=0, atol=1e-4)
    assert (first(student, input_ids, position_ids=2 * positions, use_cache=False) - logits).abs().max() > 0.1


def test_mask_of_pairs_of_tokens_equals_the_mask_of_tokens(student, input_ids):
    mask = torch.tensor(MASKS["right padding"])
    pairs = torch.ones(12, 12, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    expected = first(student, input_ids, attention_mask=mask)
    torch.testing.assert_close(first(student, input_ids, attention_mask=pairs), expected, **CLOSE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_sequences_equal_each_sequence_alone(student, input_ids, attention):
    model = copy.deepcopy(student)
    model.set_attn_implementation(attention)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    packed = first(model, input_ids[:1], position_ids=positions, use_cache=False)
    alone = [first(model, part) for part in input_ids[:1].split([5, 7], dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), **CLOSE)


def test_rows_of_a_batch_equal_each_row_alone(model, input_ids):
    together = first(model, input_ids)
    for row, ids in zip(together, input_ids, strict=True):
        torch.testing.assert_close(first(model, ids[None])[0], row, **CLOSE)


def test_dropout_acts_in_training_and_nowhere_else(student, input_ids):
    names = {"hidden_dropout", "attention_dropout", "attn_pdrop", "resid_pdrop"} & vars(student.config).keys()
    model = anew(student, **dict.fromkeys(names, 0.5))
    assert torch.equal(first(model, input_ids), first(model, input_ids))
    model.train()
    assert not torch.allclose(first(model, input_ids), first(model, input_ids))


ROPES = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 16},
    "longrope": {
        "factor": 2.0,
        "short_factor": [1.0, 1.5, 2.0, 3.0],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 16,
    },
    "llama3": {
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("rope_type", ROPES)
def test_scaled_rotations_are_those_of_the_super_network(architecture, make_own, rope_type):
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, **ROPES[rope_type]}
    if architecture == "gpt_neox":
        rope["partial_rotary_factor"] = 1.0
    if architecture == "gemma3_text":
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0}}
    supernet = make_own(max_position_embeddings=32, rope_parameters=rope)
    subnet = uneven_subnet_of(supernet.config)
    student = student_of(supernet, subnet)
    long = torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))
    for input_ids in (long[:, :8], long):
        with supernet.active_subnet(subnet):
            expected = first(supernet, input_ids)
        torch.testing.assert_close(first(student, input_ids), expected, **CLOSE)


# Attention kernels


@pytest.mark.parametrize("padding", MASKS.values(), ids=MASKS)
def test_eager_attention_equals_sdpa(student, eager, input_ids, padding):
    mask = torch.tensor(padding)
    ours, theirs = (first(model, input_ids, attention_mask=mask) for model in (eager, student))
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], **CLOSE)


def test_eager_attention_equals_sdpa_token_by_token(student, eager, input_ids):
    mask = torch.tensor(MASKS["left padding"])
    steps = {}
    for model in (eager, student):
        cache, steps[model] = DynamicCache(config=model.config), []
        for end in range(1, 13):
            token = input_ids[:, end - 1 : end]
            steps[model].append(first(model, token, attention_mask=mask[:, :end], past_key_values=cache)[:, 0])
    ours, theirs = (torch.stack(steps[model], dim=1)[mask.bool()] for model in (eager, student))
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_eager_attention_has_the_gradients_of_sdpa(student, eager, input_ids):
    mask = torch.tensor(MASKS["right padding"])
    expected = gradients(copy.deepcopy(student), input_ids, attention_mask=mask)
    for name, gradient in gradients(copy.deepcopy(eager), input_ids, attention_mask=mask).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_kernel_is_chosen_by_argument_by_configuration_and_at_any_time(student, saved, input_ids):
    expected = first(student, input_ids)
    config = copy.deepcopy(student.config)
    config._attn_implementation = "eager"
    for model in (
        AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager"),
        AutoModelForCausalLM.from_config(student.config, attn_implementation="eager"),
        type(student)(config),
    ):
        assert model(input_ids, output_attentions=True).attentions[0] is not None
        model.load_state_dict(student.state_dict())
        model.eval().set_attn_implementation("sdpa")
        assert {attention_of(layer).config._attn_implementation for layer in layers_of(model)} == {"sdpa"}
        torch.testing.assert_close(first(model, input_ids), expected, **CLOSE)


def test_registered_kernel_gets_the_heads_of_each_layer(student, input_ids, monkeypatch):
    seen = []

    def recording(module, query, key, value, *args, **kwargs):
        seen.append((module.layer_idx, query.shape[1], key.shape[1], value.shape[1]))
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "recording", recording)
    model = copy.deepcopy(student)
    model.set_attn_implementation("recording")
    logits = first(model, input_ids)
    heads, key_value_heads = heads_of(student), key_value_heads_of(student)
    assert [layer for layer, *_ in seen] == [0, 1, 2]
    assert [shapes[1:] for shapes in seen] == list(zip(heads, key_value_heads, key_value_heads, strict=True))
    torch.testing.assert_close(logits, first(student, input_ids), **CLOSE)


def test_unknown_kernel_is_an_error_that_names_it(student):
    with pytest.raises(ValueError, match='Specified `attn_implementation="nonsense"` is not supported'):
        copy.deepcopy(student).set_attn_implementation("nonsense")


@pytest.mark.slow
def test_flex_attention_equals_sdpa(student, input_ids):
    """Without a compiler, which is not what is tested."""
    model = copy.deepcopy(student)
    model.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):
        found = first(model, input_ids)
    torch.testing.assert_close(found, first(student, input_ids), **CLOSE)
