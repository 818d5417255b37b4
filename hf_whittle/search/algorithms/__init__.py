"""Search algorithms with the interface of `search.algorithm`."""

from ..algorithm import SearchConfig
from .additive import AdditiveSearchConfig
from .evolution import EvolutionConfig
from .local import LocalSearchConfig
from .multi_fidelity import MultiFidelityConfig
from .nsga2 import NSGA2Config
from .random import RandomSearchConfig
from .regularized import RegularizedEvolutionConfig
from .surrogate import SurrogateSearchConfig

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
"""Settings of every algorithm by its name; `experimental.ALGORITHMS` has more."""
