"""What it costs to heal a student."""

from typing import Any

from transformers import PreTrainedConfig

from ..cost.counts import flops_per_token
from ..subnet import SubnetConfig
from .parts import projections, writer_features


def healing_flops(config: PreTrainedConfig, subnet: SubnetConfig, report: dict[str, Any], sequence_length: int) -> int:
    """FLOPs of healing a student, an estimate from above.

    Every layer of the teacher is run once, once more to find principal components, and again where it shows what
    regressions are to reach; every layer of the student once for each of them, and once when it is healed. A pass is
    counted whole, with the output matrix. The regressions take sums of products of features and targets on all tokens,
    then a solution for each strength. Lastly, the student is judged twice on held-out tokens.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): the student's.
        report (`dict`): a `HealingReport` as `to_dict` gives it.
        sequence_length (`int`): tokens of a block.
    """
    settings, tokens = report["settings"], report["tokens"] + report["held_out_tokens"]
    is_principal, inputs, outputs = settings["basis"] == "principal", settings["inputs"], settings["outputs"]
    groups = len(projections(config))
    of_teacher = flops_per_token(config, sequence_length=sequence_length)
    of_student = flops_per_token(config, subnet, sequence_length=sequence_length)
    passes = (1 + is_principal + groups * inputs + (groups - 1) * outputs) * of_teacher
    passes += (1 + groups * (inputs + outputs)) * of_student
    shape, size, channels = subnet.shape, config.hidden_size, subnet.shape.hidden_size
    fits = []  # features, a constant among them, and targets of each
    for of_layer in writer_features(config, shape):
        fits += [(features, channels) for features in of_layer] * outputs + [(channels + 1, size)] * (2 * inputs)
    fits += [(channels + 1, size)] * settings["head"]
    sums = sum(2 * features * (features + targets) for features, targets in fits)
    sums += is_principal * 2 * size**2 * (shape.num_hidden_layers + 1)
    solved = sum(features**3 // 3 + 4 * features**2 * targets for features, targets in fits) * len(settings["ridge"])
    return tokens * (passes + sums) + solved + 2 * report["held_out_tokens"] * of_student
