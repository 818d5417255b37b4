"""Experiments of the paper: ratios and intervals in closed form, keys by content, and the page as its results say."""

import json
import math
import random
import re
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr
from transformers import AutoTokenizer

from examples.paper import __main__, cache, downstream, lab, render, scalability, training, tuning
from examples.paper.downstream import CONTINUED, SHOWN, Questions
from examples.paper.intervals import CEILING, Modules, flops_to, kendall_tau, taus
from examples.paper.limited import UpTo
from examples.paper.ratios import STUDENT, baseline, curves, mean_over_seeds, ratio
from examples.paper.sections_of_students import _spearman_given, spearman
from examples.paper.sizes import SIZES
from examples.paper.text import Text, modules_of, spread
from hf_whittle import AdditiveSearchConfig, EvolutionConfig, ParameterBin, search_subnets
from hf_whittle.cost import num_parameters
from hf_whittle.demo import TEACHER
from hf_whittle.fitness.base import Fitness
from hf_whittle.loss.targets import DenseTargets
from hf_whittle.models.heads import Head

STOCK, DISTILLED = "random, stock 96 x 4", "random, stock 96 x 4, distilled"


def point(arm, tokens, loss, seed=0, rate=1e-3, **flops):
    test = {"a": [loss, 4], "b": [loss, 4]}
    return {"arm": arm, "tokens": tokens, "search": loss, "test": test, "seed": seed, "rate": rate, "flops": flops}


def points(seed=0):
    """Losses that fall by 1 for every factor of 10 in FLOPs, from random weights; a student that starts at 3.5."""
    return [
        *(point(STOCK, 10**n, 7 - n, seed, training=10**n) for n in (1, 2, 3)),
        *(point(STOCK, 10**n, 7.5 - n, seed, 2e-3, training=10**n) for n in (1, 2, 3)),
        *(point(DISTILLED, 10**n, 6.5 - n, seed, training=10**n, teacher=4 * 10**n) for n in (1, 2, 3)),
        point(STUDENT, 0, 4.5, seed, None, search=60, healing=40),
        point(STUDENT, 10, 2.5, seed, search=60, healing=40, training=600, teacher=300),
    ]


def test_flops_to_a_loss_are_interpolated_in_their_logarithm():
    assert flops_to([1e3, 1e5], [5.0, 3.0], 4.0) == pytest.approx(1e4)
    assert flops_to([1e3, 1e5], [5.0, 3.0], 6.0) == 1e3
    assert flops_to([1e3, 1e5], [5.0, 3.0], 2.0) == math.inf


def test_ratio_is_of_the_cheapest_random_initialization_to_the_student():
    of_seed, modules = curves(points(), 0), Modules(points())
    assert baseline(of_seed, 1000)[0] == DISTILLED and baseline(of_seed, 1000, distilled=False)[0] == STOCK
    # after 100 tokens, the distilled model has 4.5, for 500; the other takes 10 ** 2.5; the student starts there
    assert ratio(of_seed, 100, modules) == pytest.approx(np.full(1001, 10**2.5 / 100))
    # both learning rates and the shorter budget are charged; the distilled model had one rate
    assert ratio(of_seed, 100, modules, sweeps=True) == pytest.approx(np.full(1001, (500 + 50) / 100))
    # without the teacher, random initialization has 4 after 1,000 tokens; the student is a quarter of the way
    with_teacher = ratio(of_seed, 1000, modules, teacher_training=900)
    assert with_teacher == pytest.approx(np.full(1001, 1000 / (1000**0.75 * 1900**0.25)))


def test_mean_of_ratios_is_geometric_and_draws_seeds():
    means = mean_over_seeds([np.full(1001, 2.0), np.full(1001, 8.0)])
    assert means[0] == pytest.approx(4) and set(means.round(9)) == {2.0, 4.0, 8.0}
    assert mean_over_seeds([np.zeros(1001)]).max() == 0


def test_intervals_are_over_modules():
    test = {"a": [1.0, 1], "b": [2.0, 3]}
    losses = Modules([{"test": test}]).losses({"test": test})
    assert losses[0] == pytest.approx(7 / 4)
    assert set(losses[1:].round(9)) == {1.0, 1.75, 2.0}


def test_tau_is_that_of_scipy_and_a_training_ranks_like_itself():
    rng = np.random.default_rng(1)
    ends = np.repeat(rng.normal(size=(1, 12, 3)), 2, axis=0)
    blocks = np.array([1, 2, 3])
    truth = ends[0] @ blocks / 6
    fitnesses = {"noise": rng.integers(4, size=12), "truth": truth, "reverse": -truth}
    found = taus(fitnesses, ends, blocks, "noise")
    expected = kendalltau(fitnesses["noise"], truth).statistic
    assert found["noise"]["tau"][0] == pytest.approx(expected)
    assert kendall_tau(fitnesses["noise"], truth) == pytest.approx(expected)
    assert found["truth"]["tau"][0] == found[CEILING]["tau"][0] == -found["reverse"]["tau"][0] == pytest.approx(1)
    assert found["truth"]["above_reference"][0] == pytest.approx(1 - expected)
    assert found["noise"]["above_reference"] == (0, 0, 0)
    low, high = found["noise"]["tau"][1:]
    assert -1 <= low < expected < high <= 1


