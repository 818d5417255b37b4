"""Subnets that keep a part of the vocabulary, of every architecture."""

import json

import pytest
import torch
from small_models import draw_stock_subnet, draw_subnet
from transformers import AutoModelForCausalLM, GenerationConfig, GPTNeoXForCausalLM

from hf_whittle import HealingConfig, SubnetConfig, extract_subnet
from hf_whittle.architectures.dimensions import VOCABULARY
from hf_whittle.architectures.registry import ARCHITECTURES
from hf_whittle.errors import SubnetError, VocabularyError
from hf_whittle.healing.from_moments import student_healed_from
from hf_whittle.healing.healer import Healer
from hf_whittle.healing.supernet_moments import SupernetMoments
from hf_whittle.importance.sorting import sort_by_importance
from hf_whittle.models.slicing import slice_weights
from hf_whittle.models.source import source_of
from hf_whittle.models.token_ids import renumbered, student_ids
from hf_whittle.subnet import count, indices

CLOSE = {"rtol": 0, "atol": 1e-5}
TOKENS = (0, 1, 5, 6, 7, 8, 30, 41, 42, 77, 98)
TIED = [(model_type, tied) for model_type in ARCHITECTURES for tied in (False, True)]


@pytest.fixture(scope="module")
def make(make_stock, make_supernet):
    return lambda model_type, **changes: make_supernet(make_stock(model_type=model_type, **changes))


def own_ids(kept, rows=2, length=9, seed=0):
    return torch.randint(count(kept), (rows, length), generator=torch.Generator().manual_seed(seed))


def teacher_ids(kept, *shape):
    return torch.tensor(indices(kept))[own_ids(kept, *shape)]


@torch.no_grad()
def run(model, input_ids):
    found = model(input_ids=input_ids, labels=input_ids)
    return found.logits, found.loss


def all_but_tokens(config, kept):
    """The whole super-network with a part of its vocabulary."""
    return SubnetConfig.full(config).replaced({VOCABULARY: kept})


@pytest.mark.slow_after(7)
@pytest.mark.parametrize("model_type, tied", TIED)
@pytest.mark.parametrize("granularity", ["coarse", "fine"])
def test_slice_and_student_are_one_model(make, model_type, tied, granularity):
    supernet = make(model_type, tie_word_embeddings=tied)
    subnet = draw_subnet(supernet.config, 3, granularity).replaced(
        {VOCABULARY: 17 if granularity == "coarse" else TOKENS}
    )
    student = extract_subnet(supernet, subnet)
    input_ids = own_ids(subnet.vocab_size)
    with supernet.active_subnet(subnet):
        running = run(supernet, input_ids)
        assert supernet.config.vocab_size == count(subnet.vocab_size)
        generated = supernet.generate(input_ids, max_new_tokens=4, do_sample=False)
    torch.testing.assert_close(running, run(student, input_ids), **CLOSE)
    assert running[0].shape[-1] == student.config.vocab_size == count(subnet.vocab_size)
    assert torch.equal(generated, student.generate(input_ids, max_new_tokens=4, do_sample=False))
    assert supernet.config.vocab_size == 99


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_student_is_read_back_and_extracted_from_disk(make, model_type, tmp_path):
    supernet = make(model_type)
    subnet = draw_subnet(supernet.config, 3).replaced({VOCABULARY: TOKENS})
    supernet.save_pretrained(tmp_path / "model")
    in_memory, folder = extract_subnet(supernet, subnet), tmp_path / "student"
    extract_subnet(tmp_path / "model", subnet, folder, progress=False)
    student = AutoModelForCausalLM.from_pretrained(folder)
    assert SubnetConfig.from_pretrained(folder) == subnet
    for (name, own), (other, read) in zip(in_memory.state_dict().items(), student.state_dict().items(), strict=True):
        assert name == other and torch.equal(own, read)
    torch.testing.assert_close(run(in_memory, own_ids(TOKENS)), run(student, own_ids(TOKENS)), **CLOSE)


@pytest.mark.parametrize("tied", [False, True])
def test_the_student_gives_tokens_the_odds_that_the_model_gives_them(make, tied):
    supernet = make("llama", tie_word_embeddings=tied)
    student = extract_subnet(supernet, all_but_tokens(supernet.config, TOKENS))
    whole, _ = run(supernet, teacher_ids(TOKENS))
    torch.testing.assert_close(run(student, own_ids(TOKENS))[0], whole[..., list(TOKENS)], **CLOSE)


def test_uniform_student_is_a_stock_model(make, tmp_path):
    supernet = make("gpt_neox")
    subnet = draw_stock_subnet(supernet.config, 1).replaced({VOCABULARY: TOKENS})
    extract_subnet(supernet, subnet, tmp_path / "student")
    config = json.loads((tmp_path / "student/config.json").read_text())
    assert (config["model_type"], config["vocab_size"], config.get("auto_map")) == ("gpt_neox", 11, None)
    torch.testing.assert_close(
        run(GPTNeoXForCausalLM.from_pretrained(tmp_path / "student"), own_ids(TOKENS)),
        run(extract_subnet(supernet, subnet), own_ids(TOKENS)),
        **CLOSE,
    )


def test_a_padded_student_of_a_part_of_the_vocabulary(make):
    supernet = make("gpt_neox")
    subnet = SubnetConfig(32, 2, [2, 3], [40, 64], vocab_size=TOKENS)
    padded, own = extract_subnet(supernet, subnet, format="padded"), extract_subnet(supernet, subnet)
    torch.testing.assert_close(run(padded, own_ids(TOKENS)), run(own, own_ids(TOKENS)), **CLOSE)


