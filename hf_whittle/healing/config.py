"""How a student is healed, and what that did."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..checks import check_integers

HEALING_FILE = "healing.json"
BASES = ("principal", "channels")


@dataclass(frozen=True)
class HealingConfig:
    """How a student is healed.

    Args:
        basis (`str`, *optional*, defaults to `"principal"`): what the student's stream carries: the principal
            components of the teacher's, or its kept `"channels"`, as with tied embeddings it always does.
        inputs (`bool`, *optional*, defaults to `True`): whether to heal what reads the stream.
        outputs (`bool`, *optional*, defaults to `True`): whether to heal what writes to the stream.
        head (`bool`, *optional*, defaults to `True`): whether to heal the output matrix; not with tied embeddings.
        ridge (`Sequence[float]`, *optional*): strengths that each regression chooses from by held-out error.
        held_out (`float`, *optional*, defaults to 0.2): share of the calibration blocks that nothing is fitted to, by
            which strengths are chosen and the student is judged.
        batch_size (`int`, *optional*, defaults to 16): blocks at a time.

    Raises:
        ValueError: if a value is out of range.
    """

    basis: Literal["principal", "channels"] = "principal"
    inputs: bool = True
    outputs: bool = True
    head: bool = True
    ridge: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1)
    held_out: float = 0.2
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.basis not in BASES:
            raise ValueError(f"basis must be one of {', '.join(BASES)}, got {self.basis!r}")
        object.__setattr__(self, "ridge", tuple(self.ridge))
        if not self.ridge or not all(0 < ridge < math.inf for ridge in self.ridge):
            raise ValueError(f"ridge must have positive numbers, got {self.ridge}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {self.held_out}")
        check_integers(self, {"batch_size": 1})


@dataclass(frozen=True)
class HealingReport:
    """What healing did.

    Args:
        is_healed (`bool`): whether the healed weights were kept, for they were better on held-out text.
        perplexity_before (`float`): on the held-out text, as sliced.
        perplexity_after (`float`): on the held-out text, healed, whether or not that was kept.
        tokens (`int`): calibration tokens fitted to.
        held_out_tokens (`int`): those chosen by and judged on.
        fits (`list[dict]`): for every regression its layer in the super-network, what it healed, the strength (`None`
            where none was better than the sliced weights) and the relative squared error before and after.
        settings (`dict`): the `HealingConfig`.
    """

    is_healed: bool
    perplexity_before: float
    perplexity_after: float
    tokens: int
    held_out_tokens: int
    fits: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
