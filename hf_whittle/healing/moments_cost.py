"""Moments that are gathered of a super-network, and their memory."""

from typing import TYPE_CHECKING

from ..errors import WhittleError
from ..subnet import Shape
from .parts import absorbs, head_matrix, projections, writer_features
from .symmetric import SymmetricSums

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ACTIVATIONS = 10**9
"""Bytes of the activations of a batch, if a block takes less."""

_LARGEST_GAP = 2
"""Largest gap between kept layers that gathering covers exactly, where memory allows; each costs a product a layer."""


def peak_bytes(config: "PreTrainedConfig", tokens: int, max_gap: int) -> int:
    """Upper estimate of the memory of gathering moments: their own, and that of a batch's activations.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        tokens (`int`): tokens in a batch.
        max_gap (`int`): largest gap between kept layers whose moments are exact.
    """
    return 4 * products(config, max_gap) + tokens * _bytes_of_token(config)


def blocks_in_batch(config: "PreTrainedConfig", length: int) -> int:
    """Most blocks of a length that are run together, so that the activations of all layers take about a gigabyte."""
    return max(1, _ACTIVATIONS // (length * _bytes_of_token(config)))


def _bytes_of_token(config: "PreTrainedConfig") -> int:
    """Bytes of a token's activations: inputs of writers, hidden states before and within layers, and one MLP's."""
    widths = feature_widths(config)
    return 4 * (sum(widths) + 3 * max(widths) + 2 * config.hidden_size * (len(widths) + 1))


def affordable_gap(config: "PreTrainedConfig", tokens: int, limit: float, device: str) -> int:
    for max_gap in range(_LARGEST_GAP, 0, -1):
        if (needed := peak_bytes(config, tokens, max_gap)) <= limit:
            return max_gap
    raise WhittleError(
        f"healed perplexity needs {needed / 1e9:.1f} GB for moments of this super-network, and {limit / 1e9:.1f} GB "
        f"are free on {device} or allowed; search by perplexity, with a smaller batch_size, or where there is more "
        "memory"
    )


def products(config: "PreTrainedConfig", max_gap: int) -> int:
    """Products that are summed over tokens: each takes a number in memory and 2 FLOPs a token."""
    size, widths = config.hidden_size, feature_widths(config)
    of_normal = len(norms_of_readers(config)) * SymmetricSums.numbers(size + 1)
    of_features = sum(SymmetricSums.numbers(width) for width in widths)
    with_states = (
        [*range(len(widths)), *(layer for layer, _ in gathered_gaps(config, max_gap))] if absorbs(config) else []
    )
    return of_normal + of_features + sum(widths[layer] * size for layer in with_states)


def feature_widths(config: "PreTrainedConfig") -> list[int]:
    """For each layer, the number of inputs of all its writers, plus 1."""
    features = writer_features(config, Shape.from_config(config))
    return [sum(groups) - len(groups) + 1 for groups in features]


def gathered_gaps(config: "PreTrainedConfig", max_gap: int) -> list[tuple[int, int]]:
    """Layers and gaps after them that are gathered; a gap of 1 follows from the layer's features."""
    layers = config.num_hidden_layers
    gaps = [(layer, gap) for layer in range(layers) for gap in range(2, max_gap + 1) if layer + gap <= layers]
    return gaps if absorbs(config) else []


def norms_of_readers(config: "PreTrainedConfig") -> dict[tuple[str | None, int], list[str | None]]:
    """One norm before readers, with its layer, for all that normalize the same hidden states, with the names of these.

    The norm before the head counts to the last layer.
    """
    groups = [[weights[0].norm for weights in group.readers] for group in projections(config)]
    norms = {(same[0], layer): same for layer in range(config.num_hidden_layers) for same in groups}
    norm = head_matrix(config).norm
    return {**norms, (norm, config.num_hidden_layers - 1): [norm]}
