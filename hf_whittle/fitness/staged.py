"""A fitness that evaluates each share of the tokens by another fitness."""

from collections.abc import Mapping
from typing import Any

from ..subnet import SubnetConfig
from .base import Fitness
from .code_fingerprint import fitness_settings


class StagedFitness(Fitness):
    """Another fitness for each share of the tokens: cheap ones select candidates, an expensive one decides.

    A search on shares of the tokens, such as multi-fidelity evolution, compares candidates within a share only. Here
    each share stands for a fitness, which is evaluated on all of its own tokens. Any other search uses the last one.

    Args:
        stages (`Mapping[float, Fitness]`): the fitness of each share, in the ascending order of shares up to 1.

    Raises:
        ValueError: if the shares do not ascend from above 0 to 1.
    """

    name = "staged"

    def __init__(self, stages: Mapping[float, Fitness]):
        self.stages = dict(stages)
        shares = list(self.stages)
        if not shares or shares != sorted(shares) or shares[0] <= 0 or shares[-1] != 1:
            raise ValueError(f"the shares of stages must ascend from above 0 to 1, got {shares}")

    def _stage(self, share: float) -> Fitness:
        if share not in self.stages:
            raise ValueError(
                f"the search evaluates on a share of {share} of the tokens, the stages are for {list(self.stages)}; "
                "give them the same shares"
            )
        return self.stages[share]

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        return self._stage(share)(subnet)

    def tokens(self, share: float = 1.0) -> int:
        return self._stage(share).tokens()

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        return self._stage(share).flops(subnet)

    @property
    def preparation(self) -> dict[str, int]:
        """One-time cost of all stages; healing that several probes share is counted once."""
        stages = {id(stage): stage for stage in self.stages.values()}
        found = (getattr(stage, "healing", None) for stage in stages.values())
        shared: list[Fitness] = [healing for healing in found if healing is not None]
        parts = {**stages, **{id(healing): healing for healing in shared}}
        return {
            name: sum(part.preparation[name] for part in parts.values())
            - sum(healing.preparation[name] for healing in shared)
            for name in ("tokens", "flops")
        }

    @property
    def is_sharded(self) -> bool:
        return any(stage.is_sharded for stage in self.stages.values())

    @property
    def reads_token_ids(self) -> bool:
        return any(stage.reads_token_ids for stage in self.stages.values())

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "stages": {str(share): fitness_settings(stage) for share, stage in self.stages.items()},
        }
