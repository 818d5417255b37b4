"""FLOPs of healing a student before it is healed: strengths tried at most."""

import math
from typing import Any

from transformers import PreTrainedConfig

from ..healing.config import HealingConfig, held_out_blocks
from ..healing.cost import healing_flops
from ..healing.parts import may_change_basis, output_matrix, projections, writer_features
from ..healing.regression import HIGHEST, LOWEST, likely_ridge
from ..subnet import Shape, SubnetConfig

_STEPS_IN_ALL = 20
"""Strengths that a regression tries at most: from 1e-6 to 1e3 in steps of the square root of 10, and one beyond."""


def most_healing_flops(
    config: PreTrainedConfig, subnet: SubnetConfig, settings: HealingConfig, blocks: int, block_size: int
) -> int:
    """FLOPs of healing the student of a subnet, at most.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): the student's.
        settings (`HealingConfig`): settings.
        blocks (`int`): blocks of calibration text.
        block_size (`int`): tokens of a block.
    """
    return healing_flops(config, subnet, _report(config, subnet, settings, blocks, block_size), block_size)


def _report(
    config: PreTrainedConfig, subnet: SubnetConfig, settings: HealingConfig, blocks: int, block_size: int
) -> dict[str, Any]:
    """A report as healing writes it, with the most strengths that each regression may try."""
    held_out = held_out_blocks(blocks, settings.held_out)
    is_principal = settings.basis == "principal" and may_change_basis(config, subnet.shape.hidden_size)
    tried = len(settings.ridge) if settings.ridge else _most_tried((blocks - held_out) * block_size, config, subnet)
    return {
        "settings": vars(settings),
        "tokens": (blocks - held_out) * block_size,
        "held_out_tokens": held_out * block_size,
        "basis": "principal" if is_principal else "channels",
        "fits": [{"tried": tried}] * _number_of_fits(config, subnet, settings),
    }


def _most_tried(tokens: int, config: PreTrainedConfig, subnet: SubnetConfig) -> int:
    """Strengths that a regression may try: all upwards, or one upwards and all downwards, and the first."""
    shape = subnet.shape.filled(Shape.from_config(config))
    widest = max(shape.hidden_size + 1, *(max(groups) for groups in writer_features(config, shape)))
    first = likely_ridge(widest, tokens)
    down = int(2 * math.log10(first / LOWEST) + 1e-9)
    up = int(2 * math.log10(HIGHEST / min(first, 3 / max(1, tokens))) + 1e-9)
    return min(_STEPS_IN_ALL, 1 + max(up, down + 1))


def _number_of_fits(config: PreTrainedConfig, subnet: SubnetConfig, settings: HealingConfig) -> int:
    """Regressions of healing a student."""
    groups, layers, channels = projections(config), len(subnet.layers), subnet.shape.hidden_size
    read = 0
    if settings.inputs:
        read = layers if channels < config.hidden_size else min(subnet.layers[0], 1)
    readers = read * sum(len(group.readers) for group in groups)
    writers = layers * len(groups) if settings.outputs else 0
    return readers + writers + (settings.head and output_matrix(config) is not None)
