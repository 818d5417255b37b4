"""Mix sources by weight: the order of their blocks is a function of the weights alone, streamed or not.

Block `j` of a source of weight `w` stands at `(j + 0.5) / w`, and blocks follow each other by their places. So every
beginning of the mixture has the sources in their proportions, to a block.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np
from datasets import Dataset, concatenate_datasets

from .packing import TOKENS


def next_source(weights: Sequence[float], taken: Sequence[int], sources: Collection[int]) -> int:
    """Return the source of the next block.

    Args:
        weights (`Sequence[float]`): weight of each source.
        taken (`Sequence[int]`): blocks taken from each source so far.
        sources (`Collection[int]`): sources that have more, by their indices.
    """
    return min(sources, key=lambda source: ((taken[source] + 0.5) / weights[source], source))


def shares(weights: Sequence[float], number: int, lengths: Sequence[int]) -> list[int]:
    """Return the number of blocks of each source among the first `number`, none of which is repeated."""
    taken = [0] * len(weights)
    for _ in range(min(number, sum(lengths))):
        more = [source for source, length in enumerate(lengths) if taken[source] < length]
        taken[next_source(weights, taken, more)] += 1
    return taken


def mix_blocks(blocks: Sequence[Dataset], weights: Sequence[float]) -> Dataset:
    """Mix the blocks of several sources: as many as all have together, each source repeated or cut to its share.

    Args:
        blocks (`Sequence[datasets.Dataset]`): blocks of each source.
        weights (`Sequence[float]`): weight of each source; only their proportions matter.
    """
    if len(blocks) == 1:
        return blocks[0]
    total = sum(map(len, blocks))
    numbers = [math.ceil(total * weight / sum(weights)) + 2 for weight in weights]
    starts = np.cumsum([0, *map(len, blocks)])
    own = zip(starts, numbers, blocks, strict=False)
    rows = np.concatenate([start + np.arange(number) % len(each) for start, number, each in own])
    return join_blocks(blocks).select(rows[mixture(weights, numbers)[:total]])


def mixture(weights: Sequence[float], numbers: Sequence[int]) -> np.ndarray:
    """Return the order in which blocks of several sources, put one source after another, follow each other.

    Args:
        weights (`Sequence[float]`): weight of each source.
        numbers (`Sequence[int]`): blocks of each source.
    """
    each = list(zip(weights, numbers, strict=True))
    places = np.concatenate([(np.arange(number) + 0.5) / weight for weight, number in each])
    sources = np.concatenate([np.full(number, source) for source, number in enumerate(numbers)])
    return np.lexsort((sources, places))


def join_blocks(blocks: Sequence[Dataset]) -> Dataset:
    """Put blocks of several sources one after another, with ids of one width."""
    if len(blocks) == 1:
        return blocks[0]
    alike = [each if each.features == TOKENS else each.cast(TOKENS) for each in blocks]
    return concatenate_datasets(alike).with_format("numpy")
