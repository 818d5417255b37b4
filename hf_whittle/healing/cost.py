"""FLOPs of healing a student."""

from typing import Any

from transformers import PreTrainedConfig

from ..architectures.dimensions import NEURONS, VOCABULARY
from ..cost.counts import flops_per_token
from ..subnet import Shape, SubnetConfig
from .parts import absorbs, layer_after, may_change_basis, output_matrix, projections, writer_features
from .symmetric import SymmetricSums


def healing_flops(config: PreTrainedConfig, subnet: SubnetConfig, report: dict[str, Any], sequence_length: int) -> int:
    """Upper estimate of the FLOPs of healing a student by `Healer`.

    Every layer of the teacher is run once, and once more for principal components. Teacher and student are run again
    up to the readers and writers of each group that is healed. A regression takes sums of products of features and
    targets over all tokens, then a solution and its held-out error for each strength that is tried. Finally, slice and
    student are judged on held-out tokens.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): the student's.
        report (`dict`): `HealingReport.to_dict()`.
        sequence_length (`int`): tokens of a block.
    """
    settings, tokens = report["settings"], report["tokens"] + report["held_out_tokens"]
    is_principal, inputs, outputs = report["basis"] == "principal", settings["inputs"], settings["outputs"]
    groups = projections(config)
    is_normalized = not absorbs(config)
    both = SubnetConfig.full(config).with_layers(subnet.layers), subnet
    of_teacher, of_student = (_until_groups(config, each, len(groups), sequence_length) for each in both)
    whole = _until_groups(config, SubnetConfig.full(config), len(groups), sequence_length)[-1]
    shape = subnet.shape.filled(Shape.from_config(config))
    size, channels = config.hidden_size, shape.hidden_size
    read = [subnet.layers[position] for position in _read(config, shape, subnet.layers[0])] if inputs else []
    of_readers = [_until_groups(config, each.with_layers(read), len(groups), sequence_length) for each in both if read]
    head = settings["head"] and output_matrix(config) is not None
    passes = (1 + is_principal) * whole
    passes += (not outputs or is_normalized) * of_student[-1]
    for number in range(len(groups)):
        passes += sum(of[number] for of in of_readers) + outputs * of_student[number + 1]
        passes += outputs * (is_normalized or number + 1 < len(groups)) * of_teacher[number + 1]
    fits = []  # for each in the report's order, the number of features, a constant included, and of targets
    for layer, of_layer in zip(subnet.layers, writer_features(config, shape), strict=True):
        for group, features in zip(groups, of_layer, strict=True):
            fits += [(channels + 1, size)] * (layer in read) * len(group.readers)
            fits += [(features, channels)] * outputs
    fits += [(channels + 1, size)] * head
    sums = sum(2 * (SymmetricSums.numbers(features) + features * targets) for features, targets in fits)
    sums += sum(2 * features[-1] * channels for features in writer_features(config, shape)) * outputs  # what is written
    sums += is_principal * 2 * size**2 * (shape.num_hidden_layers + 1)
    sums += 2 * size * channels * shape.num_hidden_layers * outputs * len(groups)  # the teacher's states in the basis
    solved = _reader_flops(config, shape, subnet.layers[0], head) if read or head else 0
    solved += is_principal * _basis_flops(config, shape)
    for (features, targets), fit in zip(fits, report["fits"], strict=True):
        solved += fit["tried"] * (features**3 // 3 + 6 * features**2 * targets) + 2 * features**2 * targets
    of_whole = flops_per_token(config, subnet, sequence_length=sequence_length)
    return tokens * (passes + sums) + solved + 2 * report["held_out_tokens"] * of_whole


def _until_groups(config: PreTrainedConfig, subnet: SubnetConfig, groups: int, sequence_length: int) -> list[int]:
    """FLOPs per token of the layers of a model until each group of projections has read its inputs, and at the end."""
    shape = subnet.shape.filled(Shape.from_config(config))
    head = 2 * shape.size(VOCABULARY) * shape.hidden_size

    def layers(subnet: SubnetConfig) -> int:
        return flops_per_token(config, subnet, sequence_length=sequence_length) - head

    attention = layers(subnet.replaced({NEURONS: 1}))
    return [0, attention, layers(subnet)] if groups > 1 else [attention, layers(subnet)]


def healing_flops_from_moments(config: PreTrainedConfig, subnet: SubnetConfig, tokens: int, max_gap: int) -> int:
    """Upper estimate of the FLOPs of healing a student from moments: Cholesky factors and products of matrices.

    A change of basis is counted wherever the configuration allows it, though the last norm before a tied head may not.
    Predictions over longer gaps than `max_gap` are counted by `prediction_flops`.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): the student's.
        tokens (`int`): tokens of the moments.
        max_gap (`int`): largest gap between kept layers whose moments are exact.
    """
    shape = subnet.shape.filled(Shape.from_config(config))
    size, full = config.hidden_size, writer_features(config, Shape.from_config(config))
    is_normalized = not absorbs(config)

    def fitted(features: int) -> int:
        return features**3 // 3 + 4 * features**2 * shape.hidden_size + 2 * features * size * shape.hidden_size

    head = output_matrix(config) is not None and shape.hidden_size < size
    total = _reader_flops(config, shape, subnet.layers[0], head)
    total += may_change_basis(config, shape.hidden_size) * _basis_flops(config, shape)
    for position, groups in enumerate(writer_features(config, shape)):
        layer, every = subnet.layers[position], full[subnet.layers[position]]
        if is_normalized:  # each group is fitted to its own output
            total += sum(fitted(own) + 2 * own * size * of for own, of in zip(groups, every, strict=True))
            continue
        gap = layer_after(subnet, position, config.num_hidden_layers) - layer
        for number, features in enumerate(groups):
            total += fitted(features) + 2 * features * sum(groups[:number]) * shape.hidden_size
            if number + 1 < len(groups) or min(gap, max_gap) == 1:
                total += 2 * features * size * sum(every[: number + 1])
        if gap > max_gap:
            total += 2 * groups[-1] * size * (size + 1)
        if position == 0 and layer > 0:
            total += tokens * _from_embedding(config, layer, sum(every))
            if len(groups) > 1:  # all groups together are fitted to earlier layers' output
                total += fitted(sum(groups) - len(groups) + 1)
    return total


def prediction_flops(config: PreTrainedConfig, tokens: int, max_gap: int) -> int:
    """FLOPs of all predictions of hidden states over gaps longer than `max_gap`, of which a search needs some, once.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        tokens (`int`): tokens of the moments.
        max_gap (`int`): largest gap between kept layers whose moments are exact.
    """
    if not absorbs(config):
        return 0
    size, starts = config.hidden_size, max(0, config.num_hidden_layers - max_gap)
    one = tokens * 2 * (SymmetricSums.numbers(size + 1) + size * (size + 1)) + size**3 // 3 + 4 * size**3
    return starts * (starts + 1) // 2 * one


def _from_embedding(config: PreTrainedConfig, layer: int, features: int) -> int:
    """FLOPs per token of the moments of a first kept layer with the embedding."""
    alone = SubnetConfig.full(config).with_layers([layer])
    norms = len({weights[0].norm for group in projections(config) for weights in group.readers})
    run = _until_groups(config, alone, 1, 1)[-1]
    return run + 2 * config.hidden_size * features + norms * 2 * (config.hidden_size + 1) ** 2


def _read(config: PreTrainedConfig, shape: Shape, first: int) -> range:
    """Positions of layers whose readers are healed: all if channels are left out, the first if earlier layers are."""
    return range(shape.num_hidden_layers) if shape.hidden_size < config.hidden_size else range(min(first, 1))


def _basis_flops(config: PreTrainedConfig, shape: Shape) -> int:
    """FLOPs of a change of basis: an eigendecomposition, and the embedding and the writers in the new basis."""
    size, channels = config.hidden_size, shape.hidden_size
    rows = shape.size(VOCABULARY) + sum(sum(features) for features in writer_features(config, shape))
    return 9 * size**3 + 2 * rows * size * channels


def _reader_flops(config: PreTrainedConfig, shape: Shape, first: int, head: bool) -> int:
    """FLOPs of healing the readers: each regression, its products, and folding it into its matrix.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        shape (`Shape`): the student's.
        first (`int`): its first layer; readers of others are healed only if channels are left out.
        head (`bool`): whether the output matrix is healed.
    """
    channels, size = shape.hidden_size, config.hidden_size
    fits, rows = (1, shape.size(VOCABULARY)) if head else (0, 0)
    for layer in _read(config, shape, first):
        for group in projections(config):
            fits += len(group.readers)
            rows += sum(weight.outputs.size(shape.of_layer(layer)) for weights in group.readers for weight in weights)
    fit = channels**3 // 3 + 4 * channels**2 * size + 6 * channels * size**2 + 2 * channels**2 * size + 2 * size**3
    return fits * fit + 2 * rows * size * channels
