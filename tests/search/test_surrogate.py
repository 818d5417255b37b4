"""Search with a surrogate: how well it ranks, what its predictions and earlier searches are worth."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from fixtures_search import BIN, CONFIG
from fixtures_surrogates import SPACE, drawn, toy_fitness
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from hf_whittle import ParameterBin, SearchSpace, SurrogateSearchConfig, search_subnets
from hf_whittle.errors import OtherSearchError, OutputError
from hf_whittle.search.algorithms import RandomSearchConfig
from hf_whittle.search.algorithms.surrogate import Surrogate, scaled

DEEPER = SearchSpace.from_config(
    SimpleNamespace(**{**vars(CONFIG), "num_hidden_layers": 10}), "coarse", layer_wise=True
)
MODELS = ["random-forest", "gradient-boosting"]
each_model = pytest.mark.parametrize("model", MODELS)


def deeper_fitness(subnet):
    return toy_fitness(subnet, 10)


def search(fitness=toy_fitness, bin=BIN, space=SPACE, folder=None, **settings):
    config = SurrogateSearchConfig(
        **{"evaluations": 70, "population_size": 30, "pool": 60, "num_offspring": 10} | settings
    )
    return search_subnets(None, space, bin=bin, config=config, fitness=fitness, output_dir=folder, progress=False)


def random_search(fitness, bin, space, folder, evaluations=150, seed=9):
    config = RandomSearchConfig(evaluations=evaluations, seed=seed)
    return search_subnets(None, space, bin=bin, config=config, fitness=fitness, output_dir=folder, progress=False)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Folders of random searches of the same task in another bin, and of super-networks of other sizes."""
    folder = tmp_path_factory.mktemp("archives")
    random_search(toy_fitness, ParameterBin(24_000, 28_000), SPACE, folder / "another bin")
    random_search(deeper_fitness, ParameterBin(30_000, 40_000), DEEPER, folder / "another depth")
    return folder


# Targets


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.inf), min_size=1, max_size=30))
def test_scaled_fitness_is_in_order_and_between_0_and_1(fitness):
    values = scaled(np.array(fitness))
    assert values.min() >= 0 and values.max() <= 1
    in_order = values[np.argsort(fitness)]
    assert (np.diff(in_order) >= 0).all()


@pytest.mark.parametrize(
    ("fitness", "expected"),
    [
        ([1.0, 3.0, 8.0], [0, math.log(3) / math.log(8), 1]),
        ([8.0, 1.0, 3.0], [1, 0, math.log(3) / math.log(8)]),
        ([-7.0, -5.0, 0.0], [0, math.log(3) / math.log(8), 1]),
        ([1.0, math.inf, 3.0, 8.0], [0, 1, math.log(3) / math.log(8), 1]),
        ([5.0, 5.0, 5.0], [0, 0, 0]),
        ([5.0, math.inf], [0, 0]),
        ([math.inf, math.inf], [1, 1]),
        ([-2.0], [0]),
    ],
    ids=["ascending", "any order", "negative", "infinite", "equal", "one finite", "none finite", "single"],
)
def test_scaled_fitness_is_that_worked_out_by_hand(fitness, expected):
    np.testing.assert_allclose(scaled(np.array(fitness)), expected, rtol=1e-12)


def test_scaled_perplexity_of_any_size_is_finite():
    assert scaled(np.array([1.0, 30.0, math.exp(700), math.inf])).tolist()[2:] == [1, 1]


# Predictions


def tau(surrogate, subnets, fitness=toy_fitness):
    predicted = surrogate.predict(surrogate.describe(subnets))
    return kendalltau(predicted, [fitness(subnet) for subnet in subnets]).statistic


@pytest.mark.slow
@each_model
@pytest.mark.parametrize("granularity", ["coarse", "fine"])
def test_surrogate_ranks_subnets_it_has_not_seen(model, granularity):
    space = SearchSpace.from_config(CONFIG, granularity, layer_wise=True)
    surrogate, seen = Surrogate(space, BIN, model), drawn(200, 0, space)
    assert surrogate.fit(surrogate.describe(seen), [toy_fitness(subnet) for subnet in seen])
    unseen = [subnet for subnet in drawn(200, 1, space) if subnet not in set(seen)]
    assert len(unseen) > 150
    assert tau(surrogate, unseen) > 0.5


@pytest.mark.slow
@each_model
def test_surrogate_ranks_where_some_fitness_is_infinite(model):
    surrogate, seen = Surrogate(SPACE, BIN, model), drawn(200, 0)
    fitness = [math.inf if toy_fitness(subnet) > 2.2 else toy_fitness(subnet) for subnet in seen]
    assert 5 < fitness.count(math.inf) < 100
    surrogate.fit(surrogate.describe(seen), fitness)
    assert tau(surrogate, drawn(100, 1)) > 0.3


