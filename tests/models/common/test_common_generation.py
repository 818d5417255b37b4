"""Generation by a student whose layers differ."""

import copy

import pytest
import torch
from small_students import student_of, uneven_subnet_of
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    QuantizedCache,
    StaticCache,
    pipeline,
)
from uneven_student import (
    CLOSE,
    MASKS,
    VOCABULARY,
    first,
    greedy,
    key_value_heads_of,
)

# Generation


def token_by_token(model, input_ids, choose, new_tokens=6):
    """Generate by plain forward passes, without a cache."""
    for _ in range(new_tokens):
        input_ids = torch.cat([input_ids, choose(first(model, input_ids, use_cache=False)[:, -1])], dim=1)
    return input_ids


def log_likelihood(model, sequences, prompt):
    """Log-likelihood of each token after the prompt, by sequence."""
    predicted = first(model, sequences)[:, prompt - 1 : -1].log_softmax(-1)
    return predicted.gather(2, sequences[:, prompt:, None])[..., 0]


def test_greedy_tokens_are_the_likeliest(student, input_ids):
    expected = token_by_token(student, input_ids, lambda logits: logits.argmax(-1, keepdim=True))
    assert torch.equal(greedy(student, input_ids), expected)


CACHES = {
    "none": {"use_cache": False},
    "dynamic": {"cache_implementation": "dynamic"},
    "static": {"cache_implementation": "static"},
    "longer static": {"cache_implementation": "static", "max_cache_len": 40},
    "prompt in chunks": {"prefill_chunk_size": 5},
    "prompt in chunks, static": {"prefill_chunk_size": 5, "cache_implementation": "static", "disable_compile": True},
}


@pytest.mark.parametrize("settings", CACHES.values(), ids=CACHES)
def test_every_cache_gives_the_same_tokens(student, input_ids, settings):
    assert torch.equal(greedy(student, input_ids, **settings), greedy(student, input_ids))


def test_caches_hold_the_heads_of_each_layer(student, input_ids):
    dynamic, static = DynamicCache(config=student.config), StaticCache(config=student.config, max_cache_len=20)
    for cache in (dynamic, static):
        first(student, input_ids, past_key_values=cache)
    for layer, heads in enumerate(key_value_heads_of(student)):
        assert dynamic.layers[layer].keys.shape == (3, heads, 12, 6)
        assert static.layers[layer].keys.shape == (3, heads, 20, 6)
        for name in ("keys", "values"):
            kept, expected = (getattr(cache.layers[layer], name)[:, :, :12] for cache in (static, dynamic))
            torch.testing.assert_close(kept, expected, **CLOSE)


def test_static_cache_laid_out_before_the_first_token_gives_the_same_logits(student, input_ids):
    cache = StaticCache(config=student.config, max_cache_len=20)
    heads = key_value_heads_of(student)
    cache.early_initialization(batch_size=3, num_heads=heads, head_dim=6, dtype=torch.float32, device="cpu")
    torch.testing.assert_close(first(student, input_ids, past_key_values=cache), first(student, input_ids), **CLOSE)


def test_cache_in_eight_bits_stays_close(student, input_ids):
    if "sliding_attention" in getattr(student.config, "layer_types", ()):
        pytest.skip("transformers quantizes only caches of full attention")
    cache = QuantizedCache("fp8", student.config)
    torch.testing.assert_close(
        first(student, input_ids[:, :6], past_key_values=cache), first(student, input_ids[:, :6]), **CLOSE
    )
    expected = first(student, input_ids)
    for position in range(6, 12):
        logits = first(student, input_ids[:, position : position + 1], past_key_values=cache)[:, 0]
        assert nn.functional.cosine_similarity(logits, expected[:, position]).mean() > 0.85


@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}, {"num_beams": 3}], ids=str)
def test_generation_from_embeddings_equals_that_from_tokens(student, input_ids, settings):
    embeddings = student.get_input_embeddings()(input_ids)
    expected = greedy(student, input_ids, **settings)
    mask = torch.ones_like(input_ids)
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask, **settings}
    assert torch.equal(student.generate(inputs_embeds=embeddings, **settings), expected[:, 12:])
    assert torch.equal(student.generate(input_ids, inputs_embeds=embeddings, **settings), expected)


