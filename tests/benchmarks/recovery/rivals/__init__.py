"""Rivals in the recovery of cut models without training, each written from its paper, and ours.

Some tokens, mostly the first of a text, have massive activations: in SmolLM2-135M hidden states with a hundred times
the norm of others, which rule the least squares of a map over removed layers. Rivals called robust leave such tokens
out of what they fit, which their papers do not say; the plain ones are as published.
"""

from dataclasses import replace
from typing import Any

from hf_whittle import extract_subnet

from . import flap, ghosted_layers, grail, linear_patch, replaceme, slicegpt
from .cut import BOTH, CUT_CHANNELS, DEPTH, KINDS, WIDTH, Cut, Rival, in_turn


def _heal(cut: Cut) -> Any:
    return extract_subnet(
        cut.teacher, cut.subnet, heal=True, calibration_dataset=cut.calibration, progress=False
    ).eval()


_ALL, _NARROWER, _SHALLOWER = frozenset(KINDS), frozenset((WIDTH, BOTH)), frozenset((DEPTH, BOTH))

RIVALS = {
    "magnitude": Rival(_ALL, in_turn(), criterion="magnitude"),
    "sliced": Rival(_ALL, in_turn()),
    "flap": Rival(_NARROWER, in_turn(flap.compensate)),
    "grail": Rival(_NARROWER, in_turn(grail.compensate)),
    "linear_patch": Rival(_SHALLOWER, in_turn(linear_patch.patch)),
    "ghosted_layers": Rival(_SHALLOWER, in_turn(ghosted_layers.replace)),
    "replaceme": Rival(_SHALLOWER, in_turn(replaceme.replace)),
    "ghosted_layers, then grail": Rival(frozenset((BOTH,)), in_turn(ghosted_layers.replace, grail.compensate)),
    "grail, then replaceme": Rival(frozenset((BOTH,)), in_turn(grail.compensate, replaceme.replace)),
    "slicegpt": Rival(frozenset((CUT_CHANNELS,)), slicegpt.recover),
    "slicegpt of equal size": Rival(frozenset((CUT_CHANNELS,)), slicegpt.recover_at_size),
    "ours": Rival(_ALL, _heal),
}
"""By name; of two papers in turn, each for a kind of its own, for students that are cut both ways."""

_FITTED = [name for name in RIVALS if "ghosted_layers" in name or "replaceme" in name]
RIVALS |= {f"{name}, robust": replace(RIVALS[name], is_robust=True) for name in _FITTED}
