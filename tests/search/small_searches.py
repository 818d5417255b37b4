"""Settings with which every algorithm ends after some twenty evaluations, and a fitness for them.

python small_searches.py ALGORITHM FOLDER PAUSE
"""

import sys
import time

from fixtures_search import BIN, CONFIG

from hf_whittle import SearchSpace, experimental, search_subnets
from hf_whittle.search import algorithms

ALGORITHMS = algorithms.ALGORITHMS | experimental.ALGORITHMS
SURROGATE = {"evaluations": 20, "population_size": 8, "pool": 10, "num_offspring": 4, "num_elites": 3}
SMALL = {
    "additive": {
        "generations": 1,
        "sizes": [4, 2, 1],
        "head_options": 1,
        "neuron_options": 1,
        "channel_options": 2,
        "levels": 4,
        "answers": 3,
    },
    "evolution": {"generations": 3, "population_size": 6, "num_offspring": 5, "num_elites": 3},
    "local": {"evaluations": 20, "population_size": 6, "num_neighbors": 4, "patience": 1},
    "multi-fidelity": {"generations": 1, "sizes": [4, 2, 1], "initial": 2},
    "nsga2": {"evaluations": 20, "population_size": 6},
    "random": {"evaluations": 20, "num_draws": 6},
    "regularized-evolution": {"evaluations": 20, "population_size": 6, "tournament_size": 3, "num_offspring": 4},
    "stratified-random": {"evaluations": 20, "num_draws": 6, "strata": 2},
    "surrogate": SURROGATE,
    "surrogate-objective": {**SURROGATE, "inner_generations": 2},
}
SPACE = SearchSpace.from_config(CONFIG, "fine", layer_wise=True)


def small_config(name, **settings):
    return ALGORITHMS[name](**{**SMALL[name], "seed": 4, **settings})


class Toy:
    """A fitness without ties, another one on each share, that may take its time."""

    settings = {"name": "toy"}

    def __init__(self, pause=0.0):
        self.pause = pause

    def __call__(self, subnet, share=1.0):
        time.sleep(self.pause)
        return int(subnet.digest, 16) / 7e13 * (1 + share)


def search(name, fitness=None, bin=BIN, space=SPACE, folder=None, **settings):
    config = small_config(name, **settings)
    fitness = fitness or Toy()
    return search_subnets(None, space, bin=bin, config=config, fitness=fitness, output_dir=folder, progress=False)


if __name__ == "__main__":
    search(sys.argv[1], Toy(float(sys.argv[3])), folder=sys.argv[2])