def test_generation_continues_from_a_cache(student, input_ids):
    begun = greedy(student, input_ids, max_new_tokens=3, return_dict_in_generate=True)
    assert begun.past_key_values.get_seq_length() == 14
    continued = greedy(student, begun.sequences, max_new_tokens=3, past_key_values=begun.past_key_values)
    assert torch.equal(continued, greedy(student, input_ids))


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_left_padded_rows_generate_what_they_generate_alone(student, input_ids, settings):
    mask = torch.tensor(MASKS["left padding"])
    together = greedy(student, input_ids, attention_mask=mask, **settings)
    for row, ids, kept in zip(together, input_ids, mask, strict=True):
        assert torch.equal(row[12:], greedy(student, ids[None, kept.bool()], **settings)[0, kept.sum() :])


def test_positions_may_be_left_to_generation(student, input_ids):
    positions = torch.arange(12).expand(3, 12)
    assert torch.equal(greedy(student, input_ids, position_ids=positions), greedy(student, input_ids))


def test_rows_end_at_the_end_token_and_are_padded(student, input_ids):
    free = greedy(student, input_ids, max_new_tokens=10)
    end = free[0, 14].item()
    ended = greedy(student, input_ids, max_new_tokens=10, eos_token_id=end, pad_token_id=0)
    for row, whole in zip(ended, free, strict=True):
        ends = (whole[12:] == end).nonzero()
        kept = 12 + int(ends[0]) + 1 if len(ends) else len(whole)
        assert torch.equal(row[:kept], whole[:kept])
        assert not row[kept:].any()


def test_end_token_does_not_come_before_the_least_length(student, input_ids):
    end = greedy(student, input_ids[:1])[0, 12].item()
    generated = greedy(student, input_ids[:1], eos_token_id=end, pad_token_id=0, min_new_tokens=4)
    assert len(greedy(student, input_ids[:1], eos_token_id=end, pad_token_id=0)[0]) == 13
    assert end not in generated[0, 12:16]


def test_sampled_tokens_are_drawn_from_the_distribution_of_the_logits(student, input_ids):
    torch.manual_seed(5)
    sampled = greedy(student, input_ids, do_sample=True, top_k=0)
    torch.manual_seed(5)
    expected = token_by_token(student, input_ids, lambda logits: torch.multinomial(logits.softmax(-1), 1))
    assert torch.equal(sampled, expected)
    assert not torch.equal(sampled, greedy(student, input_ids))


def test_several_samples_of_a_prompt_begin_with_it(student, input_ids):
    torch.manual_seed(0)
    samples = greedy(student, input_ids, do_sample=True, num_return_sequences=4)
    assert torch.equal(samples[:, :12], input_ids.repeat_interleave(4, dim=0))
    assert len({tuple(sample.tolist()) for sample in samples}) == 12


SCORES = {"return_dict_in_generate": True, "output_scores": True}


def test_beams_as_many_as_the_vocabulary_find_the_likeliest_pair_of_tokens(student, input_ids):
    prompt = input_ids[:1]
    first_token = first(student, prompt)[0, -1].log_softmax(-1)
    prompts = torch.cat([prompt.expand(VOCABULARY, -1), torch.arange(VOCABULARY)[:, None]], dim=1)
    pairs = first_token[:, None] + first(student, prompts)[:, -1].log_softmax(-1)
    found = greedy(student, prompt, max_new_tokens=2, num_beams=VOCABULARY, **SCORES)
    assert found.sequences[0, 12:].tolist() == list(divmod(pairs.argmax().item(), VOCABULARY))
    torch.testing.assert_close(found.sequences_scores[0], pairs.max() / 2, **CLOSE)


@pytest.mark.parametrize("do_sample", [False, True], ids=["search", "sample"])
def test_scores_of_beams_are_the_likelihoods_of_their_tokens(student, input_ids, do_sample):
    torch.manual_seed(0)
    settings = {"top_k": 0} if do_sample else {}
    found = greedy(student, input_ids, num_beams=4, num_return_sequences=3, do_sample=do_sample, **settings, **SCORES)
    expected = log_likelihood(student, found.sequences, 12)
    torch.testing.assert_close(found.sequences_scores, expected.mean(1), **CLOSE)
    assert (found.sequences_scores.view(3, 3).diff() <= 0).all()
    of_tokens = student.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    if not do_sample:
        torch.testing.assert_close(of_tokens, expected, **CLOSE)