def test_correlation_of_ranks_is_that_of_scipy():
    rng = np.random.default_rng(1)
    first, second = rng.integers(5, size=20), rng.normal(size=20)
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert spearman(first, np.ones(20)) == 0
    r, s, t = (spearman(*pair) for pair in ((first, second), (first, -first + second), (second, -first + second)))
    expected = (r - s * t) / math.sqrt((1 - s**2) * (1 - t**2))  # of ranks, in closed form
    assert _spearman_given(first, second, -first + second) == pytest.approx(expected)


def test_a_part_of_the_teacher_is_seen_at_the_temperature_of_the_loss():
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(20, 4, generator=generator), None)
    whole = DenseTargets(torch.randn(400, 4, generator=generator), head)
    probabilities = (whole.hidden_states @ head.weight.T / 0.5).softmax(-1)
    seen = training.Distillation(temperature=0.5, top=3).seen(whole, generator)
    expected = probabilities.topk(3)
    assert torch.equal(seen.ids, expected.indices) and seen.tail
    torch.testing.assert_close(seen.probabilities, expected.values, rtol=2e-3, atol=1e-4)
    drawn = training.Distillation(temperature=0.5, draws=200).seen(whole, generator)
    frequencies = torch.zeros(400, 20).scatter_add_(1, drawn.ids, drawn.probabilities)
    assert (frequencies - probabilities).abs().max() < 5 * (0.25 / 200) ** 0.5
    assert training.PAPERS.seen(whole, generator) is whole


