"""Settings of healing, and the report on it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ..checks import check_integers

HEALING_FILE = "healing.json"
BasisName = Literal["principal", "channels"]
BASES: tuple[BasisName, ...] = get_args(BasisName)


@dataclass(frozen=True)
class HealingConfig:
    """Settings of healing.

    Args:
        basis (`str`, *optional*, defaults to `"principal"`): basis of the student's hidden states: `"principal"`
            components of the teacher's, or kept `"channels"`. It is always the latter where all channels are kept or a
            norm follows attention and MLP; and with tied embeddings where norms subtract the mean, or the last one
            scales many channels unlike most others.
        inputs (`bool`, *optional*, defaults to `True`): whether to heal matrices that read hidden states, where
            channels are left out, or all layers before.
        outputs (`bool`, *optional*, defaults to `True`): whether to heal matrices that write to hidden states.
        head (`bool`, *optional*, defaults to `True`): whether to heal the output matrix, if it is not tied.
        ridge (`Sequence[float]`, *optional*): strengths to choose from for each regression, by its held-out error. By
            default, any strength is found, from three times the features per token on.
        held_out (`float`, *optional*, defaults to 0.2): share of the calibration blocks that are not fitted to;
            strengths are chosen and the student is judged by them.
        batch_size (`int`, *optional*): blocks in a forward pass; by default 4,096 tokens on a CPU, 16,384 on another
            device.
        bf16 (`bool`, *optional*, defaults to `False`): whether forward passes run their products in bfloat16. It is
            several times faster on a GPU, or on a CPU with instructions for it, and slower on any other CPU.

    Raises:
        ValueError: if a value is out of range.
    """

    basis: BasisName = "principal"
    inputs: bool = True
    outputs: bool = True
    head: bool = True
    ridge: Sequence[float] | None = None
    held_out: float = 0.2
    batch_size: int | None = None
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.basis not in BASES:
            raise ValueError(f"basis must be one of {', '.join(BASES)}, got {self.basis!r}")
        if self.ridge is not None:
            object.__setattr__(self, "ridge", tuple(self.ridge))
            if not self.ridge or not all(0 < ridge < math.inf for ridge in self.ridge):
                raise ValueError(f"ridge must have positive numbers, got {self.ridge}; leave it out to search for one")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {self.held_out}")
        if self.batch_size is not None:
            check_integers(self, {"batch_size": 1})


def held_out_blocks(blocks: int, share: float) -> int:
    """How many of some blocks of text are held out: a share of them, but at least one, and not all."""
    return min(max(1, round(share * blocks)), blocks - 1)


@dataclass(frozen=True)
class HealingReport:
    """Report on the healing of a student.

    Args:
        is_healed (`bool`): whether the healed weights were kept, because they were better on held-out text.
        perplexity_before (`float`): perplexity of the sliced student on held-out text.
        perplexity_after (`float`): perplexity of the healed student on held-out text, whether or not it was kept.
        tokens (`int`): calibration tokens fitted to.
        held_out_tokens (`int`): calibration tokens held out.
        fits (`list[dict]`): for each regression the `weights` it healed, by their names in the super-network, its
            strength `ridge` (`None` where none was better than the sliced weights), the relative squared error `before`
            and `after`, and the number of strengths `tried`.
        settings (`dict`): the `HealingConfig` as a dictionary.
        basis (`str`, *optional*): the basis of the healed weights: `"channels"` where the settings say `"principal"`
            and the basis could not be changed. An older report does not say.
    """

    is_healed: bool
    perplexity_before: float
    perplexity_after: float
    tokens: int
    held_out_tokens: int
    fits: list[dict[str, Any]] = field(default_factory=list, repr=False)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    basis: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