def test_beam_sample_depends_on_the_seed_alone(student, input_ids):
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(greedy(student, input_ids, do_sample=True, num_beams=3))
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("settings", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_beams_find_the_same_with_every_cache(student, input_ids, settings):
    assert torch.equal(greedy(student, input_ids, num_beams=4, **settings), greedy(student, input_ids, num_beams=4))


SPECULATION = {"greedy": {}, "sample of one": {"do_sample": True, "top_k": 1}}


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("settings", SPECULATION.values(), ids=SPECULATION)
@pytest.mark.parametrize("helper", ["smaller student", "itself", "prompt"])
def test_speculative_decoding_gives_the_greedy_tokens(student, assistant, settings, helper):
    prompt = torch.tensor([[5, 9, 14, 3, 5, 9, 14, 3, 5, 9]])
    helpers = {
        "smaller student": {"assistant_model": assistant},
        "itself": {"assistant_model": copy.deepcopy(student)},
        "prompt": {"prompt_lookup_num_tokens": 3},
    }
    expected = greedy(student, prompt, max_new_tokens=15)
    assert torch.equal(greedy(student, prompt, max_new_tokens=15, **helpers[helper], **settings), expected)


def test_speculative_decoding_from_the_prompt_stops_at_the_end_token(student, input_ids):
    prompt = input_ids[:1]
    end = greedy(student, prompt)[0, 15].item()
    settings = {"eos_token_id": end, "pad_token_id": 0}
    expected = greedy(student, prompt, **settings)
    assert expected[0, -1] == end
    assert torch.equal(greedy(student, prompt, prompt_lookup_num_tokens=3, **settings), expected)


def test_generation_returns_the_logits_attentions_and_states_of_every_step(eager, input_ids):
    wanted = {"output_logits": True, "output_scores": True, "output_attentions": True, "output_hidden_states": True}
    found = greedy(eager, input_ids, return_dict_in_generate=True, **wanted)
    with torch.no_grad():
        whole = eager(found.sequences[:, :-1], output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(torch.stack(found.logits, dim=1), whole.logits[:, 11:], **CLOSE)
    torch.testing.assert_close(torch.stack(found.scores, dim=1), whole.logits[:, 11:], **CLOSE)
    for layer in range(4):
        states = torch.cat([step[layer] for step in found.hidden_states], dim=1)
        torch.testing.assert_close(states, whole.hidden_states[layer], **CLOSE)
    for layer in range(3):
        for end, step in enumerate(found.attentions, start=12):
            expected = whole.attentions[layer][:, :, :end, :end]
            torch.testing.assert_close(step[layer], expected[:, :, -step[layer].shape[2] :], **CLOSE)


def test_generation_without_a_prompt_begins_with_the_first_token(student):
    model = copy.deepcopy(student)
    with pytest.raises(ValueError, match="`bos_token_id` has to be defined when no `input_ids` are provided"):
        model.generate(max_new_tokens=4)
    model.generation_config.bos_token_id = 7
    assert torch.equal(model.generate(max_new_tokens=4, do_sample=False), greedy(model, torch.tensor([[7]]))[:, :5])


def test_generation_configuration_is_saved_with_the_student(student, input_ids, tmp_path):
    model = copy.deepcopy(student)
    model.generation_config = GenerationConfig(max_new_tokens=3, num_beams=2, pad_token_id=0)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    mask = torch.ones_like(input_ids)
    expected = greedy(student, input_ids, max_new_tokens=3, num_beams=2)
    assert torch.equal(reloaded.generate(input_ids, attention_mask=mask), expected)


def test_pipelines_run_a_student(teacher_folder, make_own):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    end = tokenizer.eos_token_id
    supernet = make_own(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, pad_token_id=None)
    student = student_of(supernet, uneven_subnet_of(supernet.config))
    text = "The quick brown fox"
    inputs = tokenizer(text, return_tensors="pt")
    written = pipeline("text-generation", model=student, tokenizer=tokenizer)(text, max_new_tokens=5, do_sample=False)
    expected = greedy(student, inputs.input_ids, max_new_tokens=5)
    assert written[0]["generated_text"] == tokenizer.decode(expected[0], skip_special_tokens=True)
    features = pipeline("feature-extraction", model=student.base_model, tokenizer=tokenizer)(text, return_tensors=True)
    torch.testing.assert_close(features, first(student.base_model, **inputs), **CLOSE)
