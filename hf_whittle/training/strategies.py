"""Strategies of super-network training: the subnets that are trained in a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from ..cost.bins import Bin, ParameterBin
from ..cost.polynomial import parameter_polynomial
from ..space.search_space import SearchSpace
from ..subnet import SubnetConfig

FULL = None
"""Stands for the full network among the subnets of a step."""

Passes = tuple[SubnetConfig | None, ...]


@dataclass(frozen=True)
class StepDraw:
    """Input of a strategy.

    Args:
        step (`int`): number of optimizer steps before this one.
        progress (`float`): 0 at the first step of the training, 1 at the last.
        rng (`random.Random`): random number generator of this step alone.
        smallest (`SubnetConfig`): the smallest subnet.
        random (`Callable`): draws the random subnets.
    """

    step: int
    progress: float
    rng: Random
    smallest: SubnetConfig
    random: Callable[[], Passes]


STRATEGIES: dict[str, Callable[[StepDraw], Passes]] = {
    "standard": lambda draw: (FULL,),
    "random": lambda draw: draw.random(),
    "random-linear": lambda draw: draw.random() if draw.rng.random() < draw.progress else (FULL,),
    "sandwich": lambda draw: (FULL, draw.smallest, *draw.random()),
    "ats": lambda draw: (FULL,) if draw.step % 2 else draw.random(),
}
"""Networks that each strategy trains in a step, in this order."""


def smallest_subnet(space: SearchSpace, bins: Sequence[Bin] = ()) -> SubnetConfig:
    """Find the subnet with the least size in every dimension; with bins, grow it just enough to lie in one of them.

    Args:
        space (`SearchSpace`): the space; if it is fine-grained, the kept entries are drawn once, with a fixed seed.
        bins (`Sequence[Bin]`, *optional*): the result is the subnet with the fewest parameters over all bins.

    Raises:
        BinError: if no subnet of the space lies in a bin.
    """
    parameters = parameter_polynomial(space.config)
    least, _ = space.reachable_costs(parameters)
    smallest = space.sample(Random(0), ParameterBin(least, least))
    grown = [space.crossover(smallest, smallest, Random(0), bin) for bin in bins]
    return min(grown or [smallest], key=parameters)
