"""FLOPs of healing a student."""

from typing import Any

from transformers import PreTrainedConfig

from ..cost.counts import flops_per_token
from ..subnet import Shape, SubnetConfig
from .parts import output_matrix, projections, writer_features


def healing_flops(config: PreTrainedConfig, subnet: SubnetConfig, report: dict[str, Any], sequence_length: int) -> int:
    """Upper estimate of the FLOPs of healing a student by `Healer`.

    Every layer of the teacher is run once, once more for principal components, and once more for each regression that
    needs its activations as targets; every layer of the student once for each regression, and once when it is healed.
    A pass is counted whole, with the output matrix. A regression takes sums of products of features and targets over
    all tokens, then a solution for each strength. Finally, the student is judged twice on held-out tokens.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): the student's.
        report (`dict`): `HealingReport.to_dict()`.
        sequence_length (`int`): tokens of a block.
    """
    settings, tokens = report["settings"], report["tokens"] + report["held_out_tokens"]
    is_principal, inputs, outputs = settings["basis"] == "principal", settings["inputs"], settings["outputs"]
    groups = len(projections(config))
    with_own_targets = groups if any(group.is_normalized for group in projections(config)) else groups - 1
    of_teacher = flops_per_token(config, sequence_length=sequence_length)
    of_student = flops_per_token(config, subnet, sequence_length=sequence_length)
    passes = (1 + is_principal + groups * inputs + with_own_targets * outputs) * of_teacher
    passes += (1 + groups * (inputs + outputs)) * of_student
    shape = subnet.shape.filled(Shape.from_config(config))
    size, channels = config.hidden_size, shape.hidden_size
    fits = []  # for each, the number of features, a constant included, and of targets
    readers = sum(len(group.readers) for group in projections(config))
    for of_layer in writer_features(config, shape):
        fits += [(features, channels) for features in of_layer] * outputs + [(channels + 1, size)] * readers * inputs
    fits += [(channels + 1, size)] * settings["head"]
    sums = sum(2 * features * (features + targets) for features, targets in fits)
    sums += is_principal * 2 * size**2 * (shape.num_hidden_layers + 1)
    solved = sum(features**3 // 3 + 4 * features**2 * targets for features, targets in fits) * len(settings["ridge"])
    return tokens * (passes + sums) + solved + 2 * report["held_out_tokens"] * of_student


def healing_flops_from_moments(config: PreTrainedConfig, subnet: SubnetConfig) -> int:
    """FLOPs of healing a student from moments of its super-network: Cholesky factors and products of matrices.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): the student's.
    """
    shape = subnet.shape.filled(Shape.from_config(config))
    size, full = config.hidden_size, writer_features(config, Shape.from_config(config))
    is_normalized = any(group.is_normalized for group in projections(config))

    def fitted(features: int) -> int:
        return features**3 // 3 + 4 * features**2 * shape.hidden_size + 2 * features * size * shape.hidden_size

    total = _reader_flops(config, shape)
    for position, groups in enumerate(writer_features(config, shape)):
        layer = subnet.layers[position]
        if is_normalized:  # each group is fitted to its own output
            total += sum(
                fitted(features) + 2 * features * size * of for features, of in zip(groups, full[layer], strict=True)
            )
            continue
        for number, features in enumerate(groups):
            total += fitted(features) + 2 * features * sum(groups[:number]) * shape.hidden_size
            if number + 1 < len(groups):
                total += 2 * features * size * sum(full[layer][: number + 1])
        if position == 0 and layer > 0 and len(groups) > 1:  # all groups together are fitted to earlier layers' output
            total += fitted(sum(groups) - len(groups) + 1)
    return total


def _reader_flops(config: PreTrainedConfig, shape: Shape) -> int:
    """FLOPs of healing the readers: each regression, its products, and folding it into its matrix."""
    channels, size, head = shape.hidden_size, config.hidden_size, output_matrix(config)
    fits, rows = (0, 0) if head is None else (1, config.vocab_size)
    for layer in range(shape.num_hidden_layers):
        for group in projections(config):
            fits += len(group.readers)
            rows += sum(weight.outputs.size(shape.of_layer(layer)) for weights in group.readers for weight in weights)
    fit = channels**3 // 3 + 4 * channels**2 * size + 6 * channels * size**2 + 2 * channels**2 * size + 2 * size**3
    return fits * fit + 2 * rows * size * channels
