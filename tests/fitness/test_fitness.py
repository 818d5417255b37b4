"""Perplexity and divergence against the loss and the logits of the stock model and of the student."""

import copy
import math
import re
import weakref
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from fixtures_search import StopsAt
from small_models import make_other
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_whittle import (
    GPTNeoXSuperNetForCausalLM,
    ParameterBin,
    SearchSpace,
    SubnetConfig,
    extract_subnet,
    search_subnets,
)
from hf_whittle.errors import DataError, SubnetError, VocabularyError
from hf_whittle.evaluation import cross_entropy
from hf_whittle.fitness.divergence import KLDivergence
from hf_whittle.fitness.healed import HealedPerplexity
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.fitness.probe import Probe, ProbeConfig
from hf_whittle.fitness.staged import StagedFitness
from hf_whittle.search.algorithms import EvolutionConfig, MultiFidelityConfig, RandomSearchConfig


def perplexity_of(model, input_ids):
    """Perplexity by the loss of transformers, block by block."""
    with torch.no_grad():
        losses = [model(block[None], labels=block[None]).loss.double() for block in input_ids]
    return math.exp(torch.stack(losses).mean())


@pytest.mark.parametrize("seed", range(2))
def test_perplexity_of_a_subnet_is_that_of_its_student(supernet, space, draw, input_ids, seed):
    subnet = draw(space, seed)
    expected = perplexity_of(extract_subnet(supernet, subnet), input_ids)
    assert Perplexity(supernet, input_ids)(subnet) == pytest.approx(expected, rel=1e-5)


