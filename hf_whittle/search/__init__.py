"""The search algorithms, one a file, behind the interface of `algorithm.py`."""

from .algorithm import SearchConfig
from .algorithms.additive import AdditiveSearchConfig
from .algorithms.evolution import EvolutionConfig
from .algorithms.local import LocalSearchConfig
from .algorithms.multi_fidelity import MultiFidelityConfig
from .algorithms.nsga2 import NSGA2Config
from .algorithms.random import RandomSearchConfig
from .algorithms.regularized import RegularizedEvolutionConfig
from .algorithms.surrogate import SurrogateSearchConfig

ALGORITHMS: dict[str, type[SearchConfig]] = {
    config.name: config
    for config in (
        AdditiveSearchConfig,
        EvolutionConfig,
        LocalSearchConfig,
        MultiFidelityConfig,
        NSGA2Config,
        RandomSearchConfig,
        RegularizedEvolutionConfig,
        SurrogateSearchConfig,
    )
}
"""The settings of every algorithm by its name."""
