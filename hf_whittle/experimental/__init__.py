"""Methods that others use and that do not pay by our measurements; their names and behavior may change."""

from ..search.algorithm import SearchConfig
from .registry import FITNESSES
from .stratified import StratifiedSearchConfig
from .surrogate_objective import SurrogateObjectiveConfig

__all__ = ["ALGORITHMS", "FITNESSES", "StratifiedSearchConfig", "SurrogateObjectiveConfig"]

ALGORITHMS: dict[str, type[SearchConfig]] = {
    config.name: config for config in (StratifiedSearchConfig, SurrogateObjectiveConfig)
}
"""Settings of every experimental search algorithm by its name, as in `search.algorithms`."""
