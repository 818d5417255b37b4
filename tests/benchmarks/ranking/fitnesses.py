"""The fitnesses of a ranking study, by name; each is made when it is first asked for."""

from collections.abc import Callable
from functools import partial
from typing import Any

from hf_whittle import KLDivergence, SubnetConfig
from hf_whittle.cost import num_parameters
from hf_whittle.evaluation import cross_entropy, perplexity
from hf_whittle.fitness.base import Fitness
from hf_whittle.fitness.healed import HealedPerplexity
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.fitness.probe import ProbeConfig

from .gradient_trace import GradientTrace
from .settings import Material, Setting
from .training import Training, bfloat16

HEALING = "weighted"
"""Name of the healing at hand in names of fitnesses and starts: change it with the implementation, so that the rows of
another one are kept beside the new ones."""


class ParameterCount(Fitness):
    """Negative number of parameters: the control."""

    name = "parameters"

    def __init__(self, config: Any):
        self.config = config

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        return -num_parameters(self.config, subnet)

    def tokens(self, share: float = 1.0) -> int:
        return 0

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        return 0

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": self.name}


class InBfloat16(Fitness):
    """A fitness whose matrix products run in bfloat16."""

    def __init__(self, fitness: Fitness):
        self.fitness = fitness
        self.name = f"{fitness.name} in bfloat16"  # type: ignore[misc]

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        with bfloat16(True):
            return self.fitness(subnet, share)

    def tokens(self, share: float = 1.0) -> int:
        return self.fitness.tokens(share)

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        return self.fitness.flops(subnet, share)

    @property
    def preparation(self) -> dict[str, int]:
        return self.fitness.preparation

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.fitness.settings, "name": self.name}


class HealedInBfloat16(HealedPerplexity):
    """Healed perplexity that is healed as ever, and judged in bfloat16."""

    name = "healed perplexity in bfloat16"

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        student = self.student(subnet)
        with bfloat16(True):
            return perplexity(cross_entropy(student, self.input_ids[self.rows(share)], self.batch_size))


def sliced_perplexity(setting: Setting, material: Material, blocks: Any) -> Fitness:
    fitness = Perplexity(material.supernet, blocks, setting.eval_batch_size)
    return InBfloat16(fitness) if setting.autocast else fitness


def healed_perplexity(setting: Setting, material: Material, tokens: int, blocks: Any) -> HealedPerplexity:
    kind = HealedInBfloat16 if setting.autocast else HealedPerplexity
    calibration = material.calibration[: tokens // material.calibration.shape[1]]
    return kind(material.supernet, blocks, calibration, setting.eval_batch_size)


def fitnesses_of(
    setting: Setting, material: Material, rate: float, healing: Callable[[int], HealedPerplexity]
) -> dict[str, Callable[[], Fitness]]:
    """Makers of the fitnesses to compare, all judged on the same blocks.

    Args:
        setting, material: the study.
        rate (`float`): learning rate of probes.
        healing (`Callable`): healed perplexity by its calibration tokens.
    """
    supernet, blocks, size = material.supernet, material.fitness, setting.eval_batch_size

    def divergence() -> Fitness:
        fitness = KLDivergence(supernet, blocks, size)  # its targets are in float16, which autocast does not take
        return InBfloat16(fitness) if setting.autocast else fitness

    def probe(steps: int, healed: bool) -> Fitness:
        config = ProbeConfig(steps=steps, batch_size=setting.batch_size, learning_rate=rate)
        start = healing(max(setting.healing_tokens)) if healed else None
        return Training(supernet, material.calibration, blocks, config, healing=start, autocast=setting.autocast)

    made: dict[str, Callable[[], Fitness]] = {
        "parameters": lambda: ParameterCount(supernet.config),
        "perplexity": lambda: sliced_perplexity(setting, material, blocks),
        "KL divergence": divergence,
        "gradient trace": lambda: GradientTrace(supernet, material.calibration[:16], 4, autocast=setting.autocast),
    }
    for steps in setting.probes:
        made[f"probe of {steps} steps, sliced"] = partial(probe, steps, False)
    for tokens in setting.healing_tokens:
        made[f"healed, {tokens:,} tokens, {HEALING}"] = partial(healing, tokens)
    for steps in setting.probes if setting.healing_tokens else ():
        made[f"probe of {steps} steps, healed, {HEALING}"] = partial(probe, steps, True)
    return made
