"""FLAP's bias compensation (arXiv 2312.11983).

The mean of what removed inputs of an output projection add becomes its bias: `b = W[:, removed] @ mean(x[removed])`.
Means are those of the whole teacher on calibration text, as in the paper. It adds a bias of a value per channel to
every output projection that has none. FLAP's own choice of units, by the fluctuation of their activations, is not used
here: all rivals recover the same students.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import nn

from hf_whittle.models.elastic import take
from hf_whittle.models.rows import KeptRows

from ..passes import batches, module_of, writers
from .cut import Cut


def compensate(cut: Cut, student: Any) -> None:
    """Add the biases to a student."""
    config, layers = cut.teacher.config, cut.subnet.layers
    modules = {f"{w.name} {i}": module_of(cut.teacher, w, i) for w, i in product(writers(config), layers)}
    means, rows = mean_inputs(cut, modules), KeptRows(config, cut.subnet)
    for weight, (position, layer) in product(writers(config), enumerate(layers)):
        name = f"{weight.name} {layer}"
        removed = means[name].clone()
        removed[take(torch.arange(len(removed)), 0, rows(weight.inputs, position))] = 0
        linear, bias = module_of(student, weight, position), modules[name].weight @ removed
        linear.bias = nn.Parameter(bias if linear.bias is None else linear.bias + bias)


def mean_inputs(cut: Cut, modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Mean over tokens of what modules of the teacher read."""
    sums = dict.fromkeys(modules, torch.zeros(()))
    for seen in batches(cut.teacher, cut.calibration, modules):
        sums = {name: total + seen[name].inputs.sum((0, 1)) for name, total in sums.items()}
    return {name: total / cut.calibration.numel() for name, total in sums.items()}
