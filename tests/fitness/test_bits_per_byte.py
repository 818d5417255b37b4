"""Bits per byte against the sum of log-probabilities of each document, by the student and its own tokenizer."""

import math

import pytest
import torch
from small_models import draw_subnet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast

from hf_whittle import BitsPerByte, ParameterBin, Perplexity, SearchSpace, SubnetConfig, extract_subnet, search_subnets
from hf_whittle.architectures.dimensions import VOCABULARY
from hf_whittle.errors import DataError, SubnetError
from hf_whittle.search.algorithms import AdditiveSearchConfig, EvolutionConfig, RandomSearchConfig
from hf_whittle.subnet import count

DOCUMENTS = ["a cab backed a cab", "", "the deed faded, née Bébé.", "bad cafe feed " * 3]
BYTES = sum(len(document.encode()) for document in DOCUMENTS)
PAIRS = ["ab", "ba", "ca", "de", "ee", "fe"]
WHOLE = 1 + 256 + len(PAIRS)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SMALL = 1 + 256 + 2


def make_tokenizer(kept=None):
    """A byte-level tokenizer with the first pairs alone: the end of a text, 256 bytes, then pairs."""
    pairs = PAIRS[: (WHOLE if kept is None else count(kept)) - 257]
    vocabulary = {token: place for place, token in enumerate(["<end>", *ALPHABET, *pairs])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in pairs]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture(scope="module")
def supernet(make_stock, make_supernet):
    return make_supernet(make_stock(model_type="llama", vocab_size=WHOLE + 5, tie_word_embeddings=True))


@pytest.fixture(scope="module")
def fitness(supernet):
    return BitsPerByte(supernet, DOCUMENTS, make_tokenizer, block_size=8)


def bits(model, tokenizer, document, block_size):
    """Bits of a document whose tokens are predicted one by one, each from those before it in its window."""
    ids = [0, *tokenizer(document)["input_ids"]]
    found, last = 0.0, len(ids) - 1
    for place in range(1, len(ids)):
        start = (place - 1) // block_size * block_size
        start = max(0, min(start, start if start + block_size <= last else last - block_size))
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:place]])).logits[0, -1].double()
        found -= logits.log_softmax(-1)[ids[place]].item() / math.log(2)
    return found


@pytest.mark.parametrize("kept", [None, SMALL])
def test_bits_are_those_of_the_student_with_its_tokenizer(supernet, fitness, kept):
    subnet = draw_subnet(supernet.config, 4).replaced({VOCABULARY: kept})
    student, tokenizer = extract_subnet(supernet, subnet), make_tokenizer(kept)
    expected = sum(bits(student, tokenizer, document, 8) for document in DOCUMENTS if document) / BYTES
    assert fitness(subnet) == pytest.approx(expected, rel=1e-4)


def test_a_share_is_of_documents_and_a_part_of_a_larger_one(fitness, supernet):
    subnet = SubnetConfig.full(supernet.config)
    assert 0 < fitness.bytes(0.1) < fitness.bytes(0.7) < fitness.bytes() == BYTES
    assert fitness.tokens_of(subnet, 0.1) < fitness.tokens_of(subnet)
    assert fitness(subnet, 1.0) == fitness(subnet)


def test_smaller_vocabularies_read_and_compute_more_tokens(fitness, supernet):
    whole, part = (SubnetConfig.full(supernet.config).replaced({VOCABULARY: kept}) for kept in (None, SMALL))
    texts = [document for document in DOCUMENTS if document]
    for subnet, tokenizer in ((whole, make_tokenizer()), (part, make_tokenizer(SMALL))):
        tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
        assert fitness.tokens_of(subnet) == tokens
        assert fitness.tokens_per_byte(subnet) == tokens / BYTES
    assert fitness.tokens() == fitness.tokens_of(whole) < fitness.tokens_of(part)


def test_flops_are_those_that_are_counted(make_stock, make_supernet):
    supernet = make_supernet(make_stock(model_type="llama", vocab_size=WHOLE, attn_implementation="eager"))
    fitness = BitsPerByte(supernet, [DOCUMENTS[0]], make_tokenizer, block_size=4, batch_size=1)
    subnet = SubnetConfig.full(supernet.config).replaced({VOCABULARY: SMALL})
    with FlopCounterMode(display=False) as counter:
        fitness(subnet)
    assert fitness.flops(subnet) == counter.get_total_flops()


def make_space(supernet, **choices):
    return SearchSpace.from_config(supernet.config, vocab_sizes=(SMALL, WHOLE, WHOLE + 5), **choices)


@pytest.mark.parametrize(
    "config",
    [
        RandomSearchConfig(evaluations=6),
        EvolutionConfig(generations=2, population_size=6, num_offspring=4),
    ],
    ids=["random", "evolution"],
)
def test_a_search_chooses_the_vocabulary(supernet, fitness, config):
    result = search_subnets(
        supernet, make_space(supernet), bin=ParameterBin(15_000, 40_000), fitness=fitness, config=config, progress=False
    )
    sizes = {count(each.subnet.vocab_size or WHOLE + 5) for each in result.evaluations}
    assert len(sizes) > 1
    for each in result.evaluations:
        assert each.tokens == fitness.tokens_of(each.subnet) and each.flops == fitness.flops(each.subnet)
    assert len(fitness._encoded) <= 3


@pytest.mark.slow
def test_additive_search_scores_every_vocabulary(supernet, fitness):
    config = AdditiveSearchConfig(head_options=1, neuron_options=1, channel_options=1, answers=2, generations=0)
    space = make_space(supernet)
    result = search_subnets(
        supernet, space, bin=ParameterBin(15_000, 40_000), fitness=fitness, config=config, progress=False
    )
    replaced = [each.subnet.vocab_size for each in result.evaluations if each.origin == "replacement"]
    assert {SMALL, WHOLE} <= set(replaced)
    assert all(space.contains(each.subnet) for each in result.answers)


def test_fixed_token_ids_do_not_compare_vocabularies(supernet):
    space, blocks = make_space(supernet), torch.zeros(2, 8, dtype=torch.long)
    message = "vocabularies of 259 or 263 or 268 tokens, and perplexity on fixed token ids does not compare them"
    with pytest.raises(SubnetError, match=message):
        search_subnets(supernet, space, bin=ParameterBin(0, 1e9), fitness=Perplexity(supernet, blocks))


def test_documents_without_text_are_refused(supernet):
    with pytest.raises(DataError, match="no text to evaluate on"):
        BitsPerByte(supernet, ["", ""], make_tokenizer)