def test_questions_are_answered_by_the_text_itself(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="tasks need lm-eval: pip install 'hf_whittle[eval]'")
    monkeypatch.setattr(downstream, "RUNS", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    code = "".join(
        f"def function_{n}(argument):\n    # some other text\n    return argument + {n}\n\n\n" for n in range(400)
    )
    ids = torch.tensor(tokenizer(code)["input_ids"][: 6 * 256]).view(6, 256)
    text = Text(ids, ids, ids, ids, ids, tuple("aabbcd"))
    questions = Questions(text, 5)
    assert questions.sizes == {"cloze": 5, "continuation": 5}
    whole = [tokenizer.decode(block) for block in ids]
    for name in questions.sizes:
        for row in map(json.loads, (tmp_path / "tasks" / f"{name}.jsonl").read_text().splitlines()):
            answer = row["choices"][row["answer"]]
            assert any(each.startswith(row["context"] + answer) for each in whole) and len(row["choices"]) == 4
            if name == "cloze":
                assert all(choice in row["context"] for choice in row["choices"])
            else:
                assert len(tokenizer(row["context"])["input_ids"]) == pytest.approx(SHOWN, abs=3)
                assert len(tokenizer(answer)["input_ids"]) == pytest.approx(CONTINUED, abs=3)


def test_results_are_kept_by_settings_inputs_and_code(tmp_path, monkeypatch):
    here, made = tmp_path / "code", []
    here.mkdir()
    monkeypatch.setattr(cache, "HERE", here)

    def once(code, settings=None, inputs=None):
        (here / "module.py").write_text(code)
        cache.digest.cache_clear()
        kept = cache.Cache(tmp_path / "runs", inputs or {})
        return kept.once("kind", settings or {}, ["paper.module"], lambda: {"number": made.append(0) or len(made)})

    try:
        assert once('"about"\nx = 1')["number"] == once('"other"\nx = 1  # a comment')["number"] == 1
        assert once("x = 2")["number"] == 2
        assert once("x = 2", {"rate": 1.0})["number"] == 3
        assert once("x = 2", inputs={"text": "other"})["number"] == 4
        assert once("x = 1")["number"] == 1
    finally:
        cache.digest.cache_clear()


def test_blocks_belong_to_the_module_of_their_middle():
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    documents = {"name": ["empty", "long", "short", "last"], "text": ["", "a = 1\n" * 400, "b", "c = 2\n" * 400]}
    lengths = [len(tokenizer(text)["input_ids"]) + 1 for text in documents["text"][1:]]
    modules = modules_of(documents, tokenizer, sum(lengths) // 256)
    assert modules == ["long" if 256 * block + 128 < lengths[0] else "last" for block in range(sum(lengths) // 256)]
    assert spread(10, 3) == [0, 3, 6] and spread(2, 3) == [0, 1]


def test_committed_page_is_that_of_the_committed_results():
    assert render.PAGE.read_text(encoding="utf-8") == render.page()


def test_limited_search_ends_with_the_batch_that_spends_its_flops(space):
    low, high = (0.6 * num_parameters(space.config), 0.9 * num_parameters(space.config))
    evolution = EvolutionConfig(population_size=4, num_offspring=3, num_elites=2, generations=9)
    fitness = Counted(space)
    result = search_subnets(
        None,
        space,
        bin=ParameterBin(low, high),
        config=UpTo(search=evolution, flops=6 * fitness.FLOPS),
        fitness=fitness,
        progress=False,
    )
    assert len(result.evaluations) == 4 + 3
    unlimited = search_subnets(
        None, space, bin=ParameterBin(low, high), config=evolution, fitness=Counted(space), progress=False
    )
    assert result.evaluations == unlimited.evaluations[:7]


class Counted(Fitness):
    """Fewer parameters are better; every evaluation costs the same."""

    name = "counted"
    FLOPS = 10

    def __init__(self, space):
        self.config = space.config

    settings = {"name": "counted"}
    reads_token_ids = False

    def __call__(self, subnet, share=1.0):
        return float(num_parameters(self.config, subnet))

    def tokens(self, share=1.0):
        return 1

    def flops(self, subnet, share=1.0):
        return self.FLOPS


@pytest.fixture
def small(name, tmp_path, monkeypatch):
    """A laboratory with a little text of random tokens, in short blocks, whose results go into a folder of the test."""
    length = 256 if name == "downstream" else 64  # for questions about text that is long enough
    ids = torch.randint(2048, (120, length), generator=torch.Generator().manual_seed(0))
    text = Text(ids[:64], ids[64:112], ids[112:114], ids[114:115], ids[115:], tuple("aabcd"))
    monkeypatch.setattr(lab, "load", lambda *_: text)
    for module in (lab, downstream):
        monkeypatch.setattr(module, "RUNS", tmp_path)
    return tmp_path / "results"


class Valley:
    """A laboratory whose students are best with a learning rate of their own, a factor of 2 lower from 10 steps on."""

    bracketed = lab.Lab.bracketed

    def __init__(self, rate):
        self.rate, self.trained_with = rate, []

    def trained(self, start, training, other):
        self.trained_with.append((training.steps, training.rate, training.seed))
        best = self.rate / 2 ** (training.steps >= 10)
        return {"rate": training.rate, "search": abs(math.log2(training.rate / best))}


def test_rates_are_bracketed_with_the_first_seed_and_taken_over():
    valley, start = Valley(4e-3), lab.Start("arm", None, {}, {})
    tuner = tuning.Tuner(valley, bracketed=20)
    assert {each["rate"] for each in tuner.train(start, 5, 0, kind="healed")} == {1e-3, 2e-3, 4e-3, 8e-3}
    assert {each["rate"] for each in tuner.train(start, 10, 0, kind="healed")} == {1e-3, 2e-3, 4e-3, 8e-3}
    assert [each["rate"] for each in tuner.train(start, 40, 0, kind="healed")] == [2e-3]
    assert [each["rate"] for each in tuner.train(start, 5, 1, kind="healed")] == [4e-3]
    assert len(valley.trained_with) == len(set(valley.trained_with)) == 10


def test_bracket_ends_where_training_does_not_help():
    tried = [each["rate"] for each in Valley(1e-12).bracketed(None, training.Training(1, 1.0, 0))]
    assert min(tried) == 1 / lab.FARTHEST and max(tried) == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("name", __main__.NAMES)
def test_experiments_run_resume_and_become_a_section(name, small, monkeypatch):
    monkeypatch.setattr(lab, "FARTHEST", 1)  # one learning rate
    monkeypatch.setattr(scalability, "BINS", {"1B": scalability.BINS["1B"]})
    monkeypatch.setattr(scalability, "SHAPES", {"Pythia-6.9B": scalability.SHAPES["Pythia-6.9B"]})
    monkeypatch.setattr(scalability, "AdditiveSearchConfig", partial(AdditiveSearchConfig, **SIZES["tiny"].additive))
    if name != "spaces":  # which tries a search
        monkeypatch.setattr(lab.Lab, "found", _found)
    arguments = [name, "--size", "tiny"]
    __main__.main(arguments)
    results = json.loads((small / f"{name}.json").read_text())
    assert results["size"]["name"] == "tiny"
    page = render.page(small)
    assert page.count("\n## ") == 1 and "nan" not in page and not re.search(r"\binf\b", page)
    monkeypatch.setattr(cache.Cache, "once", _known(cache.Cache.once))
    __main__.main(arguments)
    assert json.loads((small / f"{name}.json").read_text()) == results


def _found(self, config, make, settings, space=None, bin=lab.BIN):
    subnet = self.space.sample(random.Random(config.seed), bin)
    return {"subnet": subnet.to_dict(), "flops": 10**9, "fitness": 50.0, "evaluations": 2, "settings": settings}


def _known(once):
    def read(self, kind, settings, code, work):
        return once(self, kind, settings, code, lambda: pytest.fail(f"{kind} {settings} was done again"))

    return read