def test_surrogate_without_anything_to_fit_on_says_so():
    surrogate = Surrogate(SPACE, BIN)
    assert not surrogate.fit()
    assert not surrogate.fit(np.zeros((0, 5)), [])


# Search


@pytest.mark.slow
def test_search_beats_as_many_random_draws():
    found = search(model="gradient-boosting")
    assert len(found.evaluations) == 70
    by_chance = [min(map(toy_fitness, drawn(70, seed))) for seed in range(5)]
    assert found.best_evaluation.fitness < np.median(by_chance)


@pytest.mark.slow
def test_later_batches_are_better_than_the_first():
    fitness = [evaluation.fitness for evaluation in search().evaluations]
    assert np.median(fitness[30:]) < np.quantile(fitness[:30], 0.1)


@pytest.mark.parametrize("granularity", ["coarse", "fine"])
@pytest.mark.parametrize("layer_wise", [False, True])
def test_every_candidate_is_new_and_lies_in_the_bin(granularity, layer_wise):
    space = SearchSpace.from_config(CONFIG, granularity, layer_wise=layer_wise)
    subnets = [e.subnet for e in search(space=space, evaluations=50).evaluations]
    assert len(set(subnets)) == len(subnets) == 50
    assert all(space.contains(subnet) and BIN.contains(CONFIG, subnet) for subnet in subnets)


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, [30, 10, 10, 10, 10]),
        ({"evaluations": 37}, [30, 7]),
        ({"evaluations": 12}, [12]),
        ({"population_size": 1, "evaluations": 25}, [1, 10, 10, 4]),
    ],
)
def test_batches_have_the_sizes_asked_for(settings, sizes):
    generations = [evaluation.generation for evaluation in search(**settings).evaluations]
    assert [generations.count(number) for number in range(len(sizes))] == sizes


def test_search_ends_where_the_space_does():
    space = SearchSpace.from_config(
        CONFIG,
        hidden_size=range(8, 33, 8),
        num_hidden_layers=range(1, 4),
        num_attention_heads=range(2, 3),
        intermediate_size=range(8, 9),
    )
    found = search(space=space, bin=ParameterBin(0, 1e9), population_size=4, num_offspring=4, pool=4)
    assert len({evaluation.subnet for evaluation in found.evaluations}) == len(found.evaluations) == 12


def test_search_goes_on_where_every_fitness_is_infinite():
    assert len(search(lambda subnet: math.nan).evaluations) == 70


@pytest.mark.slow
@each_model
def test_same_seed_gives_the_same_search_and_another_one_another(model):
    settings = {"model": model, "evaluations": 50}
    first = search(**settings).evaluations
    assert search(**settings).evaluations == first
    assert search(**settings, seed=1).evaluations != first


class Counted:
    """The toy fitness, which stops at one evaluation."""

    settings = {"name": "toy"}

    def __init__(self, stop_at=None):
        self.asked, self.stop_at = 0, stop_at

    def __call__(self, subnet):
        if self.asked == self.stop_at:
            raise KeyboardInterrupt
        self.asked += 1
        return toy_fitness(subnet)