def test_perplexity_of_the_full_subnet_is_that_of_the_stock_model_on_text(teacher_folder):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    ids = torch.tensor(tokenizer("the five boxing wizards whittle a model, layer by layer. " * 4)["input_ids"])
    blocks = ids[: len(ids) // 16 * 16].view(-1, 16)
    supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(teacher_folder)
    expected = perplexity_of(AutoModelForCausalLM.from_pretrained(teacher_folder), blocks)
    assert Perplexity(supernet, blocks)(SubnetConfig.full(supernet.config)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_perplexity_does_not_depend_on_the_batch_size(supernet, uneven_subnet, input_ids, batch_size):
    expected = Perplexity(supernet, input_ids, batch_size=3)(uneven_subnet)
    assert Perplexity(supernet, input_ids, batch_size)(uneven_subnet) == pytest.approx(expected, rel=1e-6)


def test_dataset_and_tensor_are_the_same_text(supernet, uneven_subnet, input_ids):
    from_dataset = Perplexity(supernet, Dataset.from_dict({"input_ids": input_ids.tolist()}))
    from_tensor = Perplexity(supernet, input_ids)
    assert from_dataset.settings == from_tensor.settings
    assert from_dataset(uneven_subnet) == from_tensor(uneven_subnet)


def test_dropout_is_off_while_perplexity_is_taken_and_training_goes_on_after_it(make_stock, make_supernet, input_ids):
    supernet = make_supernet(make_stock(hidden_dropout=0.5))
    perplexity = Perplexity(supernet, input_ids)
    expected = perplexity(SubnetConfig(24, 3, 3, 40))
    supernet.train()
    assert perplexity(SubnetConfig(24, 3, 3, 40)) == expected
    assert all(module.training for module in supernet.modules())


def test_cross_entropy_is_in_nats_per_predicted_token(stock, input_ids):
    assert math.exp(cross_entropy(stock, input_ids)) == pytest.approx(perplexity_of(stock, input_ids), rel=1e-5)


def test_perplexity_of_a_broken_model_is_huge_but_finite(supernet, input_ids):
    broken = copy.deepcopy(supernet)
    with torch.no_grad():
        broken.lm_head.weight.mul_(1e6)
    assert Perplexity(broken, input_ids)(SubnetConfig(24, 3, 3, 40)) == math.exp(700)


def test_settings_tell_other_text_and_other_weights_apart(supernet, make_stock, make_supernet, input_ids):
    settings = Perplexity(supernet, input_ids).settings
    assert (settings["tokens"], settings["block_size"]) == (36, 12)
    assert Perplexity(copy.deepcopy(supernet), input_ids.clone()).settings == settings
    assert Perplexity(supernet, input_ids.flip(0)).settings["data"] != settings["data"]
    assert Perplexity(make_supernet(make_stock(seed=1)), input_ids).settings["model"] != settings["model"]


@pytest.mark.parametrize("blocks", [None, Dataset.from_dict({"input_ids": []})], ids=["none", "empty"])
def test_no_text_is_an_error(supernet, blocks):
    with pytest.raises(DataError, match="there are no blocks of text to evaluate on; give a dataset of packed"):
        Perplexity(supernet, blocks)


@pytest.mark.parametrize("shape", [(0, 12), (3, 1), (12,)])
def test_text_that_is_not_in_blocks_is_an_error(supernet, shape):
    message = f"expected token ids of shape (blocks, block_size), got {shape}"
    with pytest.raises(DataError, match=re.escape(message)):
        Perplexity(supernet, torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(("ids", "span"), [([[1, 2, 99]], "from 1 to 99"), ([[-1, 2, 3]], "from -1 to 3")])
def test_text_of_another_vocabulary_is_an_error(supernet, ids, span):
    message = f"the text has token ids {span}, the model's vocabulary has 99 entries; tokenize with the model's own"
    with pytest.raises(VocabularyError, match=re.escape(message)):
        Perplexity(supernet, torch.tensor(ids))


def test_blocks_of_another_type_are_an_error(supernet):
    with pytest.raises(DataError, match=r"expected a datasets\.Dataset or a tensor of token ids, got a list"):
        Perplexity(supernet, [[1, 2, 3]])


# Shares of the tokens

FITNESSES = [Perplexity, KLDivergence]
SHARES = [1e-6, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]


@pytest.fixture(scope="module")
def many_blocks():
    return torch.randint(1, 99, (20, 12), generator=torch.Generator().manual_seed(8))


def test_blocks_of_a_smaller_share_are_part_of_a_larger_one(supernet, many_blocks):
    perplexity = Perplexity(supernet, many_blocks)
    chosen = [perplexity.rows(share).tolist() for share in SHARES]
    assert [len(rows) for rows in chosen] == [1, 2, 5, 10, 15, 18, 20]
    for smaller, larger in pairwise(chosen):
        assert smaller == sorted(set(smaller)) and set(smaller) < set(larger)


def test_blocks_of_a_share_are_the_same_for_every_fitness_and_not_the_first_ones(supernet, many_blocks):
    half = Perplexity(supernet, many_blocks).rows(0.5).tolist()
    assert KLDivergence(supernet, many_blocks, batch_size=3).rows(0.5).tolist() == half
    assert half != list(range(10))


@pytest.mark.parametrize("fitness_class", FITNESSES)
def test_share_of_one_is_all_tokens(supernet, uneven_subnet, many_blocks, fitness_class):
    fitness = fitness_class(supernet, many_blocks)
    assert fitness.rows(1.0).tolist() == list(range(20))
    assert fitness(uneven_subnet, 1.0) == fitness(uneven_subnet)


@pytest.mark.parametrize("share", SHARES)
def test_perplexity_on_a_share_is_that_of_the_student_on_its_blocks(supernet, uneven_subnet, many_blocks, share):
    perplexity = Perplexity(supernet, many_blocks, batch_size=4)
    expected = perplexity_of(extract_subnet(supernet, uneven_subnet), many_blocks[perplexity.rows(share)])
    assert perplexity(uneven_subnet, share) == pytest.approx(expected, rel=1e-5)


# Cost


@pytest.mark.parametrize("fitness_class", FITNESSES)
@pytest.mark.parametrize(("share", "tokens"), [(1e-6, 12), (0.1, 24), (0.5, 120), (1.0, 240)])
def test_tokens_and_flops_are_those_of_the_student_on_the_share(
    supernet, space, draw, many_blocks, fitness_class, share, tokens
):
    fitness = fitness_class(supernet, many_blocks)
    subnet = draw(space, 3)
    student = extract_subnet(supernet, subnet)
    student.set_attn_implementation("eager")  # all that the counter sees
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(many_blocks[: tokens // 12], use_cache=False)
    assert fitness.tokens(share) == tokens
    assert fitness.flops(subnet, share) == counter.get_total_flops()


# Divergence from a teacher


def log_probabilities(model, input_ids):
    with torch.no_grad():
        return model(input_ids).logits.double().log_softmax(-1)


def divergence(student, teacher, input_ids):
    """Divergence in nats per token, in double precision."""
    of_student, of_teacher = log_probabilities(student, input_ids), log_probabilities(teacher, input_ids)
    return (F.kl_div(of_student, of_teacher, reduction="sum", log_target=True) / input_ids.numel()).item()


def test_full_subnet_does_not_diverge_from_itself(supernet, many_blocks):
    kl = KLDivergence(supernet, many_blocks)
    assert kl(SubnetConfig.full(supernet.config)) == pytest.approx(0, abs=1e-3)
    assert kl(SubnetConfig(24, 3, 3, 40)) > 0.1


@pytest.mark.parametrize("seed", range(2))
def test_divergence_of_a_subnet_is_that_of_its_student_from_the_super_network(
    supernet, stock, space, draw, many_blocks, seed
):
    subnet = draw(space, seed)
    expected = divergence(extract_subnet(supernet, subnet), stock, many_blocks)
    assert KLDivergence(supernet, many_blocks)(subnet) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_divergence_is_that_from_the_teacher_given(supernet, make_stock, uneven_subnet, many_blocks):
    teacher = make_stock(seed=1, num_hidden_layers=2, hidden_size=16)
    student = extract_subnet(supernet, uneven_subnet)
    expected = divergence(student, teacher, many_blocks)
    found = KLDivergence(supernet, many_blocks, teacher=teacher)(uneven_subnet)
    assert found == pytest.approx(expected, rel=1e-3)
    assert found != pytest.approx(KLDivergence(supernet, many_blocks)(uneven_subnet), rel=1e-2)


def test_divergence_from_a_teacher_in_which_a_subnet_is_active_is_an_error(supernet, uneven_subnet, many_blocks):
    with (
        supernet.active_subnet(uneven_subnet),
        pytest.raises(SubnetError, match="a subnet is active: leave the active_subnet block first"),
    ):
        KLDivergence(supernet, many_blocks)


def test_divergence_on_a_share_is_that_of_its_blocks(supernet, stock, uneven_subnet, many_blocks):
    kl = KLDivergence(supernet, many_blocks, batch_size=3)
    expected = divergence(extract_subnet(supernet, uneven_subnet), stock, many_blocks[kl.rows(0.35)])
    assert kl(uneven_subnet, 0.35) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_divergence_does_not_depend_on_the_batch_size(supernet, uneven_subnet, many_blocks, batch_size):
    expected = KLDivergence(supernet, many_blocks, batch_size=3)(uneven_subnet)
    assert KLDivergence(supernet, many_blocks, batch_size)(uneven_subnet) == pytest.approx(expected, rel=1e-4)


def test_whole_logits_of_a_teacher_without_a_table_are_held_one_batch_at_a_time(supernet, many_blocks):
    teacher, logits, held = make_other(supernet.config.vocab_size), [], []

    def note(module, inputs, output):
        held.append(sum(reference() is not None for reference in logits))
        logits.append(weakref.ref(output.logits))

    teacher.register_forward_hook(note)
    KLDivergence(supernet, many_blocks, batch_size=4, teacher=teacher)
    assert len(held) == 5 and max(held) <= 1


def test_dropout_is_off_while_divergence_is_taken_and_training_goes_on_after_it(make_stock, make_supernet, input_ids):
    supernet, teacher = (make_supernet(make_stock(seed, hidden_dropout=0.5)) for seed in (0, 1))
    expected = KLDivergence(supernet, input_ids, teacher=teacher)(SubnetConfig(24, 3, 3, 40))
    supernet.train(), teacher.train()
    assert KLDivergence(supernet, input_ids, teacher=teacher)(SubnetConfig(24, 3, 3, 40)) == expected
    assert all(module.training for model in (supernet, teacher) for module in model.modules())


def test_teacher_of_another_vocabulary_is_an_error(supernet, make_stock, input_ids):
    message = "the teacher's vocabulary has 120 entries, that of the super-network 99; use a teacher with the same"
    with pytest.raises(VocabularyError, match=message):
        KLDivergence(supernet, input_ids, teacher=make_stock(vocab_size=120))


def test_settings_tell_the_teacher_and_the_fitness(supernet, make_stock, input_ids):
    settings = KLDivergence(supernet, input_ids).settings
    assert KLDivergence(supernet, input_ids, teacher=copy.deepcopy(supernet)).settings == settings
    other = KLDivergence(supernet, input_ids, teacher=make_stock(seed=1)).settings
    assert other["teacher"] != settings["teacher"]
    assert {**other, "teacher": settings["teacher"]} == settings
    assert settings["name"] != Perplexity(supernet, input_ids).settings["name"]


# Weights that contain NaN


@pytest.mark.parametrize("fitness_class", FITNESSES)
def test_weights_that_contain_nan_count_as_worst_in_a_search(supernet, space, input_ids, fitness_class):
    broken = copy.deepcopy(supernet)
    with torch.no_grad():
        broken.lm_head.weight[3] = math.nan
    found = search_subnets(
        broken,
        space,
        bin=ParameterBin(0, 1e9),
        config=RandomSearchConfig(evaluations=3),
        fitness=fitness_class(broken, input_ids),
        progress=False,
    )
    assert [evaluation.fitness for evaluation in found.evaluations] == [math.inf] * 3


# Stages

MULTI_FIDELITY = MultiFidelityConfig(generations=1, shares=[0.25, 0.5, 1.0], sizes=[4, 2, 1], initial=2, seed=4)


@pytest.fixture
def stages(supernet, many_blocks):
    """Three fitnesses, each more expensive than the one before."""
    return {
        0.25: Perplexity(supernet, many_blocks[:4]),
        0.5: HealedPerplexity(supernet, many_blocks[:6], many_blocks),
        1.0: Probe(supernet, many_blocks, many_blocks[:6], ProbeConfig(steps=2, batch_size=4)),
    }


@pytest.mark.slow
def test_share_selects_a_stage_and_all_of_its_tokens(stages, uneven_subnet):
    staged = StagedFitness(stages)
    for share, stage in stages.items():
        assert staged(uneven_subnet, share) == stage(uneven_subnet)
        assert staged.tokens(share) == stage.tokens(1.0)
        assert staged.flops(uneven_subnet, share) == stage.flops(uneven_subnet, 1.0)
    assert staged(uneven_subnet) == stages[1.0](uneven_subnet)
    assert (staged.tokens(), staged.flops(uneven_subnet)) == (stages[1.0].tokens(), stages[1.0].flops(uneven_subnet))
    assert not staged.is_sharded


def test_preparation_of_stages_is_that_of_all_of_them(stages):
    assert stages[0.25].preparation == {"tokens": 0, "flops": 0}
    expected = {name: sum(stage.preparation[name] for stage in stages.values()) for name in ("tokens", "flops")}
    assert StagedFitness(stages).preparation == expected
    assert expected["tokens"] == 20 * 12 + 8 * 12


def test_healing_that_is_a_stage_and_the_start_of_a_probe_is_counted_once(supernet, many_blocks):
    healing = HealedPerplexity(supernet, many_blocks[:6], many_blocks)
    probe = Probe(supernet, many_blocks, many_blocks[:6], ProbeConfig(steps=2, batch_size=4), healing=healing)
    assert StagedFitness({0.5: healing, 1.0: probe}).preparation == probe.preparation
    assert probe.preparation["tokens"] == 20 * 12 + 8 * 12


def test_settings_of_stages_are_those_of_each(stages):
    assert StagedFitness(stages).settings == {
        "name": "staged",
        "stages": {"0.25": stages[0.25].settings, "0.5": stages[0.5].settings, "1.0": stages[1.0].settings},
    }


def test_one_sharded_stage_is_all_of_them(stages, monkeypatch):
    monkeypatch.setattr(HealedPerplexity, "is_sharded", True)
    assert StagedFitness(stages).is_sharded


@pytest.mark.parametrize("shares", [[], [0.5], [1.0, 0.5], [0.0, 1.0], [-0.5, 1.0], [0.5, 2.0]])
def test_shares_of_stages_that_do_not_ascend_to_one_are_an_error(stages, shares):
    message = f"the shares of stages must ascend from above 0 to 1, got {shares}"
    with pytest.raises(ValueError, match=re.escape(message)):
        StagedFitness(dict.fromkeys(shares, stages[1.0]))


def test_share_without_a_stage_is_an_error(stages, uneven_subnet):
    staged = StagedFitness(stages)
    message = "on a share of 0.0625 of the tokens, the stages are for [0.25, 0.5, 1.0]; give them the same shares"
    for ask in (staged.tokens, lambda share: staged(uneven_subnet, share), lambda s: staged.flops(uneven_subnet, s)):
        with pytest.raises(ValueError, match=re.escape(message)):
            ask(0.0625)


@pytest.mark.slow
def test_search_by_stages_is_resumed_to_the_same_bytes_and_counts_each_stage(supernet, stages, tmp_path):
    space = SearchSpace.from_config(supernet.config, "fine", layer_wise=True)

    def search(folder, fitness):
        arguments = {"bin": ParameterBin(20_000, 22_000), "config": MULTI_FIDELITY, "fitness": fitness}
        return search_subnets(None, space, output_dir=folder, progress=False, **arguments)

    found = search(tmp_path / "whole", StagedFitness(stages))
    assert [evaluation.share for evaluation in found.evaluations].count(0.25) == 12
    for evaluation in found.evaluations[::4]:
        stage = stages[evaluation.share]
        assert evaluation.fitness == stage(evaluation.subnet)
        assert (evaluation.tokens, evaluation.flops) == (stage.tokens(), stage.flops(evaluation.subnet))
    for stop_at in (5, 13):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / str(stop_at), StopsAt(StagedFitness(stages), stop_at))
        search(tmp_path / str(stop_at), StagedFitness(stages))
        for name in ("candidates.jsonl", "search.json"):
            assert (tmp_path / str(stop_at) / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_search_without_shares_takes_the_last_stage(supernet, stages):
    found = search_subnets(
        None,
        SearchSpace.from_config(supernet.config),
        bin=ParameterBin(0, 1e9),
        config=EvolutionConfig(generations=0, population_size=2, num_offspring=1, num_elites=1),
        fitness=StagedFitness(stages),
        progress=False,
    )
    assert [evaluation.fitness for evaluation in found.evaluations] == [
        stages[1.0](evaluation.subnet) for evaluation in found.evaluations
    ]
