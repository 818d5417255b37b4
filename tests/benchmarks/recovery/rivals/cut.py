"""A student to recover, and what a rival may use for that."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hf_whittle import SubnetConfig, extract_subnet

DEPTH, WIDTH, BOTH, CUT_CHANNELS = KINDS = ("depth", "width", "both", "channels")


MASSIVE = 10.0
"""Tokens whose hidden states are this many times the median in norm have massive activations."""


@dataclass(frozen=True)
class Cut:
    """A teacher, what is kept of it, and text.

    Args:
        teacher (`PreTrainedModel`): a stock model; it is not changed.
        subnet (`SubnetConfig`): the kept layers, heads, neurons and channels.
        calibration (`torch.Tensor`): token ids, `(blocks, block_size)`.
        is_robust (`bool`): whether maps over removed layers are fitted without massive tokens.
    """

    teacher: Any
    subnet: SubnetConfig
    calibration: torch.Tensor
    is_robust: bool = False

    def tokens(self, *states: torch.Tensor) -> list[torch.Tensor]:
        """Hidden states of the tokens to fit to, `(tokens, channels)` each, from `(blocks, tokens, channels)`."""
        flat = [part.flatten(0, 1) for part in states]
        if not self.is_robust:
            return flat
        norms = [part.norm(dim=-1) for part in flat]
        kept = torch.stack([norm <= MASSIVE * norm.median() for norm in norms]).all(0)
        return [part[kept] for part in flat]

    def sliced(self) -> Any:
        """The student's weights as they are in the teacher."""
        return extract_subnet(self.teacher, self.subnet).eval()


@dataclass(frozen=True)
class Rival:
    """A method of recovery.

    Args:
        kinds (`frozenset[str]`): kinds of cuts on which it does something.
        recover (`Callable`): gives the recovered student of a cut.
        criterion (`str`): what units are chosen by, `"importance"` or `"magnitude"`.
        is_robust (`bool`): the same of the cut, which no paper here says.
    """

    kinds: frozenset[str]
    recover: Callable[[Cut], Any]
    criterion: str = "importance"
    is_robust: bool = False


def in_turn(*steps: Callable[[Cut, Any], None]) -> Callable[[Cut], Any]:
    """Slice, and then change the student's weights by one step after the other."""

    def recover(cut: Cut) -> Any:
        student = cut.sliced()
        with torch.no_grad():
            for step in steps:
                step(cut, student)
        return student

    return recover
