"""The vocabulary against layers and widths: bits per byte of students of equal parameters, cut, healed and distilled.

Students keep all tokens or the first of `rank_tokens`; what a vocabulary saves, layers and widths keep. All read the
same bytes of text, each in tokens of its own, in healing, in distillation and when they are judged.

- `demo`: the demo's teacher in bins of its parameters. An additive search by bits per byte finds the subnet of each
  bin and vocabulary. Text is the Python standard library, split by module.
- `pretrained`: a pretrained model, which loses a run of layers, chosen as in the recovery benchmark, whose environment
  variables name the model, calibration text, on which students are also distilled, and test text.

One learning rate and one seed for all. Every row is kept in `runs/`, so that an interrupted benchmark goes on.
"""

from typing import Any

import torch

from . import demo, pretrained


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    return {"demo": demo.measure(), "pretrained": pretrained.measure()}