@pytest.mark.slow
def test_search_that_was_interrupted_goes_on_to_the_same_bytes(archives, tmp_path):
    settings = {"evaluations": 50, "archives": [str(archives / "another bin")]}
    search(Counted(), folder=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        search(Counted(stop_at=43), folder=tmp_path / "twice", **settings)
    again = Counted()
    search(again, folder=tmp_path / "twice", **settings)
    assert again.asked == 7
    for name in ("candidates.jsonl", "search.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_several_bins_learn_from_each_other():
    bins = [BIN, ParameterBin(21_000, 24_000)]
    found = search(bin=bins)
    for index in range(2):
        assert len(found.in_bin(index).evaluations) >= 70
        assert found.in_bin(index).best_evaluation.fitness < min(map(toy_fitness, drawn(70, 0, bin=bins[index])))


# Archives of earlier searches


def first_batch(**settings):
    evaluations = search(evaluations=30, **settings).evaluations
    return np.mean([evaluation.fitness for evaluation in evaluations])


@pytest.mark.slow
@each_model
@pytest.mark.parametrize(
    "names", [["another bin"], ["another depth"], ["another bin", "another depth"]], ids=" and ".join
)
def test_first_batch_after_an_earlier_search_is_better_than_draws(archives, model, names):
    folders = [str(archives / name) for name in names]
    assert first_batch(model=model, archives=folders) < 0.9 * first_batch(model=model)


@pytest.mark.slow
@each_model
@pytest.mark.parametrize("name", ["another bin", "another depth"])
def test_surrogate_of_an_archive_alone_ranks_subnets(archives, model, name):
    found = search(evaluations=1, archives=[str(archives / name)])
    assert found.settings["algorithm"]["archives"] == [str(archives / name)]
    surrogate = Surrogate(SPACE, BIN, model, archives=[type(found).load(archives / name)])
    assert surrogate.fit()
    assert tau(surrogate, drawn(200, 1)) > 0.4


@pytest.mark.slow
def test_scale_of_an_archive_does_not_matter(archives, tmp_path):
    def read_twice(folder):
        return first_batch(archives=[str(folder)])

    random_search(lambda subnet: 0.001 * toy_fitness(subnet) - 7, ParameterBin(24_000, 28_000), SPACE, tmp_path)
    assert read_twice(tmp_path) < 0.9 * first_batch()
    assert read_twice(archives / "another bin") < 0.9 * first_batch()


@pytest.mark.slow
def test_candidates_of_an_archive_count_only_on_all_tokens_and_in_a_bin(archives, tmp_path):
    folder = archives / "another bin"
    lines = (folder / "candidates.jsonl").read_text().splitlines()
    wrong = [{**json.loads(line), "fitness": -json.loads(line)["fitness"]} for line in lines]
    lines += [json.dumps({**row, "share": 0.5}) for row in wrong] + [json.dumps({**row, "bins": []}) for row in wrong]
    (tmp_path / "candidates.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "search.json").write_bytes((folder / "search.json").read_bytes())
    first, second = (search(evaluations=30, archives=[str(path)]).evaluations for path in (folder, tmp_path))
    assert first == second


LLAMA = SimpleNamespace(
    model_type="llama", vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, intermediate_size=64, tie_word_embeddings=False, attention_bias=False,
    mlp_bias=False,
)  # fmt: skip
LLAMA_SPACE = SearchSpace.from_config(LLAMA, "fine", layer_wise=True, head_dim=range(2, 9, 2))


def of_llama(subnet):
    """Prefers wide models with few channels in a head."""
    shape = subnet.shape
    return math.exp(2 - shape.hidden_size / 16 + shape.head_dim / 8 - sum(shape.intermediate_size) / 256)


@pytest.mark.slow
def test_search_learns_from_one_in_another_super_network_of_the_architecture(tmp_path):
    smaller = SimpleNamespace(**{**vars(LLAMA), "hidden_size": 16, "num_hidden_layers": 3})
    space = SearchSpace.from_config(smaller, "fine", layer_wise=True, head_dim=range(2, 9, 2))
    random_search(of_llama, ParameterBin(0, 1e9), space, tmp_path)
    how = {"fitness": of_llama, "space": LLAMA_SPACE, "bin": ParameterBin(0, 1e9)}
    assert first_batch(**how, archives=[str(tmp_path)]) < first_batch(**how)


def test_archive_has_the_sizes_that_archives_of_older_versions_have(archives):
    folder = archives / "another bin"
    search_file = json.loads((folder / "search.json").read_text())
    assert set(search_file["settings"]["space"]["supernet"]) == {
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
    }  # fmt: skip


def test_archive_of_another_architecture_is_an_error(archives):
    message = (
        "an archive's subnets keep hidden_size, num_attention_heads, intermediate_size, those of this space "
        "hidden_size, intermediate_size, num_key_value_heads; give archives"
    )
    with pytest.raises(OtherSearchError, match=message):
        search(of_llama, ParameterBin(0, 1e9), LLAMA_SPACE, archives=[str(archives / "another bin")])


def test_archive_without_a_search_is_an_error(tmp_path):
    message = f"{tmp_path / 'missing'} holds no search: search.json is missing"
    with pytest.raises(OutputError, match=re.escape(message)):
        search(archives=[str(tmp_path / "missing")])


def test_archive_of_a_search_that_found_nothing_yet_is_as_none(tmp_path):
    def stop(subnet):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        random_search(stop, BIN, SPACE, tmp_path)
    assert search(evaluations=30, archives=[str(tmp_path)]).evaluations == search(evaluations=30).evaluations


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluations": 0}, "evaluations must be at least 1, got 0"),
        ({"pool": 9, "num_offspring": 10}, "pool must be at least num_offspring, 10, got 9"),
        ({"model": "linear"}, "model must be one of random-forest, gradient-boosting, got 'linear'"),
        ({"mutation_rate": 1.5}, "mutation_rate must lie between 0 and 1, got 1.5"),
    ],
)
def test_setting_out_of_range_is_an_error(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SurrogateSearchConfig(**settings)