@pytest.mark.slow
def test_a_subnet_of_a_subnet_is_the_composed_one(make):
    supernet = make("qwen3")
    outer = draw_subnet(supernet.config, 5).replaced({VOCABULARY: TOKENS})
    for tokens, together in (((0, 2, 10), (0, 5, 98)), (4, (0, 1, 5, 6)), (None, TOKENS)):
        inner = SubnetConfig.full(outer.shape).replaced({VOCABULARY: tokens})
        both = outer.compose(inner)
        assert both.vocab_size == together
        twice, once = extract_subnet(extract_subnet(supernet, outer), inner), extract_subnet(supernet, both)
        assert all(map(torch.equal, twice.state_dict().values(), once.state_dict().values()))


def test_gradients_reach_kept_rows_alone(make):
    supernet = make("llama", tie_word_embeddings=True)
    with supernet.active_subnet(all_but_tokens(supernet.config, TOKENS)):
        supernet(input_ids=own_ids(TOKENS), labels=own_ids(TOKENS)).loss.backward()
    gradient = supernet.get_input_embeddings().weight.grad.abs().sum(1)
    assert set(gradient.nonzero().flatten().tolist()) == set(TOKENS)


@pytest.mark.parametrize("tokens", [11, TOKENS])
def test_a_running_slice_refuses_ids_that_its_student_lacks(make, tokens):
    supernet = make("llama")
    with supernet.active_subnet(all_but_tokens(supernet.config, tokens)), pytest.raises(IndexError, match="index 11"):
        supernet(torch.tensor([[11]]))


def test_a_sorted_super_network_keeps_its_tokens(make):
    from hf_whittle import score_importance

    supernet = make("llama")
    scores = score_importance(supernet, torch.randint(99, (2, 8)), progress=False)
    assert VOCABULARY.name not in scores.entries
    before = extract_subnet(supernet, all_but_tokens(supernet.config, TOKENS))
    subnet = SubnetConfig(20, 3, intermediate_size=30, num_key_value_heads=1, vocab_size=TOKENS)
    order = sort_by_importance(supernet, scores)
    original = order.original(subnet)
    assert original.vocab_size == TOKENS
    after = extract_subnet(supernet, all_but_tokens(supernet.config, TOKENS))
    torch.testing.assert_close(run(before, own_ids(TOKENS)), run(after, own_ids(TOKENS)), rtol=1e-3, atol=1e-4)


# Healing


def healed_by_layers(source, subnet, input_ids):
    settings = HealingConfig(basis="principal", ridge=(0.1,))
    sliced = slice_weights(source.weights, source.config, subnet, dtype=torch.float32)
    return Healer(source, subnet, settings, input_ids).heal(sliced).tensors


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("by", ["layers", "moments"])
def test_healing_gives_kept_tokens_the_rows_that_they_have_with_the_whole_vocabulary(make, model_type, tied, by):
    supernet = make(model_type, tie_word_embeddings=tied)
    whole = draw_subnet(supernet.config, 2, layer_wise=False)
    source, part = source_of(supernet), whole.replaced({VOCABULARY: TOKENS})
    input_ids = teacher_ids(TOKENS, 40, 16)
    if by == "layers":
        found, reference = (healed_by_layers(source, each, input_ids) for each in (part, whole))
    else:
        moments = SupernetMoments(supernet, input_ids, 8, False)
        found, reference = (dict(student_healed_from(moments, source, each).state_dict()) for each in (part, whole))
    is_biased = model_type in ("gpt_neox", "gpt2") and not tied  # the last norm's bias is fitted to what the head reads
    for name, tensor in found.items():
        expected = reference[name]
        if expected.shape[0] == 99:
            expected = expected[list(TOKENS)]
        if not (is_biased and ("lm_head" in name or "final" in name or "ln_f" in name)):
            torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-3)


def test_text_of_tokens_that_the_student_lacks_is_refused(make):
    supernet = make("llama")
    subnet = all_but_tokens(supernet.config, TOKENS)
    with pytest.raises(VocabularyError, match="has token 2, which the student does not keep"):
        extract_subnet(supernet, subnet, heal=True, calibration_dataset=torch.full((4, 8), 2), progress=False)


# Token ids


def test_ids_are_places_among_the_kept_tokens():
    assert student_ids(teacher_ids(TOKENS), TOKENS, 99).equal(own_ids(TOKENS))
    assert student_ids(torch.tensor([[3, 0]]), 4, 99).tolist() == [[3, 0]]


def test_special_tokens_are_renumbered_in_both_configurations(make):
    supernet = make("llama", pad_token_id=41, bos_token_id=1, eos_token_id=[98, 3])
    supernet.generation_config = GenerationConfig(
        pad_token_id=2, bos_token_id=1, eos_token_id=98, suppress_tokens=[7, 9], bad_words_ids=[[5, 6], [5, 9]]
    )
    student = extract_subnet(supernet, all_but_tokens(supernet.config, TOKENS))
    own = student.config
    assert (own.pad_token_id, own.bos_token_id, own.eos_token_id) == (7, 1, [10])
    generation = student.generation_config
    assert (generation.pad_token_id, generation.bos_token_id, generation.eos_token_id) == (None, 1, 10)
    assert (generation.suppress_tokens, generation.bad_words_ids) == ([4], [[2, 3]])


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id"])
def test_a_lost_special_token_is_an_error(make, name):
    supernet = make("llama", **{name: 3})
    with pytest.raises(SubnetError, match=f"leaves out token 3, the {name} of the model; keep it, or set"):
        extract_subnet(supernet, all_but_tokens(supernet.config, TOKENS))


def test_settings_that_cannot_be_renumbered_are_refused():
    with pytest.raises(SubnetError, match="sequence_bias of the model's generation_config cannot be renumbered"):
        renumbered({"sequence_bias": [[[1], 2.0]]}, TOKENS, 99)
